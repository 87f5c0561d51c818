"""A shell as a shim where no session runs: `substrate` itself runs it, in a world, and it behaves the
same."""

import os
import sys
from pathlib import Path

import pytest

from tests.shim.test_shells import FORMS, SCRIPT, told

SUBSTRATE = Path(sys.prefix) / "bin" / "substrate"
#: substrate gives the status of a signal as a number
SAME = [words for words in FORMS if "kill -TERM $$" not in words]


@pytest.fixture
def alone(place):
    place.deploy(substrate=os.fsencode(SUBSTRATE))
    place.extra["SUBSTRATE_SESSION"] = ""
    (place.work / "script").write_text(SCRIPT)
    return place


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_it_behaves_as_the_shell(alone, words):
    options = {"input": b"echo from stdin $1\nexit 4\n", "stdin": None, "umask": 0o033}
    done = alone.call("bash", *words, **options)
    environ = {**alone.environ, "PATH": "/usr/bin:/bin"}
    wanted = alone.call("/usr/bin/bash", *words, env=environ, **options)
    assert (done.returncode, done.stdout, told(done.stderr)) == (
        wanted.returncode,
        wanted.stdout,
        told(wanted.stderr),
    )


def test_what_it_changes_is_pending_and_its_text_is_on_the_record(alone):
    assert alone.call("bash", "-c", "-l", "echo new > file").returncode == 0
    assert not (alone.work / "file").exists()
    assert b"file" in alone.call(SUBSTRATE, "diff").stdout
    assert b"echo new > file" in alone.call(SUBSTRATE, "log").stdout


def test_a_world_in_which_nobody_can_be_asked_has_no_shims_in_its_path(alone):
    done = alone.call(SUBSTRATE, "-c", 'command -v tool; echo "$PATH"; tool')
    assert done.stderr == b""
    assert done.stdout.startswith(f"{alone.bin}/tool\n{alone.bin}:/usr/bin:/bin\ntool|".encode())
