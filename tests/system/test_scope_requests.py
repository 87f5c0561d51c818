"""What a process of a world asks for beyond it: a person is asked, and the answer holds for the session."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.system.test_join import HELPER

CLIENT = Path(__file__).with_name("inside_client.py")
WAITS = 'extends = "builtin:locked-down"\ndefault_action = "allow"\n[approval]\nwithout_terminal = "wait"\n'


@pytest.fixture
def home(caller):
    folder = caller.make_directory(caller.base / "home/.config/substrate")
    caller.own(folder.parent)

    def write(text):
        path = folder / "policy.toml"
        path.write_text(text)
        path.chmod(0o600)
        caller.own(path)

    write(WAITS)
    yield write
    (folder / "policy.toml").unlink()


class Session:
    """A session that lives, and commands that join it, as its caller."""

    def __init__(self, caller, *flags):
        self.caller = caller
        started = caller.substrate("world", "start", "--fresh", *flags)
        assert started.returncode == 0, started.stderr
        (self.world,) = set(re.findall(r"\bw\d+\b", (started.stdout + started.stderr).decode()))
        self.session = caller.sessions()[-1]

    def out(self, text):
        return self.caller.substrate("-c", text).stdout

    def end(self):
        return self.caller.substrate("world", "stop", self.world)

    def decisions(self):
        lines = self.caller.events(self.session)
        return [line["body"] for line in lines if line["event_type"] == "policy_decision"]


@pytest.fixture
def live(caller, home):
    opened = []

    def start(*flags):
        found = Session(caller, *flags)
        opened.append(found)
        for path in (CLIENT, HELPER):
            shutil.copy(path, caller.work)
            caller.own(caller.work / Path(path).name)
        return found

    yield start
    for each in opened:
        each.end()


def request(live, **given):
    """The running request of a process in the world, as a command that joined."""
    words = " ".join(
        [sys.executable, "inside_client.py", "verb", "request_scopes", f"'{json.dumps(given)}'"]
    )
    return live.caller.start("-c", words)


def told(process):
    out, _ = process.communicate(timeout=60)
    kind, fields = json.loads(out.splitlines()[0])
    return (kind, json.loads(fields[0])) if kind == "J" else (kind, fields)


def approvals(live, *words):
    return live.caller.substrate("approvals", *words)


def question(live):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        done = approvals(live, "ls", "--format", "json")
        found = json.loads(done.stdout)["questions"] if done.returncode == 0 else []
        if found:
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(done)


ASK = "getent ahostsv4 {} >/dev/null && echo yes || echo no"


def test_a_host_is_reached_when_a_person_says_yes_and_for_the_session(live):
    found = live("--deny", "bad.example")
    assert found.out(ASK.format("a.example")) == b"no\n"
    process = request(found, host="a.example:443", reason="the index lies there")
    asked = question(found)
    assert (asked["kind"], asked["command"]) == ("scope", "reach a.example:443")
    assert "the index lies there" in asked["reason"] and not asked["exact"]
    text = approvals(found, "ls").stdout.decode()
    assert "to go beyond its world" in text
    assert approvals(found, "allow", str(asked["number"])).returncode == 0
    kind, answer = told(process)
    assert (kind, answer["allowed"], answer["reach"]) == ("J", True, "a.example:443")
    assert found.out(ASK.format("a.example") + "; " + ASK.format("b.example")) == b"yes\nno\n"
    kind, answer = told(request(found, host="a.example:443"))  # nobody is asked again
    assert answer["allowed"] is True
    (decision,) = [d for d in found.decisions() if d["kind"] == "net"]
    assert (decision["decision"], decision["action"]) == ("ask", "allowed")
    assert decision["subject"] == "a.example:443" and "control uid=" in decision["approved_by"]
    assert decision["asked_by"] == "request_scopes" and decision["approved_for_us"] > 1 << 50
    found.caller.verify()


def test_a_no_holds_too(live):
    found = live()
    process = request(found, host="a.example")
    assert approvals(found, "deny", str(question(found)["number"])).returncode == 0
    assert told(process)[1]["allowed"] is False
    assert told(request(found, host="a.example"))[1]["why"] == "answered before"
    assert found.out(ASK.format("a.example")) == b"no\n"


def test_nothing_is_given_where_nobody_is_asked(live, home):
    home(WAITS.replace("wait", "allow"))
    found = live()
    kind, answer = told(request(found, host="a.example"))
    assert (kind, answer["allowed"]) == ("J", False)
    assert found.out(ASK.format("a.example")) == b"no\n"
    (decision,) = [d for d in found.decisions() if d["kind"] == "net"]
    assert decision["action"] == "denied" and "approved_by" not in decision


def test_what_the_policy_denies_or_locks_is_not_asked(live, home):
    home(WAITS + '[net]\ndeny = ["bad.example"]\n')
    found = live()
    answer = told(request(found, host="bad.example:443"))[1]
    assert answer["allowed"] is False and "denied by bad.example" in answer["why"]
    found.end()
    home("final = true\n" + WAITS)
    found = live()
    answer = told(request(found, host="a.example"))[1]
    assert answer["allowed"] is False and "is final" in answer["why"]
    assert {d["rule"] for d in found.decisions()} == {"final of ~/.config/substrate/policy.toml"}


@pytest.mark.parametrize(
    "given",
    [{}, {"host": "*"}, {"host": "*.example"}, {"host": "10.0.0.0/8"}, {"host": "a\u202eb.example"},
     {"host": "a.example", "path": "/x"}, {"host": ["a"]}, {"path": "rel"}, {"path": "/a/../b"},
     {"path": "/a\nb"}, {"host": "@pip"}, {"host": "a.example", "reason": "x\x1b[2J"},
     {"host": "a" * 5000}],
)  # fmt: skip
def test_what_is_no_request_is_refused(live, given):
    found = live()
    kind, _ = told(request(found, **given))
    assert kind == "F"
    assert json.loads(approvals(found, "ls", "--format", "json").stdout)["questions"] == []


def test_a_path_is_shown_from_the_next_world_on(live, home):
    found = live()
    secret = found.caller.make_directory(found.caller.base / "home/.kube") / "config"
    secret.write_text("key-1")
    found.caller.own(secret)
    try:
        show = f"cat {secret}"
        assert b"key-1" not in found.out(show)
        process = request(found, path=str(secret.parent))
        asked = question(found)
        assert asked["command"].startswith("read ")
        approvals(found, "allow", str(asked["number"]))
        answer = told(process)[1]
        assert answer["allowed"] and "next world" in answer["why"]
        assert found.out(show) == b"key-1"
        home_of = found.caller.base / "home"
        for path, allowed in (
            (found.caller.state, False),
            ("/", False),
            (home_of / ".ssh/x", False),
            ("/usr/bin", True),
        ):
            assert told(request(found, path=str(path)))[1]["allowed"] is allowed, path
    finally:
        shutil.rmtree(secret.parent)


def test_a_path_that_the_policy_hides_is_not_asked(live, home, caller):
    home(WAITS + '[fs]\nread_deny = ["$PWD/keys/**"]\n')
    keys = caller.make_directory(caller.work / "keys")
    found = live()
    answer = told(request(found, path=str(keys / "one")))[1]
    assert answer["allowed"] is False and "read_deny" in answer["why"]


def test_whoever_goes_takes_the_question_along(live):
    found = live()
    process = request(found, host="a.example")
    question(found)
    process.terminate()
    process.communicate(timeout=60)
    end = time.monotonic() + 30
    while json.loads(approvals(found, "ls", "--format", "json").stdout)["questions"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_changed_policy_gives_a_live_world_its_rules_for_commands(live, home):
    found = live()
    caller = found.caller
    holder = caller.start("-c", "echo ready; exec sleep 60")
    assert holder.stdout.readline() == b"ready\n"
    home(
        WAITS
        + '[net]\nallow = ["a.example"]\n[limits]\nruntime = "500ms"\npids = 50\n'
        + '[[command]]\nmatch = ["id", "**"]\naction = "deny"\n'
    )
    assert caller.substrate("-c", "id").returncode == 126
    done = caller.substrate("-c", ASK.format("a.example"))
    assert done.stdout == b"no\n"
    (line,) = (each for each in done.stderr.splitlines() if b"was changed" in each)
    assert b"in [net], [limits] holds from the next world on" in line
    assert caller.substrate("-c", "sleep 60").returncode == 124
    holder.terminate()
    holder.communicate(timeout=60)
    done = caller.substrate("-c", ASK.format("a.example"))
    assert done.stdout == b"yes\n" and b"was changed" not in done.stderr
    loaded = [e["body"] for e in caller.events(found.session) if e["event_type"] == "policy_loaded"]
    assert len({body["digest"] for body in loaded if "net" not in body}) == 2


def test_what_a_command_has_run_beside_it_counts_as_its_own(live, home):
    """Each program that asks at the door for another command would else have the whole count anew."""
    home(WAITS + "[limits]\nexecs = 12\n")
    found = live()
    inner = "for i in 1 2 3 4 5 6; do /bin/true; done; echo through"
    words = f'{sys.executable} inside_client.py command /bin/sh -c "{inner}"'
    done = found.caller.substrate("-c", f"for i in 1 2 3 4; do {words}; done")
    assert done.returncode == 124, done
    assert done.stdout.count(b"through\n") == 1 and b"limits.execs" in done.stderr
    home(WAITS)
