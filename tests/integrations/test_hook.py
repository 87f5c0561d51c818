"""What an installed hook does: it records, it never allows, it never breaks the agent."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.session import reported
from substrate.session.home import open_home
from substrate.session.reported import CALL, RESULT, Report, decode, encode
from substrate.session.workspace import find_workspace
from substrate.telemetry.verifier import main as verify
from tests.cli.place import PROGRAM

COMMAND = "echo 'it'\"s\" here"


def call(place, agent, event, given, *, status=0, environ=None):
    done = subprocess.run(
        [PROGRAM, "hook", agent, event],
        cwd=place.work,
        env={**place.environ, **(environ or {})},
        input=given if isinstance(given, bytes) else json.dumps(given).encode(),
        capture_output=True,
    )
    assert done.returncode == status, done.stderr
    return done


def claude(place, event="PreToolUse", tool="Bash", **more):
    """What Claude Code gives its hooks."""
    return {
        "session_id": "abc123",
        "transcript_path": "/home/u/.claude/projects/p/abc123.jsonl",
        "cwd": str(place.work),
        "permission_mode": "default",
        "hook_event_name": event,
        "tool_name": tool,
        "tool_input": {"command": COMMAND, "description": "says something"},
        "tool_use_id": "toolu_01ABC",
        **more,
    }


#: agent → (before, after): as each says it
SAID = {
    "claude": (
        ("PreToolUse", {}),
        ("PostToolUse", {"tool_response": {"stdout": "its here\n", "stderr": "", "interrupted": False}}),
    ),
    "codex": (
        ("PreToolUse", {"transcript_path": None, "model": "m", "turn_id": "1"}),
        ("PostToolUse", {"transcript_path": None, "tool_response": "its here\n", "turn_id": "1"}),
    ),
    "gemini": (
        ("BeforeTool", {"tool_name": "run_shell_command", "timestamp": "2026-01-01T00:00:00Z"}),
        ("AfterTool", {"tool_name": "run_shell_command", "tool_response": {"llmContent": "its here"}}),
    ),
    "cursor": (
        ("preToolUse", {"tool_name": "Shell", "conversation_id": "c1"}),
        ("postToolUse", {"tool_name": "Shell", "tool_output": "{\"output\": \"its here\"}", "duration": 12.5}),
    ),
    "openhands": (
        ("PreToolUse", {"event_type": "PreToolUse", "tool_name": "terminal", "working_dir": "@"}),
        ("PostToolUse", {"event_type": "PostToolUse", "tool_name": "terminal", "tool_output": "its here",
                         "working_dir": "@"}),
    ),
}  # fmt: skip
NO_ID = ("gemini", "openhands")


def said_by(place, agent, which):
    event, more = SAID[agent][which]
    given = claude(place, event, **more)
    if given.get("working_dir"):
        given["working_dir"] = given.pop("cwd")
    if agent in NO_ID:
        del given["tool_use_id"]
    return event, given


def bodies(place, *kinds):
    """The lines of these kinds, with their envelope, in their order."""
    link = place.home / "trace.jsonl"
    lines = [json.loads(line) for line in link.read_text().splitlines()]
    return [line for line in lines if line["event_type"] in kinds]


@pytest.mark.parametrize("agent", SAID)
def test_a_call_and_its_result_are_joined_to_the_command(place, agent):
    event, given = said_by(place, agent, 0)
    done = call(place, agent, event, given)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert place.out("-c", COMMAND) == "its here\n"
    call(place, agent, *said_by(place, agent, 1))
    place.run("-c", "true")
    (told,) = bodies(place, "tool_call")
    first, second = bodies(place, "command_start")
    assert told["origin"] == "reported" and told["component"] == "sdk"
    assert told["span_id"] == first["span_id"]
    assert told["body"]["agent"] == agent
    assert first["body"]["tool_call"] == {"call_id": told["body"]["call_id"], "by": "text"}
    assert "tool_call" not in second["body"]
    (result,) = bodies(place, "tool_result")
    assert result["body"]["call_id"] == told["body"]["call_id"]
    assert result["body"]["status"] == "ok" and result["body"]["output"]["size"] > 5
    assert ("call_id_by" in told["body"]) == (agent in NO_ID)
    if agent == "claude":
        assert told["body"]["call_id"] == "toolu_01ABC"
        assert told["body"]["transcript_path"].endswith("/abc123.jsonl")
    assert verify([os.fspath(place.home / "trace.jsonl")]) == 0
    assert not any(files for _, _, files in os.walk(place.home / "reported"))


def test_the_caller_s_own_word_is_exact(place):
    call(place, "claude", "PreToolUse", claude(place, tool_use_id="toolu_A"))
    call(place, "claude", "PreToolUse", claude(place, tool_use_id="toolu_B"))
    place.run("-c", COMMAND, SUBSTRATE_TOOL_USE_ID="toolu_B")
    (told,) = bodies(place, "tool_call")
    (start,) = bodies(place, "command_start")
    assert told["body"]["call_id"] == "toolu_B" and told["span_id"] == start["span_id"]
    assert start["body"]["tool_call"] == {"call_id": "toolu_B", "by": "environment"}
    place.run("-c", COMMAND)
    assert [line["body"]["call_id"] for line in bodies(place, "tool_call")] == [
        "toolu_B",
        "toolu_A",
    ]
    assert "tool call:   toolu_A (by its text)" in place.out("show", "last")


def test_an_id_is_kept_where_no_hook_told_of_it(place):
    place.run("-c", "true", SUBSTRATE_TOOL_USE_ID="toolu_X")
    (start,) = bodies(place, "command_start")
    assert start["body"]["tool_call"] == {"call_id": "toolu_X", "by": "environment"}


def test_of_calls_of_one_text_the_oldest_is_taken_and_that_is_told(place):
    for name in ("toolu_1", "toolu_2"):
        call(place, "claude", "PreToolUse", claude(place, tool_use_id=name))
    for _ in range(2):
        place.run("-c", COMMAND)
    first, second = bodies(place, "command_start")
    assert first["body"]["tool_call"] == {"call_id": "toolu_1", "by": "text", "of": 2}
    assert second["body"]["tool_call"] == {"call_id": "toolu_2", "by": "text"}


def test_a_call_waits_for_its_command_and_others_do_not(place):
    call(place, "claude", "PreToolUse", claude(place))
    call(place, "claude", "PreToolUse", claude(place, tool="Edit", tool_use_id="toolu_E"))
    place.run("-c", "true")
    assert [line["body"]["tool"] for line in bodies(place, "tool_call")] == ["Edit"]
    call(place, "claude", "PostToolUseFailure", claude(place, "PostToolUseFailure", error="denied"))
    place.run("-c", "true")
    assert [line["body"]["tool"] for line in bodies(place, "tool_call")] == ["Edit", "Bash"]
    (result,) = bodies(place, "tool_result")
    assert result["body"]["status"] == "error"
    assert all("span_id" not in line for line in bodies(place, "tool_call"))


def test_the_command_is_found_in_its_scaffolding(place):
    call(place, "claude", "PreToolUse", claude(place))
    note = "/tmp/claude-%04x-cwd" % (os.getpid() & 0xFFFF)
    quoted = COMMAND.replace("'", "'\"'\"'")
    text = (
        f"shopt -u extglob 2>/dev/null || true && eval '{quoted}' < /dev/null && pwd -P >| {note}"
    )
    try:
        assert place.out("-c", "-l", text) == "its here\n"
        with open(note) as file:
            assert file.read() == f"{place.work}\n"
    finally:
        os.unlink(note)
    (start,) = bodies(place, "command_start")
    assert start["body"]["display"]["cmd"] == COMMAND
    assert start["body"]["display"]["argv"][-1] == text
    assert start["body"]["display"]["scaffolding"] == {"by": "claude-code", "note": note}
    assert start["body"]["tool_call"]["call_id"] == "toolu_01ABC"
    assert COMMAND in place.out("log")
    assert f"run by:      claude-code, with {note}" in place.out("show", "last")


# --- it never breaks the agent, and never allows


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", b"not a JSON object"), (b"{", b"not a JSON object"), (b"[]", b"not a JSON object"), (b"{}", b"no tool_name"),
        (b"[" * 100000, b"not a JSON object"), (b"\xff\xfe", b"not a JSON object"), (b'{"tool_name": 5}', b"no tool_name"),
        (b'{"x": "' + b"a" * (9 << 20) + b'"}', b"more than 8 MiB"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_told_and_the_agent_goes_on(place, given, said):
    done = call(place, "claude", "PreToolUse", given)
    assert said in done.stderr and b"nothing is recorded" in done.stderr
    assert done.stderr.count(b"\n") == 1 and done.stdout == b""


UNREAD = {
    "too large": b'{"tool_name": "Bash", "x": "' + b"a" * (9 << 20) + b'"}',
    "no JSON": b"{",
    "too deep": b"[" * 100000,
}
UNREAD_TEXTS = {
    "in substitutions": "$(" * 3000 + "rm -rf x" + ")" * 3000,
    "behind many commands": 'echo "a" ; ' * 300 + "rm -rf x",
    "behind much text": "echo " + "a" * (70 << 10) + "; rm -rf x",
    "in shells": "rm -rf x",
}


def _nested(text, depth):
    for _ in range(depth):
        text = "bash -c " + shlex.quote(text)
    return text


@pytest.mark.parametrize("agent", ["claude", "cursor"])
@pytest.mark.parametrize("why", UNREAD)
def test_a_call_that_cannot_be_read_is_refused_where_something_is_denied(place, agent, why):
    event = {"claude": "PreToolUse", "cursor": "preToolUse"}[agent]
    call(place, agent, event, UNREAD[why])
    write_policy(place, DENY_PUSH)
    done = call(place, agent, event, UNREAD[why], status=2)
    assert b"cannot be read" in done.stderr
    if agent == "cursor":
        assert json.loads(done.stdout)["permission"] == "deny"
    after = {"claude": "PostToolUse", "cursor": "postToolUse"}[agent]
    call(place, agent, after, UNREAD[why])


@pytest.mark.parametrize("why", UNREAD_TEXTS)
def test_a_command_that_is_not_read_whole_is_refused_where_something_is_denied(place, why):
    text = UNREAD_TEXTS[why] if why != "in shells" else _nested("rm -rf x", 10)
    given = claude(place, tool_input={"command": text.replace("rm -rf x", "true")})
    call(place, "claude", "PreToolUse", given)
    write_policy(place, DENY_PUSH)
    done = call(place, "claude", "PreToolUse", given, status=2)
    assert b"in parts" in done.stderr
    call(place, "claude", "PreToolUse", claude(place, tool_input={"command": "echo $(date) $x"}))


@pytest.mark.parametrize(
    "words", [(), ("claude",), ("claude", "Nope"), ("vim", "PreToolUse"), ("a", "b", "c")]
)
def test_wrong_words(place, words):
    done = subprocess.run(
        [PROGRAM, "hook", *words], env=place.environ, input=b"{}", capture_output=True
    )
    assert done.returncode == 0 and b"expected an agent" in done.stderr


def test_a_home_that_cannot_be_used(place):
    done = call(
        place, "claude", "PreToolUse", claude(place), environ={"SUBSTRATE_HOME": "/dev/null"}
    )
    assert b"cannot be used" in done.stderr and done.stdout == b""


def test_inside_of_a_world_it_says_where_it_is(place):
    given = json.dumps(claude(place))
    done = place.run("-c", f"printf %s '{given.replace(chr(39), chr(39) + chr(92) + chr(39) * 2)}' | "
                           f"{PROGRAM} hook claude PreToolUse")  # fmt: skip
    assert b"this is a world" in done.stderr


def test_odd_values(place):
    given = claude(place, tool_use_id="x" * 5000, tool_input={"command": "a\ud800b", "n": 1 << 80})
    given["cwd"] = "relative/../.."
    given["session_id"] = {"not": "text"}
    call(place, "claude", "PreToolUse", given)
    call(place, "claude", "PostToolUse", {**given, "tool_response": [1, None, "\udfff"]})
    place.run("-c", "true")
    (told,), (result,) = bodies(place, "tool_call"), bodies(place, "tool_result")
    assert told["body"]["call_id"] == result["body"]["call_id"]
    assert told["body"]["call_id_by"] == "content"


def test_help(place):
    done = subprocess.run(
        [PROGRAM, "hook", "--help"], env=place.environ, capture_output=True, text=True
    )
    assert "substrate hook claude PreToolUse" in done.stdout


def test_many_at_once(place):
    given = json.dumps(claude(place)).encode()
    running = [
        subprocess.Popen([PROGRAM, "hook", "claude", "PreToolUse"], stdin=subprocess.PIPE,
                         stderr=subprocess.PIPE, cwd=place.work, env=place.environ)
        for _ in range(8)
    ]  # fmt: skip
    for process in running:
        assert process.communicate(given) == (None, b"") and process.returncode == 0
    (directory,) = (place.home / "reported").iterdir()
    assert len(list(directory.iterdir())) == 8


# --- the spool


def spool(place):
    place.home.mkdir(mode=0o700, exist_ok=True)
    return open_home(os.fsencode(place.home)), find_workspace(os.fsencode(place.work))


def report(number=0, **more):
    return Report(
        **{"kind": CALL, "agent": b"claude", "call_id": b"c%d" % number, "tool": b"Edit",
           "at_us": 1_700_000_000_000_000 + number, **more}
    )  # fmt: skip


def test_the_spool_is_bounded_and_says_what_it_lost(place, monkeypatch):
    monkeypatch.setattr(reported, "MAX_FILES", 3)
    home, workspace = spool(place)
    assert [reported.put(home, workspace, report(n)) for n in range(5)] == [True] * 3 + [False] * 2
    place.run("-c", "true")
    assert len(bodies(place, "tool_call")) == 3
    (error,) = bodies(place, "error")
    assert error["body"]["code"] == "reports_lost" and error["body"]["message"].startswith(
        "2 reports"
    )


def test_damaged_files_do_not_stop_a_command(place):
    home, workspace = spool(place)
    reported.put(home, workspace, report())
    (directory,) = (place.home / "reported").iterdir()
    (directory / "0-bad").write_bytes(b"substrate.report/1\xff\xff\xff\xff")
    (directory / "1-empty").write_bytes(b"")
    (directory / ".0-unfinished").write_bytes(b"half")
    place.run("-c", "true")
    assert len(bodies(place, "tool_call")) == 1
    assert bodies(place, "error")[0]["body"]["message"].startswith("2 reports")
    place.run("-c", "true")
    assert len(bodies(place, "tool_call")) == 1


def test_odd_files_do_not_stop_a_command(place):
    home, workspace = spool(place)
    reported.put(home, workspace, report())
    (directory,) = (place.home / "reported").iterdir()
    (directory / "0-directory").mkdir()
    (directory / "1-link").symlink_to("/etc/passwd")
    digits = b"9" * 5000  # more than int() takes
    (directory / "2-number").write_bytes(
        reported.encode(report(at_us=0)).replace(
            b"\x01\0\0\x000", len(digits).to_bytes(4, "little") + digits, 1
        )
    )
    place.run("-c", "true")
    assert len(bodies(place, "tool_call")) == 1
    assert bodies(place, "error")[0]["body"]["message"].startswith("3 reports")


def test_a_call_that_never_came_is_taken_in_after_an_hour(place):
    home, workspace = spool(place)
    reported.put(home, workspace, report(command=b"never", tool=b"Bash"))
    place.run("-c", "true")
    assert len(bodies(place, "tool_call")) == 1


FIELD = st.binary(max_size=20)
REPORTS = st.builds(
    Report,
    kind=st.sampled_from([CALL, RESULT]), agent=FIELD, call_id=st.binary(min_size=1, max_size=200),
    tool=FIELD, at_us=st.integers(0, 1 << 52), body=FIELD, command=FIELD, cwd=FIELD, session=FIELD,
    transcript=FIELD, status=FIELD, duration_us=st.integers(-1, 1 << 40), made=st.booleans(),
    decision=FIELD,
)  # fmt: skip


@given(REPORTS)
def test_reports_are_read_as_they_were_written(found):
    assert decode(encode(found)) == found


@settings(max_examples=300)
@given(REPORTS, st.data())
def test_any_bytes_are_a_report_or_none(found, data):
    raw = bytearray(encode(found))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for text in (bytes(raw), bytes(raw[:cut])):
        again = decode(text)
        assert again is None or isinstance(again, Report)


def test_the_hook_imports_little():
    """Its cost is that of what it imports; what is heavy is told here."""
    code = (
        "import sys; import substrate; before = set(sys.modules);"
        "import substrate.cli.main, substrate.cli.hook; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {os.getcwd()!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {
        "orjson",
        "click",
        "rich",
        "re",
        "json",
        "typing",
        "dataclasses",
        "subprocess",
        "tomllib",
        "hashlib",
    }
    assert not heavy & set(done.stdout.split())


# --- the policy


def write_policy(place, text):
    path = place.base / "user/.config/substrate"
    path.mkdir(parents=True, exist_ok=True)
    (path / "policy.toml").write_text(text)


DENY_PUSH = """
[[command]]
match = ["git", "push", "**"]
action = "deny"
reason = "nothing is published from here"
"""


@pytest.mark.parametrize("agent", SAID)
def test_what_the_policy_denies_is_denied_with_its_reason(place, agent):
    write_policy(place, DENY_PUSH)
    event, given = said_by(place, agent, 0)
    given["tool_input"] = {"command": "cd x && git push origin main"}
    done = call(place, agent, event, given, status=2)
    assert b"nothing is published from here" in done.stderr
    if agent == "cursor":
        assert json.loads(done.stdout)["permission"] == "deny"
    else:
        assert done.stdout == b""
    call(place, agent, *said_by(place, agent, 1))
    place.run("-c", "true")
    told = [line["body"] for line in bodies(place, "tool_call")]
    assert all(body["decision"].startswith("deny: ") for body in told)


@pytest.mark.parametrize(
    "text",
    [
        "arr=($(git push))", "a=(1 `git push`)", "cat <<E\n$(git push)\nE", "echo ${x:-$(git push)}",
        'echo "${x:-$(git push)}"', "echo $((`git push`))", "echo $(( $(git push) + 1 ))", "(( $(git push) ))",
        "echo ${a[$(git push)]}", 'printf %s "${y/$(git push)/}"', "echo ${ git push; }",
    ],
)  # fmt: skip
def test_what_is_denied_is_found_in_substitutions_of_every_kind(place, text):
    write_policy(place, DENY_PUSH)
    call(place, "claude", "PreToolUse", claude(place, tool_input={"command": text}), status=2)
    if "${ " not in text:
        other = claude(place, tool_input={"command": text.replace("push", "fetch")})
        assert call(place, "claude", "PreToolUse", other).stderr == b""


@pytest.mark.parametrize(
    "words",
    [
        ["git", "push", "origin"],
        ["bash", "-l", "-c", "git push"],
        ["/bin/sh", "-c", "git push"],
        ["git", "push", "-c"],
    ],
)
def test_words_of_a_call_are_denied_as_its_text_is(place, words):
    write_policy(place, DENY_PUSH)
    event, given = said_by(place, "codex", 0)
    given["tool_name"], given["tool_input"] = "shell", {"command": words}
    call(place, "codex", event, given, status=2)


#: forks one hook for each text: whole processes, but for the start of Python. It must not import json, nor may
#: what it imports: without it the scanner of the interpreter fails in another way
HOOKS = """
import os, sys
import substrate.cli.main as main, substrate.cli.hook, substrate.policy.broker, substrate.session.workspace
import substrate.session.home
agent, event = sys.argv[1:]
raw, size = sys.stdin.buffer, lambda: int.from_bytes(raw.read(4), "little")
for _ in range(size()):
    text = raw.read(size())
    pid = os.fork()
    if not pid:
        fd = os.memfd_create("call")
        os.write(fd, text)
        os.lseek(fd, 0, 0)
        os.dup2(fd, 0)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        os.dup2(2, 1)
        sys.argv = ["substrate", "hook", agent, event]
        assert not {"json", "json.decoder"} & set(sys.modules)
        main.leave(main.main())
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def statuses(place, agent, event, texts):
    """Of a hook for each of these texts."""
    raw = [len(texts).to_bytes(4, "little")]
    for text in texts:
        raw += [len(text).to_bytes(4, "little"), text]
    done = subprocess.run(
        [sys.executable, "-c", HOOKS, agent, event],
        cwd=place.work,
        env=place.environ,
        input=b"".join(raw),
        capture_output=True,
        check=True,
    )
    found = [int(line) for line in done.stdout.split()]
    assert len(found) == len(texts), done.stderr
    return found


