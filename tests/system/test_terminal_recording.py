"""Recordings of terminals, and the workspace that is the host's own (shell.md §2, §3)."""

import json

from tests.system.shell_scene import shell as shell


def events(caller, kind):
    return [e for e in caller.events() if e["event_type"] == kind]


def test_what_a_terminal_shows_is_recorded_where_it_is_asked_for(shell, caller):
    there = shell(
        "--record-terminal",
        "--keep",
        "-c",
        "printf '\\033[31mred\\033[0m\\n'; echo TOKEN=ghp_$(printf 'a%.0s' {1..36})",
        wait=False,
    )
    assert there.wait() == 0
    (told,) = events(caller, "terminal_recording")
    body = told["body"]
    assert (body["format"], body["columns"], body["rows"]) == ("asciicast-2", 100, 30)
    assert (body["recorded"], body["covered"]) == (True, 1)
    printed = caller.substrate("trace", "cast", "last")
    head, *rest = map(json.loads, printed.stdout.splitlines())
    assert head["version"] == 2
    shown = "".join(text for _, kind, text in rest if kind == "o")
    assert "\x1b[31mred\x1b[0m\r\n" in shown
    assert "[redacted" in shown
    assert "ghp_" not in shown
    assert b"100x30" in caller.substrate("trace", "cast").stdout
    caller.verify()


def test_it_is_bounded(shell, caller):
    there = shell("--record-terminal=4k", "--keep", "-c", "seq 100000", wait=False)
    assert there.wait() == 0
    (told,) = events(caller, "terminal_recording")
    assert told["body"]["recorded"] is False
    assert told["body"]["size"] > 500_000
    assert told["body"]["blob"]["size"] < 20_000
    assert b"is cut" in caller.substrate("trace", "cast", "last").stderr


def test_nothing_is_recorded_otherwise(shell, caller):
    there = shell("--keep", "-c", "echo text", wait=False)
    assert there.wait() == 0
    assert not events(caller, "terminal_recording")
    none = caller.substrate("trace", "cast")
    assert none.returncode == 1
    assert b"--record-terminal" in none.stderr


def test_each_line_of_the_shell_has_its_recording(shell, caller):
    there = shell("--record-terminal")
    there.line(b"echo first-$((1+1))")
    there.resize(90, 20)
    there.line(b"sleep 1000 &")
    there.line(b"echo second-$((1+1))")
    there.type(b"exit\r")
    there.prompt()
    there.type(b"exit\r")
    assert there.wait() == 0
    shown = [caller.substrate("trace", "cast", str(n)).stdout for n in range(1, 6)]
    assert sum(b"first-2" in each for each in shown) == 1
    assert sum(b"second-2" in each for each in shown) == 1


def test_a_workspace_that_is_the_hosts_own(shell, caller):
    (caller.work / "there").write_text("host\n")
    there = shell("--shell-only")
    assert b" shell-only]" in there.line(b"cat there; echo made > made")
    assert (caller.work / "made").read_text() == "made\n"
    assert (caller.work / "made").stat().st_uid == caller.uid
    (caller.work / "by-a-tool").write_text("tool\n")
    assert b"\ntool\r\n" in there.line(b"cat by-a-tool")
    there.line(b"echo elsewhere > /var/tmp/elsewhere-of-a-test 2>/dev/null")
    assert b"shell-only mode" in there.line(b":status")
    there.type(b"exit\r")
    there.wait()
    (start,) = events(caller, "session_start")
    assert "--shell-only" in start["body"]["isolation"]["layers"]["fs"]["why"]
    assert any("shell-only" in note for note in events(caller, "world_start")[0]["body"]["notes"])


def test_without_a_world_the_prompt_says_so(shell):
    there = shell("--no-world")
    assert b"[no world]" in there.line(b"true")


def test_one_command_has_it_as_well(caller):
    ran = caller.substrate("--shell-only", "-c", "echo made > made; mkdir -p sub; rm -f gone")
    assert ran.returncode == 0, ran.stderr
    assert (caller.work / "made").exists()
    assert b"nothing" in caller.substrate("diff").stderr or True
    assert (
        b"--shell-only"
        in caller.substrate("--backend", "guard", "--fresh", "--shell-only", "-c", "true").stderr
    )
