"""Bare `substrate` at a real terminal: each line a command of its own, as one shell (shell.md §2)."""

import os
import re
import signal
import termios

import pytest

from tests.system import traces_left
from tests.system.screen import Screen

_PROMPT = re.compile(rb"[#$](\x1b\[\d+[CD])*\x1b\[\?7h")


@pytest.fixture
def shell(caller):
    """Starts shells at terminals, and waits for their prompt; nothing may be left at the end."""
    opened = []

    def start(*words, wait=True, env=None):
        mark = f"repl-{os.getpid()}-{len(opened)}-{caller.backend}"
        made = Screen(caller, caller.command, *words, env={traces_left.MARK: mark, **(env or {})})
        made.mark = mark
        opened.append((made, mark))
        if wait:
            made.expect(b"[?2004h")
        return made

    yield start
    for made, _ in opened:  # the session of one may serve the others
        made.close()
    for _, mark in opened:
        left = traces_left.gone(lambda m=mark: traces_left.processes(m))
        assert not left, f"left behind: {left}"


def commands(caller):
    return [e["body"] for e in caller.events() if e["event_type"] == "command_start"]


def test_each_line_is_a_command_with_a_layer_and_one_shell_all_the_same(shell, caller):
    there = shell()
    there.type(b"x=5; f() { echo f$1-$x; }\r")
    there.type(b"mkdir sub && cd sub && echo new > file\r")
    there.expect(b" +2]")
    there.type(b"f $(basename $PWD)\r")
    there.expect(b"fsub-5\r\n")
    there.type(b"exit 7\r")
    assert there.wait() == 7
    assert not (caller.work / "sub").exists()
    ran = caller.events()
    starts = [e for e in ran if e["event_type"] == "command_start"]
    texts = [str(e["body"]["display"]) for e in starts]
    assert any("mkdir sub" in text for text in texts)
    assert len({e["span_id"] for e in starts}) >= 4
    caller.verify()


def test_keys_typed_while_a_line_ends_are_for_the_next_one(shell):
    there = shell()
    for number in range(8):
        there.type(b"echo n%d-$((%d+1))\r" % (number, number))
    there.expect(b"n7-8\r\n")
    there.type(b"exit\r")
    assert there.wait() == 0


def test_a_command_over_several_lines_and_a_paste_of_a_hundred(shell):
    there = shell()
    there.type(b"for i in 1 2; do\r")
    there.expect(b">")
    there.type(b"echo n$((i+10))\rdone\r")
    there.expect(b"n12\r\n")
    pasted = b"\n".join(b"v%d=%d" % (n, n) for n in range(100))
    there.expect(b"[?2004h")
    there.type(b"\x1b[200~" + pasted + b"\x1b[201~\r")
    there.expect(b"[?2004h")
    there.type(b"echo sum-$((v1+v50+v99))\r")
    there.expect(b"sum-150\r\n")


def test_ctrl_c_ends_the_line_and_keeps_what_it_set(shell):
    there = shell()
    there.type(b"y=kept; sh -c 'echo go-$((1+1)); exec sleep 1000'\r")
    there.expect(b"go-2\r\n")
    there.type(b"\x03")
    there.expect(b" 130")
    there.type(b'echo "<$y>"\r')
    there.expect(b"<kept>\r\n")
    there.type(b"echo half a li\x03")
    there.expect(b"[?2004h")
    there.type(b"echo o$((1+1))k\r")
    there.expect(b"o2k\r\n")


