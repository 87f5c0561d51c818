"""Questions on a real terminal, with a command behind it that draws on it (policy.md §3)."""

import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.system.caller import Caller
from tests.system.screen import Screen

ROOT = Path(__file__).parents[2]
KEYS = b"[?] help"
PUSH = ["git", "push"]
ALT_ON, ALT_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
#: asks, and tells then what it reads, a line at a time
READS = 'echo ask; while read -r line; do echo "<$line>"; [ "$line" = end ] && exit; done'


class There:
    def __init__(self, base, script, command, words=()):
        self.base = base
        caller = Caller(
            backend="none", uid=os.geteuid(), gid=os.getegid(), base=base, command=Path("/bin/sh")
        )
        caller.work.mkdir()
        line = [sys.executable, "-m", "tests.session.approvals_driver"]
        self.screen = Screen(
            caller, *words, *line, base / "place", json.dumps(script), *command,
            env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.expect, self.type = self.screen.expect, self.screen.type

    def press(self, key, text):
        """Types a key until it has its effect: one that comes too soon behind others has none."""
        screen = self.screen
        deadline = time.monotonic() + 20
        while text not in screen.seen:
            assert time.monotonic() < deadline, screen.seen
            self.type(key)
            again = time.monotonic() + 0.5
            while text not in screen.seen and time.monotonic() < again:
                screen._read(0.1)
        return self.expect(text)

    def answers(self):
        lines = (self.base / "place" / "answers").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def allowed(self):
        return {(a["ticket"], a["allowed"], a["how"]) for a in self.answers()}


@pytest.fixture
def start(tmp_path):
    made = []

    def start(script, *command, words=()):
        (tmp_path / "place").mkdir()
        made.append(There(tmp_path, script, command, words))
        return made[-1]

    yield start
    for there in made:
        there.screen.close()


def ask(start, *questions, command=READS, **script):
    return start({"questions": questions or [PUSH], **script}, "/bin/bash", "-c", command)


def test_yes(start):
    there = ask(start)
    there.expect(b"ask\r\n")
    shown = there.expect(KEYS)
    assert ALT_ON in shown and b"\x1b[2J" in shown
    for part in (b"git push", b"/work", b"builtin command[1]: publishing", b"high: changes"):
        assert part in shown, part
    there.type(b"y")
    there.expect(ALT_OFF)
    there.type(b"end\r")
    there.expect(b"<end>")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, True, "person")}
    assert there.answers()[0]["by"].startswith("/dev/pts/")
    assert there.screen.settings() == there.screen.before


@pytest.mark.parametrize("key", [b"n", b"\x03"])
def test_no(start, key):
    there = ask(start)
    there.expect(KEYS)
    there.type(key)
    there.expect(b"denied (1): git push")
    there.type(b"end\r")
    assert there.screen.wait() == 0
    (answer,) = there.answers()
    assert not answer["allowed"] and "no, said /dev/pts/" in answer["line"]


def test_keys_for_a_question_do_not_reach_the_command(start):
    there = ask(start)
    there.expect(KEYS)
    there.type(b"zz9")  # no answers
    there.press(b"?", b"the same file, words and directory")
    there.press(b"y", b"once\r\n")
    there.type(b"\r")  # out of habit
    there.expect(ALT_OFF)
    there.type(b"end\r")
    seen = there.expect(b"<end>")
    assert seen.count(b"<") == 1
    assert there.screen.wait() == 0


def test_what_was_typed_ahead_answers_nothing(start):
    there = ask(start, command=READS.replace("echo ask", "read -r x; echo ask"))
    there.type(b"go\ryyyy\ry")
    shown = there.expect(KEYS)
    assert ALT_OFF not in shown
    there.type(b"n")
    there.expect(ALT_OFF)
    there.screen.hang_up()
    there.screen.process.wait(20)
    assert there.allowed() == {(0, False, "person")}


def test_a_look_alike_gets_the_keys_and_answers_nothing(start):
    fake = "printf 'substrate\\nMay this command run? [y] allow once  [?] hlp '"
    there = ask(start, command=f'{fake}; read -r line; echo "got $line"; echo ask; read -r x')
    there.expect(b"[?] hlp ")
    there.type(b"y\r")
    there.expect(b"got y")
    there.expect(KEYS)
    there.type(b"n")
    there.expect(ALT_OFF)
    there.type(b"\r")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, False, "person")}


