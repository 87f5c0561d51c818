"""The gate in real worlds, by the side doors: scripts that interpreters are given, links that are swapped, shells that
exec nothing, programs of another place behind words that were allowed, variables."""

import shutil
import subprocess

import pytest

from tests.system.test_gate import Person, bodies, decided

RULES = """extends = "builtin:observe"
[[command]]
match = ["deploy", "**"]
action = "deny"
reason = "production"

[[command]]
match = ["publish", "**"]
action = "ask"

[[command]]
match = ["tool", "apply", "**"]
action = "ask"

[[command]]
match = ["rm", "**"]
action = "deny"

[[command]]
match = ["source", "**"]
action = "ask"
"""
TELL = "#!/bin/sh\necho {} ran $*\n"


@pytest.fixture
def policed(caller):
    path = caller.base / "rules.toml"
    path.write_text(RULES)
    caller.own(path)

    def run(*words, **options):
        return caller.substrate("--policy", path, *words, **options)

    run.caller, run.path = caller, path
    return run


def write(policed, name, text):
    path = policed.caller.work / name
    path.write_text(text)
    path.chmod(0o755)
    policed.caller.own(path)
    return path


@pytest.mark.parametrize(
    "line",
    [
        "sh ./deploy", "bash deploy x", "bash -e ./deploy", "ln -s deploy x; sh ./x", "python3 ./deploy", "perl ./deploy",
        "/usr/bin/env sh ./deploy",
    ],
)  # fmt: skip
def test_an_interpreter_does_not_lead_around_a_rule_of_a_script(policed, line):
    write(policed, "deploy", TELL.format("deploy"))
    write(policed, "s", line)  # so that only the gate can tell
    done = policed("-c", ". ./s; echo $?")
    assert b"deploy ran" not in done.stdout
    assert done.stdout.endswith(b"126\n"), done
    assert decided(policed.caller) == {("deny", "denied")}


def test_what_is_text_or_another_file_goes_on(policed):
    write(policed, "deploy", TELL.format("deploy"))
    write(policed, "other", TELL.format("other"))
    write(policed, "s", "sh -c 'echo deploy'; sh ./other deploy; python3 -c 'print(1)'")
    done = policed("-c", ". ./s")
    assert done.stdout == b"deploy\nother ran deploy\n1\n", done.stderr


def test_a_link_that_is_swapped_between_two_scripts_is_seen_and_written_down(policed):
    """Not stopped for sure: the interpreter opens the name once more (docs/reference/gate.md)."""
    write(policed, "deploy", TELL.format("deploy"))
    write(policed, "ok", TELL.format("ok"))
    write(
        policed,
        "race",
        "import os, subprocess, threading\n"
        "def swap():\n"
        "    while True:\n"
        "        for name in ('deploy', 'ok'):\n"
        "            os.symlink(name, 't'); os.rename('t', 'x')\n"
        "os.symlink('ok', 'x')\n"
        "threading.Thread(target=swap, daemon=True).start()\n"
        "for n in range(150):\n"
        "    try: subprocess.run(['./x', str(n)])\n"
        "    except PermissionError: pass\n",
    )
    done = policed("-c", "python3 race")
    assert done.returncode == 0
    told = {(b["action"], b["gate"]) for b in bodies(policed.caller, "policy_decision")}
    assert told and told <= {("killed", "raced"), ("denied", "callback"), ("killed", "unapproved")}


@pytest.mark.parametrize(
    "line", ["busybox ash s2", "echo 'rm f' | busybox sh", "busybox sh -c '$r f'"]
)
def test_a_shell_of_busybox_is_no_way_around_its_applets(policed, line):
    assert shutil.which("busybox")
    write(policed, "s2", "rm f\n")
    write(policed, "f", "")
    write(policed, "s", f"export r=rm; {line}; echo $?; ls f")
    done = policed("-c", ". ./s")
    assert done.stdout.endswith(b"f\n"), done
    assert decided(policed.caller) == {("ask", "denied")}
    assert b"busybox" in done.stderr


def test_a_script_by_way_of_env_is_asked_about_once(policed):
    write(policed, "publish", "#!/usr/bin/env sh\necho published $*\n")
    write(policed, "s", "PATH=$PWD:$PATH; publish x; exit $?")
    person = Person(policed, "--keep", "-c", "sh s")
    person.says(b"y", seen=b"publish x")
    person.until(b"published x")
    assert person.status() == 0
    first, second = bodies(policed.caller, "policy_decision")
    assert first["approved_by"] == second["approved_by"]
    assert (first["argv"][0], second["argv"][0]) == ("publish", "sh")


def test_a_yes_to_a_text_is_for_the_program_that_its_words_lead_to(policed):
    work = policed.caller.work
    for place in ("bin", "evil"):
        policed.caller.make_directory(work / place)
        write(policed, f"{place}/tool", TELL.format(place))
    write(policed, "gen", "#!/bin/sh\nevil/tool apply x\necho gen $?\n")
    person = Person(policed, "--keep", "-c", "./gen; bin/tool apply x; bin/tool apply x")
    person.says(b"y", seen=b"./gen")
    person.says(b"n", seen=b"evil/tool")
    person.until(b"bin ran apply x")
    assert person.status() == 0
    told = [(b["action"], b["programs"][0]) for b in bodies(policed.caller, "policy_decision")]
    assert told.count(("denied", f"{work}/evil/tool")) == 1
    assert told.count(("allowed", f"{work}/bin/tool")) == 2


def test_a_question_shows_what_changes_what_it_does(policed):
    write(policed, "publish", TELL.format("publish"))
    write(policed, "s", "GIT_DIR=/other ./publish x\nexit $?")
    person = Person(policed, "--keep", "-c", "sh s")
    person.until(b"GIT_DIR=/other")
    person.says(b"y", seen=b"publish x")
    assert person.status() == 0


def test_in_a_session_a_builtin_is_asked_about_as_well(policed):
    caller = policed.caller
    write(policed, "x", "echo sourced\n")
    environ = {**caller.environ, "SUBSTRATE_POLICY": str(policed.path)}
    start = subprocess.run(
        [caller.command, "world", "start"], cwd=caller.work, env=environ, **caller.as_them(),
        capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert start.returncode == 0, start.stderr
    try:
        done = caller.substrate("-c", "source ./x")
        assert b"sourced" not in done.stdout and done.returncode != 0, done
        done = caller.substrate("-c", "echo plain")
        assert done.stdout == b"plain\n"
    finally:
        caller.substrate("world", "stop")
