"""The input manifest of files that fail in the ways that files do (inputs.py)."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from substrate.session.digest_cache import NoCache
from substrate.session.inputs import Inputs
from substrate.telemetry.capture.summary import Summary
from substrate.telemetry.trace.digests import Digester
from tests.system import without_calls

DIGESTER = Digester(b"k" * 32)
LATER_NS = 1 << 62
NEVER = float("inf")


def looked_at(root, *paths, began_ns=LATER_NS, result="unobserved"):
    """The files of a manifest, by their paths."""
    summary = Summary()
    for path in paths:
        summary.add("read", path, None, result)
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        inputs = Inputs(summary, fd, NoCache(), DIGESTER, began_ns)
        body = inputs.manifest(None, "spn_x", (), 60).body
    finally:
        os.close(fd)
    return {file["path"]: file for file in body["files"]}, body, inputs


def test_a_file_whose_reading_fails_is_unknown(tmp_path):
    """Memory of a process is a regular file of /proc; nothing is at its beginning."""
    files, body, inputs = looked_at("/proc/self", b"/mem")
    assert files["/mem"] == {
        "path": "/mem", "size": None, "digest": None, "unknown": True, "why": "EIO",
    }  # fmt: skip
    assert inputs.failed == {"EIO": 1}
    assert body["missing_kinds"] == ["digests of 1 files (EIO)"]
    assert body["counts"]["unknown"] == 1


def test_a_file_that_somebody_holds_is_unknown(tmp_path):
    """A lease (fcntl(2)) would make us wait for its holder."""
    (tmp_path / "held").write_text("content")
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(tmp_path / "held", os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        files, _, _ = looked_at(tmp_path, b"/held")
        assert files["/held"]["why"] == "EAGAIN"
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, signal.SIG_DFL)
    files, _, _ = looked_at(tmp_path, b"/held")
    assert files["/held"]["digest"] == DIGESTER.digest_bytes(b"content")


def test_a_file_that_is_cut_while_it_is_read_is_unknown(tmp_path):
    """Or was read before that: never half of it."""
    path = tmp_path / "cut"
    cutter = (
        "import os, sys\n"
        "while True: os.truncate(sys.argv[1], 1 << 20); os.truncate(sys.argv[1], 6 << 20)\n"
    )
    path.write_bytes(bytes(6 << 20))
    whole = {DIGESTER.digest_bytes(bytes(size << 20)) for size in (1, 6)}
    with subprocess.Popen([sys.executable, "-Ic", cutter, path]) as process:
        found = [looked_at(tmp_path, b"/cut")[0]["/cut"] for _ in range(10)]
        process.kill()
    for file in found:
        assert file["digest"] in whole or file["why"] == "changed"


def test_what_is_gone_or_has_no_path_of_its_own_says_so(tmp_path):
    files, body, inputs = looked_at(tmp_path, b"/gone", b"name", result=3)
    assert files["/gone"]["why"] == "gone"
    assert files["name"]["why"] == "unnamed"
    assert body["absent"] == [] and not inputs.failed


def test_what_there_is_no_time_for_says_so(tmp_path):
    (tmp_path / "in").write_text("content")
    summary = Summary()
    summary.add("read", b"/in", None, 3)
    fd = os.open(tmp_path, os.O_PATH)
    inputs = Inputs(summary, fd, NoCache(), DIGESTER, LATER_NS)
    inputs._look(b"/in", time.monotonic() - 1)
    os.close(fd)
    assert inputs._files[0]["why"] == "late"


FAILING = """
import os, sys
from substrate.world import linux
from tests.session import test_inputs
from tests.system import without_calls
without_calls.install(int(sys.argv[1]), sys.argv[2].split(","))
files, body, inputs = test_inputs.looked_at(sys.argv[3], b"/link/in", result=3)
(file,) = files.values()
print(file["digest"], file.get("why"), inputs.failed)
"""


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE])
@pytest.mark.parametrize("calls", ["fstat,newfstatat", "preadv,preadv2", "readlinkat", "openat2"])
def test_no_call_on_a_file_ends_anything(tmp_path, calls, number):
    """As a filesystem in the network fails, at any call."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "in").write_text("content")
    (tmp_path / "link").symlink_to("dir")
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(number), calls, tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(without_calls.__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    word = errno.errorcode[number]
    if calls == "readlinkat":  # what /proc says of our own descriptor, or of the link
        assert done.stdout.startswith("None ")
    else:
        assert done.stdout == f"None {word} {{'{word}': 1}}\n"


@pytest.mark.parametrize(
    ("intent", "made", "why"),
    [("rename", False, "gone"), ("delete", False, "gone"), ("delete", True, "changed")],
)
def test_what_was_taken_away_before_it_was_looked_at_was_no_absence(tmp_path, intent, made, why):
    """It has gone already, and that is told only after it was looked at."""
    summary = Summary()
    summary.add("read", b"/here", None, "unobserved")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        inputs = Inputs(summary, fd, NoCache(), DIGESTER, LATER_NS)
        inputs.work(NEVER)
        if made:
            summary.add("create", b"/here", None, 3)
        summary.add(intent, b"/here", b"/there" if intent == "rename" else None, 0)
        body = inputs.manifest(None, "spn_x", (), 60).body
    finally:
        os.close(fd)
    assert [(file["path"], file["why"]) for file in body["files"]] == [("/here", why)]
    assert "/here" not in body.get("absent", [])