def test_a_command_that_draws_all_the_time_is_not_mixed_in(start):
    draws = (
        "printf 'ask\\033[3;5r\\033[?25l\\033]11;#000000\\007';"
        "for i in $(seq 20000); do printf '\\033[31mdrawn %d\\033[0m\\r\\n' $i; done; echo over"
    )
    there = ask(start, command=draws)
    there.expect(ALT_ON)
    shown = there.expect(KEYS)
    assert b"drawn" not in shown
    assert b"\x1b[r" in shown and b"\x1b[?25h" in shown
    there.type(b"y")
    back = there.expect(ALT_OFF)
    assert b"\x1b[3;5r" in back and b"\x1b[?25l" in back and b"drawn" not in back
    there.expect(b"drawn 20000")
    there.expect(b"over")
    assert there.screen.wait() == 0


def test_a_sequence_that_is_cut_by_a_question_is_written_whole_again(start):
    there = ask(start, command="printf 'ask\\033[3'; read -r -t 4 x; printf '1mred'; read -r y")
    there.expect(KEYS)
    there.type(b"y")
    there.expect(ALT_OFF)
    assert b"\x1b[31mred" in there.expect(b"1mred")


def test_a_full_screen_program_draws_its_screen_again(start):
    program = (
        "printf '\\033[?1049hask'; n=0;"
        "trap 'n=$((n+1)); echo drawn $n $(stty size)' WINCH;"
        "while :; do sleep 0.02; done"
    )
    there = ask(start, command=program)
    there.expect(ALT_ON)
    shown = there.expect(KEYS)
    assert ALT_ON not in shown
    there.type(b"y")
    there.expect(b"drawn 2 30 100")
    assert ALT_OFF not in there.screen.seen
    there.screen.hang_up()
    there.screen.process.wait(20)


def test_two_questions_one_after_the_other(start):
    there = ask(start, PUSH, ["git", "tag", "v1"], PUSH)
    shown = there.expect(KEYS)
    assert b"1 more wait behind it" in shown
    there.type(b"y")
    shown = there.expect(KEYS)
    assert b"git tag v1" in shown and ALT_OFF not in shown
    there.type(b"n")
    there.expect(b"allowed (1): git push\r\nsubstrate: denied (2): git tag v1")
    there.type(b"end\r")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, True, "person"), (1, False, "person"), (2, True, "person")}


def test_nobody_answers_in_time(start):
    there = ask(start, approval={"timeout_s": 1.5})
    there.expect(KEYS)
    there.expect(b"question 1 is over (timeout): git push")
    there.type(b"end\r")
    there.expect(b"<end>")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, False, "timeout")}
    assert there.screen.settings() == there.screen.before


def test_always_writes_a_rule(start):
    there = ask(start)
    there.expect(KEYS)
    there.type(b"a")
    there.expect(b"allowed (1)")
    there.type(b"end\r")
    assert there.screen.wait() == 0
    with open(there.base / "place/config/substrate/policy.toml", "rb") as file:
        (rule,) = tomllib.load(file)["command"]
    assert (rule["match"], rule["action"]) == (["git", "push"], "allow")


def test_a_rule_that_cannot_be_written_leaves_the_question(start):
    there = ask(start)
    there.expect(KEYS)
    folder = there.base / "place/config/substrate"
    folder.mkdir()
    folder.chmod(0o777)
    there.type(b"a")
    there.expect(b"others can write it")
    there.expect(KEYS)
    there.type(b"n")
    there.expect(b"denied (1)")
    there.type(b"end\r")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, False, "person")}


def test_a_rule_of_ones_own(start):
    there = ask(start, ["git", "push", "origin", "main"])
    there.expect(KEYS)
    there.type(b"e")
    there.expect(b"> git push origin main")
    there.type(b"\x17")
    there.expect(b"> git push origin ")
    there.type(b"x*\r")  # pasted: the end is no decision
    there.expect(b"> git push origin x*")
    there.type(b"\r")
    there.expect(b"this rule does not meet the command")
    there.expect(KEYS)
    there.type(b"e")
    there.expect(b"> git push origin main")
    there.type(b"\x17")
    there.expect(b"> git push origin ")
    there.type(b"*")
    there.expect(b"> git push origin *")
    there.type(b"\r")
    there.expect(b"allowed (1)")
    there.type(b"end\r")
    assert there.screen.wait() == 0
    with open(there.base / "place/config/substrate/policy.toml", "rb") as file:
        (rule,) = tomllib.load(file)["command"]
    assert rule["match"] == ["git", "push", "origin", "*"]