def test_a_stopped_job_is_gone_on_with(shell):
    there = shell()
    there.type(b"echo on-$((2+2)); tee out\r")
    there.expect(b"on-4\r\n")
    there.type(b"zero\r")
    there.expect(b"zero\r\nzero\r\n")  # the terminal's, and the program's
    there.type(b"one\r")
    there.expect(b"one\r\none\r\n")  # else Ctrl-Z would take it away (termios(3) NOFLSH)
    there.type(b"\x1a")
    there.expect(b"[1]+  Stopped                 tee out\r\n")
    there.expect(b" ^Z1")
    there.type(b"echo in-$((3+3))\r")
    there.expect(b"in-6\r\n")
    there.expect(b"[?2004h")
    there.type(b"fg\r")
    there.expect(b"tee out\r\n")
    there.type(b"two\r\x04")
    there.expect(b"[?2004h")
    there.type(b"cat out | tr a-z A-Z\r")
    there.expect(b"ZERO\r\nONE\r\nTWO\r\n")


@pytest.mark.parametrize(
    ("line", "sign", "keys"),
    [
        (b"vim -u NONE -N note", b"note", b"ihello vim\x1b:wq\r"),
        (b"seq 500 | less", b"20", b"G/499\rq"),
        (b"python3 -q", b">>> ", b"print(6*7)\rexit()\r"),
    ],
)
def test_programs_that_take_the_whole_terminal(shell, line, sign, keys):
    there = shell()
    there.type(line + b"\r")
    there.expect(b"[?2004l")
    there.expect(sign)
    there.type(keys)
    there.expect(b"[?2004h")
    there.type(b"cat note 2>/dev/null; echo back-$((5+5))\r")
    seen = there.expect(b"back-10\r\n")
    assert b"vim" not in line or b"hello vim\r\n" in seen


def test_the_size_of_the_terminal_follows(shell):
    there = shell()
    there.resize(77, 22)
    there.type(b"stty size\r")
    there.expect(b"22 77\r\n")


def test_much_output_wide_characters_and_colours(shell):
    there = shell()
    there.type(b"echo; seq 10000\r")
    seen = there.expect(b"\r\n10000\r\n")
    numbers = [int(n) for n in re.findall(rb"^(\d+)\r$", seen, re.MULTILINE)]
    assert numbers == list(range(1, 10001))
    there.expect(b"[?2004h")
    there.type("echo 'ünï 日本語 🎉' | cat\r".encode())
    there.expect("ünï 日本語 🎉\r\n".encode())
    there.type(b"printf '\\033[31mred\\033[0m\\n'\r")
    there.expect(b"\x1b[31mred\x1b[0m\r\n")


def test_verbs_show_and_undo(shell, caller):
    there = shell()
    there.type(b"echo one > a\r")
    there.expect(b" +1]")
    there.type(b"echo two > b\r")
    there.expect(b" +2]")
    there.type(b":why b\r")
    there.expect(b"added")
    there.expect(b"[?2004h")  # what is typed while a line runs is no command of the shell's
    there.type(b":undo --yes\r")
    there.expect(b"undone")
    there.expect(b" +1]")
    there.type(b"ls b; echo status-$?\r")
    there.expect(b"status-2\r\n")
    there.expect(b"[?2004h")
    there.type(b":apply --yes\r")
    there.expect(b"applied")
    there.expect(b"[?2004h")
    there.type(b":nothing\r")
    there.expect(b"is no command here")
    there.expect(b"[?2004h")
    there.type(b":quit\r")
    there.wait()
    assert (caller.work / "a").read_text() == "one\n"
    assert not (caller.work / "b").exists()


def test_tab_completes_what_only_the_world_has(shell):
    there = shell()
    there.type(b"echo text > 'only here'\r")
    there.expect(b" +1]")
    there.type(b"cat onl\t")
    there.expect(b"y\\ here")
    there.type(b"\r")
    there.expect(b"text\r\n")
    there.expect(b"[?2004h")
    there.type(b":und\t")
    there.expect(b":undo")


def test_the_history_is_kept_but_for_lines_that_begin_with_a_blank(shell, caller):
    there = shell()
    there.type(b"echo first-$((1+1))\r")
    there.expect(b"first-2\r\n")
    there.expect(b"[?2004h")
    there.type(b" echo secret\r")
    there.expect(b"secret\r\n")
    there.type(b"exit\r")
    there.wait()
    again = shell()
    again.type(b"\x1b[A")
    again.expect(b"exit")
    again.type(b"\x1b[A")
    again.expect(b"first-$((1+1))")
    (kept,) = (caller.state / "history").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "secret" not in kept.read_text()


