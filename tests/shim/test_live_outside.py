"""Shims of the host beside a session of the product: decided as what no world contains, asked, on the record."""

import contextlib
import json
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest

SUBSTRATE = Path(sys.prefix) / "bin" / "substrate"
START = "import sys; from substrate.cli.serve_session import launch; print(launch([])['session'])"
ALLOWED = '[[command]]\nmatch = ["tool", "**"]\naction = "%s"\n'
SOURCED = '[[command]]\nmatch = ["source", "**"]\naction = "%s"\n'
ASKED = '[[command]]\nmatch = ["tool", "**"]\naction = "ask"\nreason = "why not"\n'


class Beside:
    """A session that nothing ran in yet."""

    def __init__(self, place, policy):
        place.deploy(substrate=os.fsencode(SUBSTRATE))
        config = place.base / ".config" / "substrate"
        config.mkdir(parents=True)
        (config / "policy.toml").write_text(policy)
        place.extra["SUBSTRATE_SESSION"] = ""
        started = place.call(sys.executable, "-c", START)
        assert started.returncode == 0, started.stderr
        session = started.stdout.decode().strip()
        place.extra["SUBSTRATE_SESSION"] = session
        self.place, self.session = place, place.base / "state" / "sessions" / session
        self.pidfd = os.pidfd_open(int((self.session / "lock").read_text().split()[0]))
        self.call = place.call

    def lines(self, *kinds):
        found = [
            json.loads(line) for line in (self.session / "trace.jsonl").read_text().split("\n")[:-1]
        ]
        return [line for line in found if line["event_type"] in kinds]

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        assert select.select([self.pidfd], [], [], 30)[0]
        os.close(self.pidfd)

    def on_terminal(self, *words):
        """A call on a terminal of its own: (pid, its other end)."""
        pid, master = pty.fork()
        if pid == 0:
            os.chdir(self.place.work)
            environ = {**self.place.environ, "TERM": "xterm"}
            file = words[0] if "/" in str(words[0]) else self.place.shims / words[0]
            os.execve(file, list(map(str, words)), environ)
        return pid, master

    def press(self, master, key, until, seen=b""):
        """Types until that has its effect: a key that comes too soon has none."""
        end = time.monotonic() + 60
        while until not in seen:
            assert time.monotonic() < end, seen
            if not select.select([master], [], [], 1)[0]:
                if b"deny all of this command" in seen:  # the line of keys: they count
                    os.write(master, key)
                continue
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
        return seen


@pytest.fixture
def beside(place):
    made = []

    def beside(policy=""):
        made.append(Beside(place, policy))
        return made[-1]

    yield beside
    for each in made:
        each.end()
        done = each.call(SUBSTRATE, "trace", "verify", each.session.name)
        assert done.returncode == 0, done.stdout


def test_what_no_rule_names_is_asked_about_and_nobody_is_there(beside):
    live = beside()
    done = live.call("tool", "x")
    assert (done.returncode, done.stdout) == (126, b"")
    for part in (b"tool x", b"nobody could be asked", b'match = ["tool", "**"]'):
        assert part in done.stderr
    # before the first command of the session, too
    (start,) = live.lines("session_start")
    assert start["seq"] == 0
    (told,) = live.lines("policy_decision")
    assert (told["body"]["decision"], told["body"]["action"]) == ("ask", "deny")
    assert live.call("bash", "-c", "echo on").stdout == b"on\n"
    assert len(live.lines("session_start")) == 1


@pytest.mark.parametrize("action", ["allow", "audit", "deny", "isolate"])
def test_rules_hold_without_a_question(beside, action):
    live = beside(ALLOWED % action)
    done = live.call("tool", "x")
    (told,) = live.lines("policy_decision")
    assert told["body"]["rule"] == "user command[1]"
    if action in ("allow", "audit"):
        assert done.returncode == 7
        assert done.stdout.decode().strip().rpartition("|")[2] == told["span_id"]
        assert told["body"]["decision"] == "allow"
    else:
        assert (done.returncode, told["body"]["decision"]) == (126, "deny")


def test_a_policy_that_observes_lets_it_pass_on_the_record(beside):
    live = beside('extends = "builtin:observe"\n')
    assert live.call("tool", "x").returncode == 7
    (told,) = live.lines("policy_decision")
    assert (told["body"]["decision"], told["body"]["action"]) == ("allow", "shim")