def test_no_to_all(start):
    there = ask(start, PUSH, ["git", "tag"], ["git", "fetch"])
    there.expect(KEYS)
    there.type(b"q")
    there.expect(ALT_OFF)
    there.type(b"end\r")
    assert there.screen.wait() == 0
    assert {(t, a) for t, a, _ in there.allowed()} == {(0, False), (1, False), (2, False)}


def test_the_window_changes_its_size(start):
    there = ask(start, [str(n) * 10 for n in range(400)])
    there.expect(KEYS)
    there.screen.resize(60, 20)
    shown = there.expect(KEYS)
    assert b"lines left out" in shown
    there.type(b"w")
    assert b"page 1 of" in there.expect(KEYS)
    there.press(b"n", ALT_OFF)


def test_it_stands_there_again_after_a_stop(start):
    there = ask(start)
    there.expect(KEYS)
    there.screen.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, there.screen.process.pid, os.WSTOPPED)
    there.type(b"y")  # at a shell, which has the terminal now
    time.sleep(1.5)  # it was away so long
    there.screen.process.send_signal(signal.SIGCONT)
    assert b"git push" in there.expect(KEYS)
    there.type(b"n")
    there.expect(b"denied (1)")
    there.type(b"end\r")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, False, "person")}


def test_the_terminal_is_hung_up(start):
    there = ask(start)
    there.expect(KEYS)
    there.screen.hang_up()
    there.screen.process.wait(20)
    assert there.answers()[0]["allowed"] is False


def test_in_the_background_it_is_not_asked(start):
    """A shell's job in the background: there is nobody at its terminal."""
    script = {"questions": [PUSH], "piped": True}
    there = start(
        script, "/bin/sh", "-c", "echo ask", words=("/bin/bash", "-ic", '"$@" & wait', "bash")
    )
    there.expect(b"driver over")
    assert there.allowed() == {(0, False, "nobody")}


def test_with_pipes_the_terminal_is_still_there(start):
    """Standard input and output are something else; who waits sits at /dev/tty."""
    script = {"questions": [PUSH], "piped": True}
    shell = ("/bin/sh", "-c", '"$@" </dev/null | cat', "sh")
    there = start(script, "/bin/sh", "-c", "echo ask; sleep 2", words=shell)
    there.expect(KEYS)
    there.type(b"y")
    there.expect(b"allowed (1): git push")
    assert there.screen.wait() == 0
    assert there.allowed() == {(0, True, "person")}
    assert there.screen.settings() == there.screen.before


def test_before_the_command_starts(start):
    there = start({"before": PUSH}, "true")
    there.expect(KEYS)
    there.type(b"s")
    there.expect(b"driver over")
    assert there.allowed() == {("before", True, "person")}
    kept = json.loads(
        next((there.base / "place/home/sessions").glob("*/approvals.json")).read_bytes()
    )
    assert kept["next_number"] == 2 and len(kept["approvals"]) == 1
    assert there.screen.settings() == there.screen.before


def test_a_signal_ends_the_waiting_before_it_starts(start):
    there = start({"before": PUSH}, "true")
    there.expect(KEYS)
    there.screen.process.send_signal(signal.SIGTERM)
    there.expect(b"driver over")
    assert there.allowed() == {("before", False, "ended")}
    assert there.screen.settings() == there.screen.before


def test_two_at_one_terminal_ask_one_after_the_other(start, tmp_path):
    """Of two runs in the foreground one asks; the other one has no terminal for itself."""
    (tmp_path / "other").mkdir()
    other = json.dumps({"before": PUSH, "approval": {"without_terminal": "deny"}})
    shell = (
        "/bin/sh", "-c",
        f'"$@" & sleep 1; "$1" -m tests.session.approvals_driver {tmp_path}/other \'{other}\' true;'
        "cat " + f"{tmp_path}/other/answers; wait", "sh",
    )  # fmt: skip
    there = start({"before": PUSH}, "true", words=shell)
    there.expect(KEYS)
    there.expect(b'"how": "nobody"')
    there.type(b"y")
    there.expect(b"driver over")
    assert there.screen.wait() == 0
    assert there.allowed() == {("before", True, "person")}


def test_without_escape_sequences(start):
    there = start({"before": PUSH}, "true", words=("/usr/bin/env", "TERM=dumb"))
    shown = there.expect(KEYS)
    assert b"\x1b" not in shown and b"git push" in shown
    there.type(b"y")
    there.expect(b"driver over")
    assert there.allowed() == {("before", True, "person")}
