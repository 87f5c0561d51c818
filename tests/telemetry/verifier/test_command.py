"""The command: a copy that stands alone, its output, its memory (trace.md §9)."""

import json
import os
import resource
import shutil
import subprocess
import sys
import zlib

import pytest

from substrate.telemetry import verifier
from tests.telemetry.verifier.trace_maker import (
    GENESIS,
    Trace,
    canonical,
    record,
    save,
    sha256,
    whole,
)


@pytest.fixture
def copy(tmp_path):
    """run(*arguments) of a copy of the file, in an empty directory, isolated, without site."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    shutil.copy(verifier.__file__, directory / "verifier.py")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-I", "-S", "verifier.py", *map(str, arguments)],
            cwd=directory,
            capture_output=True,
            text=True,
            env={},
        )

    return run


def test_copy_runs_alone(copy, tmp_path):
    done = copy(save(tmp_path / "s", whole().content()))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Integrity:      verified\n")


@pytest.mark.parametrize(
    ("content", "status"), [(whole().content()[:-1], 3), (b"{}\n", 1), (b"[" * 2_000_000, 1)]
)
def test_copy_never_shows_a_traceback(copy, tmp_path, content, status):
    done = copy(save(tmp_path / "s", content))
    assert (done.returncode, done.stderr) == (status, "")


def test_it_imports_the_standard_library_only(tmp_path):
    code = (
        "import sys, runpy; before = set(sys.modules)\n"
        f"runpy.run_path({verifier.__file__!r})\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(names - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_json_holds_the_whole_verdict(copy, tmp_path):
    verdict = json.loads(copy("--json", save(tmp_path / "s", whole().content())).stdout)
    assert verdict["schema"] == "substrate/verdict/1"
    assert verdict["fingerprint"] == whole().head
    assert verdict["sealed"] is verdict["complete"] is True
    assert verdict["assurance"] == "same user"
    assert verdict["coverage"] == "ptrace/files; blind spots: mmap"


def test_quiet_prints_nothing(copy, tmp_path):
    assert copy("--quiet", save(tmp_path / "s", b"{}\n")).stdout == ""


def test_nothing_from_the_trace_reaches_the_terminal_raw(tmp_path, capsys):
    capture = {"backend": "\x1b[2J", "level": "\u202e", "blind_spots": ["\n\x9b"]}
    path = tmp_path / "a.jsonl"
    path.write_bytes(Trace().add("session_start", {"capture": capture}).content())
    assert verifier.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert all(c == "\n" or " " <= c <= "~" for c in out)
    assert "\\x1b[2J" in out


def test_a_closed_pipe_keeps_the_status(tmp_path):
    session = save(tmp_path / "s", b"{}\n")
    done = subprocess.run(
        ["/bin/sh", "-c", f"({sys.executable} -I {verifier.__file__} {session}; echo $? >&2) | :"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == "1\n"


MEASURED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import verifier
status = verifier.main(["--quiet", *sys.argv[1:]])
with open("/proc/self/status") as file:
    print(*(line.split()[1] for line in file if line.startswith("VmHWM:")))
sys.exit(status)
"""


def measured(*arguments):
    """(exit status, peak RSS in MiB) of a run of its own.

    VmHWM, because the ru_maxrss of a child begins with that of the process it was forked from.
    """
    directory = os.path.dirname(verifier.__file__)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MEASURED, directory, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, int(done.stdout) / 1024


def test_memory_of_a_line_of_100_mb(tmp_path):
    path = tmp_path / "trace.jsonl"
    with open(path, "wb") as file:
        file.write(whole(seal=False).content())
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    status, peak = measured(path)
    assert status == 1
    assert peak < 60


@pytest.mark.parametrize("mode", ["--full", "--fast"])
def test_memory_of_a_trace_of_200_mb(tmp_path, mode):
    rows = [["open", f"/usr/lib/module{number}.py", number] for number in range(400)]
    first = canonical(Trace().envelope("file_batch", {"rows": rows}))
    body, tail = first.split(b'"prev_hash":"' + GENESIS.encode())
    size, seq, head = 0, 0, GENESIS
    path = tmp_path / "trace.jsonl"
    with open(path, "wb") as file:
        while size < 200_000_000:
            place = tail.replace(b'"seq":0', b'"seq":%d' % seq)
            line = body + b'"prev_hash":"' + head.encode() + place
            file.write(line + b"\n")
            head, seq, size = sha256(line), seq + 1, size + len(line) + 1
    status, peak = measured(mode, path)
    assert status == 0
    assert peak < 60


def test_memory_of_a_pack_of_many_blobs(tmp_path):
    """100,000 records: their commitments are on disk, not in memory."""
    session = save(tmp_path / "s", whole().content())
    with open(session / "blobs", "wb") as pack:
        for number in range(100_000):
            pack.write(record(b"%d" % number)[0])
    status, peak = measured(session)
    assert status == 0
    assert peak < 40


def test_memory_of_a_bomb(tmp_path):
    raw, reference = record(b"x", deflate=True, stored=zlib.compress(bytes(300_000_000)))
    session = save(tmp_path / "s", Trace().start().command(1, argv=reference).content(), blobs=raw)
    status, peak = measured(session)
    assert status == 1
    assert peak < 40


def test_it_works_with_little_memory_and_few_files(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    done = subprocess.run(
        [sys.executable, "-I", verifier.__file__, save(tmp_path / "s", whole().content())],
        preexec_fn=limit,
        capture_output=True,
    )
    assert done.returncode == 0
