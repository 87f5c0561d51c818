"""The policy and the exec gate of a command: what is denied, asked, isolated, and what the record says."""

import json
import os
import pty
import select
import subprocess
import time

import pytest

RULES = """extends = "builtin:observe"
[[command]]
match = ["git", "push", "**"]
action = "deny"
reason = "publishing"

[[command]]
match = ["cat", "asked"]
action = "ask"
reason = "somebody wants to know"

[[command]]
match = ["touch", "alone"]
action = "isolate"
reason = "never kept"

[[command]]
match = ["ls", "**"]
action = "audit"
reason = "listed"
"""


@pytest.fixture
def policed(caller):
    """A caller with a policy of their own, and a way to run under it."""
    path = caller.base / "rules.toml"
    path.write_text(RULES)
    caller.own(path)

    def run(*words, **options):
        return caller.substrate("--policy", path, *words, **options)

    run.caller, run.path = caller, path
    return run


def bodies(caller, event_type):
    return [e["body"] for e in caller.events() if e["event_type"] == event_type]


def decided(caller):
    """A shell that may not run a file looks further along PATH: several times the same."""
    return {(b["decision"], b["action"]) for b in bodies(caller, "policy_decision")}


def test_a_denied_command_never_starts(policed):
    done = policed("-c", "touch made; git push origin main")
    assert done.returncode == 126
    assert done.stderr == (
        b"substrate: denied: touch made; git push origin main (rule given command[1]: publishing); "
        b"`substrate policy explain last` says what would allow it\n"
    )
    (start,) = bodies(policed.caller, "command_start")
    assert start["policy_decision"]["action"] == "deny"
    assert start["policy_decision"]["rule"] == "given command[1]"
    (end,) = bodies(policed.caller, "command_end")
    assert end["ended_by"] == "denied" and "exit" not in end
    assert bodies(policed.caller, "process_start") == []
    policed.caller.verify()


def test_a_denied_program_fails_inside_and_the_rest_goes_on(policed):
    (policed.caller.work / "s").write_text("g=git; $g push origin main; echo $?; echo after\n")
    done = policed("-c", ". ./s")
    assert (done.returncode, done.stdout) == (0, b"126\nafter\n")
    assert (
        b"substrate: denied: git push origin main (rule given command[1]: publishing)"
        in done.stderr
    )
    (decision,) = bodies(policed.caller, "policy_decision")
    assert decision["decision"] == "deny" and decision["action"] == "denied"
    assert decision["rule"] == "given command[1]" and decision["reason"] == "publishing"
    assert decision["argv"] == ["git", "push", "origin", "main"]
    assert decision["proc"] in {fork["proc"] for fork in bodies(policed.caller, "process_fork")}
    policed.caller.verify()


def test_what_is_plainly_allowed_is_not_told_of(policed):
    done = policed("-c", "git --version; /bin/echo a; ls")
    assert done.returncode == 0
    (decision,) = bodies(policed.caller, "policy_decision")
    assert (decision["decision"], decision["action"], decision["audited"]) == (
        "allow",
        "allowed",
        True,
    )
    assert decision["rule"] == "given command[4]"


def test_the_policy_is_on_the_record(policed):
    policed("-c", "true")
    policed("-c", "true")
    (start,) = bodies(policed.caller, "session_start")
    (loaded,) = bodies(policed.caller, "policy_loaded")
    assert start["policy_digest"] == loaded["digest"]
    assert start["isolation"]["layers"]["gate"] == {"on": True}
    assert [layer["name"] for layer in loaded["layers"]][-1].endswith("rules.toml")
    policed.path.write_text(RULES.replace("deny", "audit"))
    policed("-c", "true")
    first, second = bodies(policed.caller, "policy_loaded")
    assert first["digest"] != second["digest"]


def test_a_policy_that_cannot_be_read_runs_nothing(policed):
    policed.path.write_text("[[command]\n")
    done = policed("-c", "touch made")
    assert done.returncode == 125
    assert b"rules.toml" in done.stderr


# --- where there is no gate, or a racy one


def test_without_capture_only_the_command_itself_is_decided(policed):
    (policed.caller.work / "s").write_text("git push 2>/dev/null\ntrue\n")
    done = policed("--capture", "off", "-c", "sh s")
    assert done.returncode == 0
    (start,) = bodies(policed.caller, "session_start")
    gate = start["isolation"]["layers"]["gate"]
    assert gate["on"] is False and "only the command itself" in gate["why"]
    assert any("exec gate" in spot for spot in start["capture"]["blind_spots"])
    assert policed("--capture", "off", "-c", "git push").returncode == 126
    done = policed("--fresh", "--capture", "off", "--require", "fs,gate", "-c", "true")
    assert done.returncode == 125 and b"gate is required" in done.stderr


def test_a_racy_gate_says_so_and_is_refused_where_one_is_required(policed):
    (policed.caller.work / "s").write_text("git push\necho $?\n")
    done = policed("--capture-backend", "notify", "-c", "sh s")
    assert done.stdout == b"126\n"
    (start,) = bodies(policed.caller, "session_start")
    gate = start["isolation"]["layers"]["gate"]
    assert gate["on"] is True and gate["why"].startswith("racy")
    assert any("racy" in spot for spot in start["capture"]["blind_spots"])
    done = policed("--fresh", "--capture-backend", "notify", "--require", "fs,gate", "-c", "true")
    assert done.returncode == 125 and b"gate is required" in done.stderr


