"""Counting what a hostile tree takes, while it is changed."""

import os
import shutil

from substrate.world.usage import Usage


def count(path):
    usage = Usage((os.fsencode(path),))
    while not usage.done:
        usage.go_on(0.0)
    return usage.total_bytes


def test_links_lead_nowhere(tmp_path):
    (tmp_path / "link").symlink_to("/usr")
    assert count(tmp_path) < 1 << 20


def test_a_directory_replaced_by_a_link_counts_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    usage = Usage((os.fsencode(tmp_path),))
    usage.go_on(0.0)
    (tmp_path / "a").rmdir()
    (tmp_path / "a").symlink_to("/usr")
    before = usage.total_bytes
    usage.go_on(0.0)
    assert usage.done
    assert usage.total_bytes == before


def test_a_directory_replaced_by_a_file_counts_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    usage = Usage((os.fsencode(tmp_path),))
    usage.go_on(0.0)
    (tmp_path / "a").rmdir()
    (tmp_path / "a").write_text("file")
    usage.go_on(0.0)
    assert usage.done


def test_hard_links_count_once_and_holes_nothing(tmp_path):
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    for i in range(50):
        os.link(tmp_path / "one", tmp_path / f"link{i}")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert 100_000 <= count(tmp_path) < 300_000


DEEP = """
import os
for _ in range(1500):
    os.mkdir("d"); os.chdir("d")
os.mkdir("n" * 250); os.chdir("n" * 250)
for _ in range(40):
    os.mkdir("m" * 250); os.chdir("m" * 250)
open("file", "wb").write(b"x" * 50000)
"""


def test_a_tree_deeper_than_any_path_is_listed_limited_and_collected(place):
    place.python(DEEP + "import time; time.sleep(1.2)", SUBSTRATE_LIMIT_DISK="1g")
    assert place.json("world", "ls", "--format", "json")["worlds"][0]["size_bytes"] > 50_000
    place.run("discard")


def test_it_reaches_its_limit(place):
    done = place.run(
        "-c",
        "mkdir a; ln -s /usr a/usr; head -c 30000000 /dev/zero > a/big; sleep 30",
        SUBSTRATE_LIMIT_DISK="10m",
        status=124,
    )
    assert b"disk limit" in done.stderr
    shutil.rmtree(place.work, ignore_errors=True)
    place.work.mkdir(exist_ok=True)