def test_a_bypass_is_ignored_where_the_profile_says_so(beside):
    live = beside(ALLOWED % "allow")
    live.place.extra["SUBSTRATE_BYPASS"] = "1"
    assert live.call("tool").returncode == 7
    assert len(live.lines("policy_decision")) == 1
    (told,) = live.lines("bypass")
    assert (told["body"]["allowed"], "coding-agent" in told["body"]["reason"]) == (False, True)
    live.call("bash", "-c", "SUBSTRATE_BYPASS=1 tool x; true")
    assert [line["body"]["allowed"] for line in live.lines("bypass")] == [False] * 3
    assert "in a world" in live.lines("bypass")[-1]["body"]["reason"]


def test_a_bypass_that_the_users_settings_grant_is_recorded_as_used(beside):
    live = beside('extends = "builtin:observe"\n' + ALLOWED % "deny")
    live.place.extra["SUBSTRATE_BYPASS"] = "1"
    assert live.call("tool").returncode == 7
    done = live.call("bash", "-c", "echo $SUBSTRATE_PARENT_SPAN")
    spans = [line["span_id"] for line in live.lines("bypass")]
    assert [line["body"]["allowed"] for line in live.lines("bypass")] == [True, True]
    assert done.stdout.decode().strip() == spans[1]


def test_who_called_is_asked_on_the_own_terminal(beside):
    live = beside(ASKED)
    for key, until, status in ((b"n", b"denied", 126), (b"y", b"tool|x|", 7)):
        pid, master = live.on_terminal("tool", "x")
        seen = live.press(master, key, until)
        assert b"why not" in seen
        # until the terminal is hung up: else its last words would keep it
        live.press(master, key, b"never said")
        _, ended = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(ended) == status, seen
        os.close(master)
    no, yes = live.lines("policy_decision")
    assert (no["body"]["action"], yes["body"]["action"]) == ("deny", "shim")
    assert yes["body"]["approved_by"].startswith("terminal of pid=")


def test_a_question_has_room_in_its_packet(beside):
    """A caller's variables are as many and as long as it likes."""
    live = beside(ASKED)
    live.place.extra.update({f"GIT_{number:03}": "é" * 200 for number in range(200)})
    pid, master = live.on_terminal("tool", "ü" * 30_000)
    seen = live.press(master, b"y", b"tool|")
    live.press(master, b"", b"never said")
    _, ended = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(ended) == 7, seen
    for part in (b"GIT_000", b"94 more variables", b"ld be read)", b"once or not"):
        assert part in seen, part


def test_a_question_ends_with_who_called(beside):
    live = beside(ASKED)
    pid, master = live.on_terminal("tool", "x")
    live.press(master, b"", b"question")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)
    done = live.call("tool", "x")
    assert done.returncode == 126


def test_a_joined_command_is_asked_about_on_its_callers_terminal(beside):
    live = beside(ASKED)
    text = "echo begun; tool x; echo ended with $?"
    for words in ([SUBSTRATE, "-c", text], ["bash", "-c", text]):
        pid, master = live.on_terminal(*words)
        seen = live.press(master, b"y", b"ended with")
        live.press(master, b"y", b"never said")
        _, ended = os.waitpid(pid, 0)
        os.close(master)
        assert b"why not" in seen
        assert b"ended with 7" in seen
        assert os.waitstatus_to_exitcode(ended) == 0


@pytest.mark.parametrize("action", ["ask", "deny"])
def test_a_command_that_is_denied_does_not_run_from_the_next_directory_of_path(beside, action):
    """/bin is /usr/bin on many hosts, so that a command's program is there twice."""
    live = beside(SOURCED % action)
    live.place.script("x", "echo sourced\n", live.place.work)
    done = live.call(SUBSTRATE, "run", "--", "bash", "-c", "source ./x")
    assert (done.returncode, done.stdout) == (126, b"")
    assert b"source ./x" in done.stderr
    assert {line["body"]["action"] for line in live.lines("policy_decision")} <= {"denied"}


def test_what_is_denied_on_its_callers_terminal_is_asked_once(beside):
    live = beside(SOURCED % "ask")
    live.place.script("x", "echo sour''ced\n", live.place.work)
    for key, shown, status in ((b"n", b"no, said", 126), (b"y", b"sourced", 0)):
        pid, master = live.on_terminal(SUBSTRATE, "run", "--", "bash", "-c", "source ./x")
        seen = live.press(master, key, shown)
        seen += live.press(master, b"", b"never said")
        _, ended = os.waitpid(pid, 0)
        os.close(master)
        assert os.waitstatus_to_exitcode(ended) == status, seen
        assert (b"sourced" in seen) == (status == 0)
        assert b"read as   source ./x" in seen
    asked = {line["body"]["approval"] for line in live.lines("policy_decision")}
    assert len(asked) == 2