def test_a_policy_can_require_the_gate(policed):
    policed.path.write_text('require = ["gate"]\n' + RULES)
    done = policed("--capture", "off", "-c", "true")
    assert done.returncode == 125 and b"gate is required" in done.stderr
    assert policed("-c", "true").returncode == 0


def test_worlds_without_namespaces_hold_too(guarded):
    path = guarded.base / "rules.toml"
    path.write_text(RULES)
    guarded.own(path)
    (guarded.work / "s").write_text("git push\necho $?\n")
    done = guarded.substrate("--policy", path, "-c", "sh s")
    assert done.stdout == b"126\n", done.stderr
    (start,) = bodies(guarded, "session_start")
    assert start["isolation"]["layers"]["gate"] == {"on": True}


def test_without_a_world_the_gate_holds_too(policed):
    (policed.caller.work / "s").write_text("git push\necho $?\n")
    done = policed("--no-world", "-c", "sh s")
    assert done.stdout == b"126\n", done.stderr


# --- isolate


def test_what_is_to_be_isolated_runs_where_nothing_is_kept(policed):
    done = policed("-c", "touch kept")
    done = policed("-c", "touch alone")
    assert done.returncode == 0, done.stderr
    start = bodies(policed.caller, "command_start")[-1]
    assert start["policy_decision"]["action"] == "isolate"
    assert start["policy_decision"]["restrictions"] == ["its changes are dropped"]
    assert b"given command[3]" in done.stderr and b"dropped" in done.stderr
    listed = policed("-c", "echo *").stdout.split()
    assert listed == [b"kept"]


def test_inside_another_command_it_is_denied(policed):
    (policed.caller.work / "s").write_text("touch alone\necho $?\n")
    done = policed("-c", "sh s")
    assert done.stdout == b"126\n"
    assert b"a command of its own" in done.stderr
    assert decided(policed.caller) == {("isolate", "denied")}


# --- ask


def test_without_anybody_to_ask_it_is_denied(policed):
    (policed.caller.work / "asked").write_text("content")
    (policed.caller.work / "s").write_text("cat asked\necho $?\n")
    done = policed("-c", "sh s")
    assert done.stdout == b"126\n"
    assert b"cat asked" in done.stderr and b"given command[2]" in done.stderr
    assert decided(policed.caller) == {("ask", "denied")}
    done = policed("-c", "cat asked")
    assert (done.returncode, done.stdout) == (126, b"")
    start = bodies(policed.caller, "command_start")[-1]
    assert start["policy_decision"]["action"] == "ask"
    assert start["policy_decision"]["allowed"] is False


class Person:
    """Somebody at a terminal: `says` waits for a question, and answers with a key."""

    def __init__(self, policed, *words):
        caller = policed.caller
        self.master, slave = pty.openpty()
        command = [caller.command, "--policy", str(policed.path), *words]
        self.process = subprocess.Popen(
            ["/usr/bin/setsid", "-c", "-w", *map(str, command)],
            stdin=slave, stdout=slave, stderr=slave, cwd=caller.work,
            env={**caller.environ, "TERM": "xterm"}, **caller.as_them(),
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def until(self, text, *, timeout_s=60):
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.master], [], [], left)[0]:
                try:
                    part = os.read(self.master, 65536)
                except OSError:
                    part = b""
                assert part or text in self.seen, self.seen
                self.seen += part

    def says(self, key, *, seen):
        self.until(seen)
        self.until(b"[?] help")
        # keys of the first moment do not count: they may have been typed before it could be read
        deadline = time.monotonic() + 60
        while not select.select([self.master], [], [], 1.5)[0]:
            os.write(self.master, key)
            assert time.monotonic() < deadline
        self.seen = b""

    def status(self):
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            pass
        os.close(self.master)
        return self.process.wait(60)


@pytest.mark.parametrize("line", ["cat asked", "sh s"])
@pytest.mark.parametrize(("key", "status"), [(b"y", 0), (b"n", 126)])
def test_a_person_at_the_terminal_decides(policed, line, key, status):
    (policed.caller.work / "asked").write_text("content\n")
    (policed.caller.work / "s").write_text("cat asked\nexit $?\n")
    person = Person(policed, "--keep", "-c", line)
    person.says(key, seen=b"cat asked")
    if not status:
        person.until(b"content")
    assert person.status() == status
    if line == "sh s":
        assert decided(policed.caller) == {("ask", "denied" if status else "allowed")}
        assert all(body["approved_by"] for body in bodies(policed.caller, "policy_decision"))
    else:
        (start,) = bodies(policed.caller, "command_start")
        assert start["policy_decision"]["allowed"] is not bool(status)
        assert start["policy_decision"]["approved_by"]
    policed.caller.verify()


def test_status_tells_programs_what_was_denied(policed):
    done = policed("--json-status", "1", "-c", "git push")
    found = json.loads(done.stdout)
    assert found["exit_status"] == 126 and found["ended_by"] == "denied" and found["by"] == "policy"
    assert [denial["code"] for denial in found["denials"]] == ["policy_denied"]
