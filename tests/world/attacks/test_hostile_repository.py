"""A cloned repository is data: nothing in it is run, obeyed or waited for by substrate itself."""

import os

import pytest

from tests.world.attacks.conftest import UID, root_only

#: what a start of ours imports, of us and of Python
MODULES = ("substrate", "select", "zlib", "ctypes", "fcntl", "pwd", "termios", "tomllib", "click")


@pytest.mark.parametrize("path", [".", "", ":/nowhere", "{work}"])
@pytest.mark.parametrize("words", [("-c", "true"), ("session", "ls")])
def test_no_module_of_the_directory_is_imported(place, path, words):
    place.run("-c", "true")
    for name in MODULES:
        (place.work / f"{name}.py").write_text(f"open('/proc/self/fd/2', 'w').write('{name} ran')")
    done = place.run(*words, PYTHONPATH=path.format(work=place.work))
    assert b"ran" not in done.stderr


def test_the_variable_still_goes_into_the_world(place):
    assert place.out("-c", "echo $PYTHONPATH", PYTHONPATH="src") == "src\n"


def write_settings(place, text):
    directory = place.work / ".substrate"
    directory.mkdir()
    (directory / "config.toml").write_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{x=" * 5000,
        "limits.pids = " + "9" * 10000,
        "a." * 30000 + "b = 1",
    ],
    ids=["arrays", "closed arrays", "tables", "digits", "dots"],
)
def test_odd_settings_are_an_error_not_a_bug(place, text):
    write_settings(place, text)
    done = place.run("-c", "true", status=None)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 125
    assert b"config.toml" in done.stderr


def test_many_unknown_settings_are_counted(place):
    write_settings(place, "".join(f"k{i} = 1\n" for i in range(1500)))
    done = place.run("-c", "echo ran")
    assert done.stdout == b"ran\n"
    assert done.stderr.count(b"\n") < 30
    assert b"and 1480 more" in done.stderr


def test_a_settings_file_of_megabytes_is_refused(place):
    write_settings(place, "#" * (1 << 20))
    done = place.run("-c", "true", status=125)
    assert b"larger than" in done.stderr


@pytest.mark.parametrize("tree", ["/proc", "/dev/null", "/sys", "/", "/dev"])
def test_hiding_what_a_world_makes_itself_is_refused(place, tree):
    write_settings(place, f'hide = ["{tree}"]\n')
    done = place.run("-c", "true", status=125)
    assert b"cannot be hidden" in done.stderr


@root_only
def test_a_git_directory_of_a_stranger_makes_no_workspace(rootless):
    """Anybody can put a .git into /tmp, above the directories of others."""
    (rootless.base / ".git").mkdir()
    os.chown(rootless.base / ".git", UID + 1, UID + 1)
    rootless.run("-c", "true")
    assert rootless.json("status", "--format", "json")["workspace"] == str(rootless.work)


def test_ones_own_does(place):
    (place.base / ".git").mkdir()
    place.run("-c", "true")
    assert place.json("status", "--format", "json")["workspace"] == str(place.base)


@root_only
def test_root_works_in_the_repository_of_a_user(place):
    (place.base / ".git").mkdir()
    for path in (place.base / ".git", place.work):
        os.chown(path, UID, UID)
    place.run("-c", "true")
    assert place.json("status", "--format", "json")["workspace"] == str(place.base)
