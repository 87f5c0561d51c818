"""The policy's questions in the interactive shell: whoever sits there is asked (policy.md §3, shell.md §2)."""

import termios
import time

import pytest

from tests.system.shell_scene import shell as shell

_KEYS = b"never allow"
#: of the screen of a question
_SECOND, _FIRST = b"\x1b[?1049h", b"\x1b[?1049l"
_POLICY = """
[[command]]
match = ["**"]
action = "allow"
[[command]]
match = ["/usr/bin/nl", "**"]
action = "ask"
reason = "why not"
"""


@pytest.fixture
def asks(caller):
    """A policy that asks about one program."""
    directory = caller.base / "home" / ".config" / "substrate"
    for each in (directory.parent, directory):
        caller.make_directory(each)
    path = directory / "policy.toml"
    path.write_text(_POLICY)
    caller.own(path)
    (caller.work / "text").write_text("text\n")
    yield
    path.unlink()


def press(there, key):
    """Answers the question that stands there, or comes, when keys count; what was shown until the terminal is given
    back."""
    shown = there.expect(_SECOND) + there.expect(_KEYS)
    settings = there.settings()
    assert not settings[3] & termios.ISIG
    until = time.monotonic() + 20
    while _FIRST not in there.seen:  # a key that comes too soon has none
        assert time.monotonic() < until, there.seen
        there.type(key)
        there._read(1.0)
    return shown + there.expect(_FIRST)


@pytest.mark.usefixtures("asks")
def test_a_yes_runs_it(shell, caller):
    there = shell()
    there.type(b"nl text; echo with-$?; cat -A\r")
    assert b"why not" in press(there, b"y")
    there.expect(b"1\ttext\r\n")
    there.expect(b"with-0\r\n")
    there.type(b"own\r\x04")  # its keys are its own again, and the terminal does as it should
    there.expect(b"own\r\n")
    there.expect(b"own$\r\n")
    there.prompt()
    there.type(b"exit\r")
    assert there.wait() == 0
    assert there.settings() == there.before
    said = [e["body"] for e in caller.events() if e["event_type"] == "policy_decision"]
    asked = [body for body in said if body["decision"] == "ask"]
    assert asked, said
    assert [body["action"] for body in asked] == ["allowed"]
    caller.verify()


@pytest.mark.usefixtures("asks")
@pytest.mark.parametrize("key", [b"n", b"\x03"])
def test_a_no_does_not_and_the_line_goes_on(shell, key):
    there = shell()
    there.type(b"nl text; echo with-$?\r")
    press(there, key)
    shown = there.expect(b"with-126\r\n")
    assert b"1\ttext" not in shown
    assert b"denied" in shown
    there.prompt()
    assert b"\nnext-3\r\n" in there.line(b"echo next-$((1+2))")
    there.type(b"exit\r")
    assert there.wait() == 0
    assert there.settings() == there.before


@pytest.mark.usefixtures("asks")
def test_ctrl_c_behind_an_answer_ends_the_line(shell):
    there = shell()
    there.type(b"nl text; sh -c 'echo u''p; exec sleep 1000'\r")
    press(there, b"n")
    there.expect(b"up\r\n")
    there.type(b"\x03")
    assert b" 130 " in there.prompt()


@pytest.mark.usefixtures("asks")
def test_a_shell_that_is_taken_up_again_asks(shell):
    there = shell()
    there.type(b"sh -c 'echo u''p; read x; nl text; echo with-$?'\r")
    there.expect(b"up\r\n")
    there.type(b"\x1a")
    assert b"Stopped" in there.prompt()
    there.type(b"fg\r")
    there.expect(b"\x1b[?2004l")
    there.type(b"go\r")
    assert b"why not" in press(there, b"y")
    there.expect(b"1\ttext\r\n")
    there.expect(b"with-0\r\n")
    there.prompt()
    there.type(b"exit\r")
    assert there.wait() == 0
    assert there.settings() == there.before


@pytest.mark.usefixtures("asks")
def test_a_job_in_the_background_has_nobody_to_ask(shell):
    there = shell()
    there.line(b"mkfifo go; (read x < go; nl text; echo with-$? > said; exec sleep 1000) &")
    there.line(b"echo > go; until [ -s said ]; do sleep 0.1; done")
    assert b"\nwith-126\r\n" in there.line(b"cat said")
    assert b"\nnext-3\r\n" in there.line(b"echo next-$((1+2))")
    assert b"Terminated" in there.line(b"kill %1")
    there.type(b"exit\r")
    assert there.wait() == 0
    assert there.settings() == there.before
