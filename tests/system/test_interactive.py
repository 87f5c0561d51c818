"""What a person does at a terminal, in each way to one: the interactive shell, `-c`, a session that is joined."""

import re

import pytest

from tests.system.shell_scene import shell as shell
from tests.system.test_join import until

WAYS = ("lines", "one-shot", "joined")


class Way:
    """One way to run a line at a terminal."""

    def __init__(self, name, shell, caller):
        self.name, self._shell, self._caller = name, shell, caller
        self.there = shell() if name == "lines" else None
        if name == "joined":
            assert caller.substrate("world", "start").returncode == 0

    def run(self, line: str):
        if self.name == "lines":
            self.there.type(line.encode() + b"\r")
            self.there.expect(b"[?2004l")
        else:
            self.there = self._shell("--keep", "-c", line, wait=False)
        return self.there

    def ended(self) -> int:
        """The status of the line."""
        if self.name != "lines":
            return self.there.wait()
        self.there.prompt()
        shown = self.there.line(b"echo status-$?")
        return int(re.search(rb"\nstatus-(\d+)\r", shown).group(1))

    def content(self, path: str) -> bytes:
        if self.name == "lines":
            return self.there.line(f"cat {path}".encode())
        return self._caller.substrate("-c", f"cat {path}").stdout

    def close(self):
        if self.name == "joined":
            self._caller.substrate("world", "stop")


@pytest.fixture(params=WAYS)
def way(request, shell, caller):
    made = Way(request.param, shell, caller)
    yield made
    made.close()


def test_vim(way):
    there = way.run("vim -u NONE -N note")
    there.expect(b"note")
    there.type(b"ihello vim\x1b:wq\r")
    assert way.ended() == 0
    assert b"hello vim" in way.content("note")


def test_less(way):
    there = way.run("seq 500 | less")
    there.expect(b"20")
    there.type(b"G")
    there.expect(b"500")
    there.type(b"q")
    assert way.ended() == 0


def test_python(way):
    there = way.run("/usr/bin/python3 -q")
    there.expect(b">>> ")
    there.type(b"6 * 7\r")
    there.expect(b"42\r\n")
    there.type(b"raise SystemExit(9)\r")
    assert way.ended() == 9


def test_ctrl_c(way):
    there = way.run("sh -c 'echo u''p; exec sleep 1000'")
    there.expect(b"up\r\n")
    there.type(b"\x03")
    assert way.ended() == 130


def test_another_size(way):
    there = way.run(
        """sh -c 'trap "stty size; exit 3" WINCH; echo u""p; while :; do sleep 0.05; done'"""
    )
    there.expect(b"up\r\n")
    there.resize(77, 22)
    there.expect(b"22 77\r\n")
    assert way.ended() == 3


def test_ten_thousand_lines(way):
    there = way.run("seq 10000; echo en''d")
    shown = there.expect(b"end\r\n")
    numbers = [int(n) for n in re.findall(rb"^(\d+)\r$", shown.replace(b"\r\r", b"\r"), re.M)]
    assert numbers[-10000:] == list(range(1, 10001))
    assert way.ended() == 0


def test_wide_characters_and_colours(way):
    there = way.run("printf '\\033[31mre''d\\033[0m \\033[1;38;5;208mx\\033[m ünï 日本''語 🎉\\n'")
    shown = there.expect("日本語 🎉".encode())
    assert b"\x1b[31mred\x1b[0m \x1b[1;38;5;208mx\x1b[m" in shown
    assert way.ended() == 0


def test_typed_wide_characters_reach_the_program(way):
    there = way.run("read -r line; printf '<%s>\\n' \"$line\"")
    there.type("ünï 日本語\r".encode())
    there.expect("<ünï 日本語>\r\n".encode())
    assert way.ended() == 0


@pytest.mark.parametrize("kind", ["one-shot", "joined"])
def test_stop_and_go_on_in_a_shell_of_the_host(shell, caller, kind):
    if kind == "joined":
        assert caller.substrate("world", "start").returncode == 0
    there = shell("--norc", "-i", program="/bin/bash", wait=False)
    there.type(b"PS1='pro''mpt: '\r")
    there.expect(b"prompt: ")
    there.type(b"%s --keep -c 'echo u''p; exec cat'\r" % bytes(caller.command))
    there.expect(b"up\r\n")
    there.type(b"\x1a")
    there.expect(b"Stopped")
    there.expect(b"prompt: ")
    there.type(b"fg\r")
    there.expect(b"cat'\r\n")
    until(there.is_raw)  # else the terminal of the host shows the keys, too
    there.type(b"typed\r")
    there.expect(b"typed\r\ntyped\r\n")
    there.type(b"\x04")
    there.expect(b"prompt: ")
    there.type(b"exit 5\r")
    assert there.wait() == 5
    if kind == "joined":
        caller.substrate("world", "stop")


def test_within_tmux(shell, caller):
    """A terminal of another kind: the shell in tmux, as people have it."""
    there = shell(
        *("-L", f"substrate-{caller.backend}-{caller.base.name}", "-f", "/dev/null", "new"),
        *("-x", "100", "-y", "30", caller.command),
        program="/usr/bin/tmux",
        wait=False,
        env={"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
    )
    there.expect(b"[w1]")
    there.type("echo ünï-$((40+2)); vim -u NONE -N note\r".encode())
    there.expect(b"note")
    there.type(b"ivim\x1b:wq\r")
    there.expect(b" +1]")
    there.type(b"exit\r")
    there.expect(b"[exited]")