def test_an_end_of_input_runs_the_trap_and_leaves_with_the_last_status(shell):
    there = shell()
    there.type(b"trap 'echo bye-$((1+1))' EXIT; (exit 3)\r")
    there.expect(b" 3\x1b[0m")
    there.type(b"\x04")
    there.expect(b"bye-2\r\n")
    assert there.wait() == 3


def test_a_line_that_kills_its_shell_costs_what_it_set(shell):
    there = shell()
    there.type(b"x=before\r")
    there.type(b"x=after; kill -9 $$\r")
    there.expect(b"its shell without leaving its state")
    there.type(b'echo "<$x>"\r')
    there.expect(b"<before>\r\n")


def test_a_line_that_execs_writes_no_history(shell, caller):
    there = shell()
    there.type(b"exec true\r")
    there.expect(b"exec, a signal")
    there.type(b"history; ls -A ~ | grep -c hist\r")
    there.expect(b"[?2004l0\r\n")
    there.type(b"exit\r")
    there.wait()


def test_the_terminal_has_its_settings_back(shell):
    there = shell()
    there.type(b"stty -echo\r")
    there.expect(b"[?2004h")
    there.type(b"exit\r")
    assert there.wait() == 0
    assert termios.tcgetattr(there.slave) == there.before


def test_a_killed_shell_takes_its_world_along(shell, caller):
    there = shell()
    there.type(b"echo up-$((1+1)); sleep 1000\r")
    there.expect(b"up-2\r\n")
    there.process.send_signal(signal.SIGKILL)
    there.process.wait()
    assert not traces_left.gone(lambda: traces_left.processes(there.mark))
    assert caller.substrate("-c", "echo next").stdout == b"next\n"


def test_two_shells_in_one_directory_share_the_world(shell):
    one, other = shell(), shell()
    one.type(b"echo shared > file\r")
    one.expect(b" +1]")
    other.type(b"cat file\r")
    other.expect(b"shared\r\n")


def test_a_terminal_that_can_do_nothing(shell):
    there = shell(wait=False, env={"TERM": "dumb"})
    there.expect(b"] ")
    there.type(b"if true\rthen echo dumb-$((1+1))\rfi\r")
    there.expect(b"dumb-2\r\n")
    there.type(b"exit 5\r")
    assert there.wait() == 5


def test_without_a_terminal_lines_are_a_script(caller):
    ran = caller.call(caller.command, input=b"x=5\necho $x $-\n")
    assert ran.returncode == 0
    assert ran.stdout.startswith(b"5 ")
    assert b"i" not in ran.stdout


def test_a_shell_that_was_asked_for_is_the_plain_one(shell):
    there = shell("--shell", "/bin/sh", wait=False)
    there.type(b"echo plain-$((1+1)); exit 6\n")
    there.expect(b"plain-2\r\n")
    assert there.wait() == 6


def test_vi_keys_by_the_option_of_bash(shell):
    there = shell()
    there.type(b"set -o vi\r")
    there.expect(b"[?2004h")
    there.type(b"echo wrong\x1bbcwright-$((1+1))\r")
    there.expect(b"right-2\r\n")


@pytest.mark.parametrize("told", [r":apply --yes\n", r":apply --yes", r"\n\v:apply --yes\n"])
def test_what_a_world_says_was_typed_is_no_verb_of_ours(shell, caller, told):
    (caller.work / "own.sh").write_text(f"echo of a world > escaped\n__substrate_ahead=$'{told}'\n")
    there = shell()
    there.type(b". ./own.sh\r")
    there.expect(b" +1]")
    there.type(b"\r")
    there.type(b"echo o$((1+1))k\r")
    there.expect(b"o2k\r\n")
    assert not (caller.work / "escaped").exists()