def is_object(text):
    try:
        return type(json.loads(text, strict=False)) is dict
    except ValueError:
        return False


@pytest.mark.parametrize("agent", SAID)
def test_no_part_of_a_call_that_is_denied_passes(place, agent):
    event, given = said_by(place, agent, 0)
    given["tool_input"] = {
        "command": "git push origin",
        "more": [{"n": [1.5, None, True]}, "\u00e9\n"],
    }
    whole = json.dumps(given).encode()
    broken = [whole[:length] for length in range(len(whole))]
    broken += [whole[:at] + bytes([byte]) + whole[at + 1 :] for at in range(0, len(whole), 16)
               for byte in b'x\\"{\0\xff']  # fmt: skip
    broken = [text for text in broken if not is_object(text)]
    assert statuses(place, agent, event, [whole, *broken[::40]]) == [0] * (1 + len(broken[::40]))
    write_policy(place, DENY_PUSH)
    found = statuses(place, agent, event, [whole, *broken])
    passed = [text for status, text in zip(found, [whole, *broken], strict=True) if status != 2]
    assert passed == []


@pytest.mark.parametrize(
    "body",
    [
        ["git push"], "git push", None, 5, {}, {"command": None}, {"command": {"text": "git push"}}, {"command": 5},
        {"command": []}, {"command": ["git", 5]}, '{"command": "git push"', '{"command": "git push"}x',
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("agent", ["claude", "cursor"])
def test_a_shell_s_call_without_a_command_that_can_be_read_is_refused_too(place, agent, body):
    event, given = said_by(place, agent, 0)
    given["tool_input"] = body
    done = call(place, agent, event, given)
    assert b"no command that can be read" in done.stderr
    write_policy(place, DENY_PUSH)
    done = call(place, agent, event, given, status=2)
    assert b"no command that can be read" in done.stderr
    call(place, agent, event, {**given, "tool_name": "Read"})
    call(place, agent, said_by(place, agent, 1)[0], given)


def test_a_call_to_wait_for_a_shell_has_an_empty_command(place):
    write_policy(place, DENY_PUSH)
    event, given = said_by(place, "openhands", 0)
    given["tool_input"] = {"command": "", "is_input": True}
    assert call(place, "openhands", event, given).stderr == b""


def test_where_the_directory_was_removed_what_is_above_it_counts(place):
    """An agent that removed its own directory goes on; what is denied stays denied."""
    gone = place.work / "gone"
    run = f"mkdir {gone}; cd {gone}; rmdir {gone}; {PROGRAM} hook claude PreToolUse"

    def hook(given, status):
        raw = (
            given if isinstance(given, bytes) else json.dumps({**given, "cwd": str(gone)}).encode()
        )
        done = subprocess.run(["sh", "-c", run], env=place.environ, input=raw, capture_output=True)
        assert done.returncode == status, done.stderr

    push = claude(place, tool_input={"command": "git push"})
    hook(claude(place), 0)
    hook(push, 0)
    hook(b"{", 0)
    (place.work / ".substrate").mkdir()
    (place.work / ".substrate/policy.toml").write_text(DENY_PUSH)
    hook(claude(place), 0)
    hook(push, 2)
    hook(b"{", 2)


@pytest.mark.parametrize(
    "redirection",
    ["0<&-", "0>/dev/null", "0</proc/self/mem", "1>&-", "2>&-", "1>/dev/full", "2>/dev/full"],
)
@pytest.mark.parametrize("agent", ["claude", "cursor"])
def test_no_stream_that_fails_lets_a_call_pass(place, agent, redirection):
    event, given = said_by(place, agent, 0)
    given["tool_input"] = {"command": "git push"}

    def hook():
        return subprocess.run(
            ["sh", "-c", f"exec {PROGRAM} hook {agent} {event} {redirection}"],
            cwd=place.work, env=place.environ, input=json.dumps(given).encode(), capture_output=True,
        ).returncode  # fmt: skip

    assert hook() == 0
    write_policy(place, DENY_PUSH)
    assert hook() == 2


@pytest.mark.parametrize("agent", SAID)
def test_a_hook_that_is_interrupted_lets_no_call_pass(place, agent):
    event, _ = said_by(place, agent, 0)
    for expected in (0, 2):
        with subprocess.Popen([PROGRAM, "hook", agent, event], cwd=place.work, env=place.environ,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as hook:  # fmt: skip
            hook.stdin.write(b"{" + b" " * (1 << 20))  # more than a pipe holds: it reads
            hook.stdin.flush()
            hook.send_signal(signal.SIGINT)
            assert hook.wait(30) == expected
            hook.stdin.close()
        write_policy(place, DENY_PUSH)


def test_nothing_but_a_denial_is_ever_said(place):
    write_policy(
        place, 'default_action = "ask"\n[[command]]\nmatch = ["ls", "**"]\naction = "allow"\n'
    )
    for text in ("ls", "rm -rf x", "git status"):
        done = call(place, "claude", "PreToolUse", claude(place, tool_input={"command": text}))
        assert done.stdout == b""


def test_a_policy_that_cannot_be_read_denies(place):
    write_policy(place, "command = 5\n")
    done = call(place, "claude", "PreToolUse", claude(place), status=2)
    assert b"policy.toml" in done.stderr
    call(place, "claude", "PreToolUse", claude(place, tool="Read"))
