"""The words of a run form, compared with what bash itself makes of the shell's part."""

import os
import subprocess

import pytest

from substrate.cli.arguments import HelpWanted, parse_run, with_shell
from substrate.cli.options import OPTIONS
from substrate.errors import ConfigError, UsageError

BASH = b"/bin/bash"
#: tells everything that the options of a shell decide
TELL = (
    'printf "%s|" "$0" "$#" "$@" "$-" "$SHELLOPTS"; shopt -q login_shell && echo login;'
    " shopt -q extglob && echo extglob; false; echo on"
)
ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/proc/none"}

#: before the text of -c
ORDERS = """
-c|-c -l|-l -c|-lc|-cl|-c -e|-e -c|-ec|-ce|-x -c|-xc|-c -x|-ex -c|-exc|-c -ex|-u -c|-uc|-euc
-euo pipefail -c|-e -u -o pipefail -c|-c -euo pipefail|-ceuo pipefail|-euoc pipefail|-o pipefail -c
-o errexit -c|-oc errexit|-co errexit|-o errexit -o nounset -c|-oo errexit nounset -c
-ooc errexit nounset|+e -c|-e +e -c|-c +e|+x -c|-x +x -c|+o posix -c|-o posix -c|-o posix +o posix -c
-O extglob -c|-Oc extglob|-c -O extglob|+O extglob -c|-O extglob -e -c|-oO pipefail extglob -c
-i -c|-ic|-c -i|-n +n -c|-f -c|-fc|-c -f|-ef -c|-f -e -c|-h -c|-hc|+h -c|-m -c|-a -c|-ac|-b -c|-B -c
+B -c|-C -c|-E -c|-H -c|+H -c|-k -c|-p -c|-P -c|-T -c|-t -c|-v -c|-s -c|-cs|-c -s|-ls -c
--norc -c|--noprofile -c|--noprofile --norc -c|--login -c|--login --noprofile -c|--login -l -c
--noprofile -lc|-norc -c|-login -c|-noprofile -norc -ec|--posix -c|-posix -c|--posix -e -c
--rcfile /dev/null -c|--init-file /dev/null -c|--rcfile /dev/null --norc -xc|--verbose -c
--noediting -c|--restricted -c|-r -c|-rc|--debug -c|-c --|-c -|-e -c --|-c -e --|-ce -|+ -c|-e + -c
""".replace("\n", "|").strip("|").split("|")  # fmt: skip
#: what bash refuses
REFUSED = """
-c|-Zc|-Z -c|-c -Z|--nosuch -c|-e --norc -c|-c --norc|-x --login -c|-c --posix|--rcfile
""".strip().split("|")


def parse(*words, terminal=False, stdin_open=True, environ=None):
    given = {os.fsencode(k): os.fsencode(v) for k, v in (environ or {}).items()}
    found = parse_run(
        [os.fsencode(word) for word in words], given, terminal=terminal, stdin_open=stdin_open
    )
    return with_shell(found, BASH)


def run_bash(words, executable=BASH):
    done = subprocess.run(
        words, executable=executable, env=ENVIRON, capture_output=True, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("order", ORDERS)
def test_bash_gets_what_bash_would_have_got(order):
    words = [*order.split(), TELL, "zero", "one", "--two"]
    request = parse(*words)
    assert request.kind == "c"
    assert request.cmd_text == TELL.encode()
    assert run_bash(request.argv) == run_bash(["bash", *words])


@pytest.mark.parametrize(
    "order", [o for o in ORDERS if not set(o) & set("oO") and not o.endswith(("--", " -"))][::3]
)
@pytest.mark.parametrize("ours", [("--net", "none"), ("--timeout=5",), ("--fresh",)])
def test_our_options_may_stand_anywhere_before_the_text(order, ours):
    options = order.split()
    plain = parse(*options, TELL, "zero")
    for at in range(len(options) + 1):
        mixed = parse(*options[:at], *ours, *options[at:], TELL, "zero")
        assert mixed.argv == plain.argv
        assert mixed.cmd_text == plain.cmd_text


@pytest.mark.parametrize("order", REFUSED)
def test_what_bash_refuses_is_a_wrong_call(order):
    words = order.split()
    full = words if words in (["-c"], ["--rcfile"]) else [*words, "true"]
    status, shown = run_bash(["bash", *full])
    assert status != 0
    assert not shown
    with pytest.raises(UsageError):
        parse(*full)


def test_everything_behind_the_text_is_the_command_s():
    request = parse("-c", "echo", "--net", "host", "-x", "--help")
    assert request.argv == (b"bash", b"-c", b"echo", b"--net", b"host", b"-x", b"--help")
    assert request.flags == ()


def test_a_file_takes_what_follows_as_arguments():
    request = parse("--net", "none", "-f", "build.sh", "-c", "--fresh")
    assert request.kind == "f"
    assert request.argv == (b"bash", b"build.sh", b"-c", b"--fresh")
    assert not request.fresh


def test_a_file_may_stand_behind_our_options():
    assert parse("-f", "--fresh", "build.sh").argv == (b"bash", b"build.sh")


def test_lone_f_before_c_is_the_shell_s_noglob():
    assert parse("-f", "-c", "echo *").argv == (b"bash", b"-f", b"-c", b"echo *")


def test_standard_input_is_a_script():
    assert parse("-e").kind == "stdin"
    assert parse("-s", "one").argv == (b"bash", b"-s", b"one")


def test_a_terminal_gets_an_interactive_shell():
    assert parse(terminal=True).argv == (b"bash", b"-i")
    assert parse("-i", "-l", terminal=True).argv == (b"bash", b"-i", b"-l")
    assert parse("--norc", terminal=True).argv == (b"bash", b"--norc", b"-i")
    assert parse("-i", terminal=True).kind == parse("--norc", terminal=True).kind == "interactive"


def test_only_a_bare_call_at_a_terminal_goes_line_by_line():
    assert parse(terminal=True).kind == "lines"
    assert parse("--net", "none", terminal=True).kind == "lines"
    assert parse("--shell", "/bin/zsh", terminal=True).kind == "interactive"
    assert parse(terminal=False).kind == "stdin"


def test_run_takes_a_program_with_or_without_the_hyphens():
    request = parse("run", "--net", "none", "--", "ls", "-l", "--", "x")
    assert (request.kind, request.file) == ("run", b"ls")
    assert request.argv == (b"ls", b"-l", b"--", b"x")
    assert parse("run", "--fresh", "ls", "-l").argv == (b"ls", b"-l")


@pytest.mark.parametrize("words", [("run",), ("run", "--"), ("-c",), ("-f",), ("run", "--", "")])
def test_a_missing_command_is_a_wrong_call(words):
    with pytest.raises(UsageError) as wrong:
        parse(*words)
    assert wrong.value.hint


def test_a_closed_standard_input_is_a_missing_command():
    with pytest.raises(UsageError, match="standard input is closed"):
        parse(stdin_open=False)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--nett", "--net"), ("--tmieout", "--timeout"), ("--aply", "--apply"), ("--helpp", "--help")],
)
def test_an_unknown_option_comes_with_a_suggestion(word, meant):
    with pytest.raises(UsageError, match="unknown option") as wrong:
        parse(word, "-c", "true")
    assert meant in wrong.value.hint


def test_an_unknown_verb_comes_with_a_suggestion():
    with pytest.raises(UsageError) as wrong:
        parse("statsu")
    assert "`substrate status`" in wrong.value.hint


def test_options_before_a_verb_are_told():
    with pytest.raises(UsageError, match="status comes before its options"):
        parse("--json", "status")


@pytest.mark.parametrize("words", [("--help",), ("-e", "--help"), ("run", "--fresh", "--help")])
def test_help_is_found_among_the_options(words):
    with pytest.raises(HelpWanted):
        parse(*words)


def test_ci_stops_at_the_first_error_behind_the_long_options():
    assert parse("--ci", "--norc", "-x", "-c", "true").argv == (
        b"bash", b"--norc", b"-e", b"-x", b"-c", b"true",
    )  # fmt: skip


def test_a_value_may_be_attached():
    assert parse("--net=host", "-c", "x").flags == parse("--net", "host", "-c", "x").flags


@pytest.mark.parametrize("words", [("--net",), ("--fresh=1", "-c", "x"), ("--limit", "memory")])
def test_values_that_are_missing_or_too_many_are_wrong(words):
    with pytest.raises(UsageError):
        parse(*words)


def test_limits_and_environment_become_their_settings():
    flags = parse("--limit", "memory=4g", "--env", "A", "--env", "B=1=2", "-c", "x").flags
    assert [(flag.key, flag.text) for flag in flags] == [
        ("limits.memory", "4g"), ("env.pass", "A"), ("env.set", "B=1=2"),
    ]  # fmt: skip


def test_json_status_takes_a_descriptor_or_a_file():
    assert parse("--json-status", "3", "-c", "x").json_status == 3
    assert parse("--json-status", "out.json", "-c", "x").json_status == b"out.json"


def test_a_switch_has_a_variable():
    assert parse("-c", "x", environ={"SUBSTRATE_FRESH": "1"}).fresh
    assert not parse("-c", "x", environ={"SUBSTRATE_FRESH": "0"}).fresh
    with pytest.raises(ConfigError, match="SUBSTRATE_FRESH"):
        parse("-c", "x", environ={"SUBSTRATE_FRESH": "maybe"})


def test_the_session_of_the_variable_gives_way_to_flags():
    environ = {"SUBSTRATE_SESSION": "w1"}
    assert parse("-c", "x", environ=environ).world == "w1"
    assert parse("--world", "w2", "-c", "x", environ=environ).world == "w2"
    fresh = parse("--fresh", "-c", "x", environ=environ)
    assert (fresh.world, fresh.fresh) == (None, True)


def test_fresh_and_world_contradict_each_other():
    with pytest.raises(UsageError, match="--fresh"):
        parse("--fresh", "--world", "w2", "-c", "x")


def test_two_names_of_a_session_contradict_each_other():
    with pytest.raises(UsageError, match="same thing"):
        parse("--session", "w1", "--world", "w2", "-c", "x")


def test_another_shell_s_letters_are_its_own_business():
    assert parse("--shell", "/bin/dash", "-Vc", "x").argv[1:] == (b"-Vc", b"x")
    with pytest.raises(UsageError):
        parse("-Vc", "x")


def test_bytes_that_are_no_text_come_through():
    request = parse_run([b"-c", b"echo \xff"], {}, terminal=False, stdin_open=True)
    assert request.cmd_text == b"echo \xff"


def test_every_option_has_a_variable_and_a_text():
    for option in OPTIONS:
        assert option.variable.startswith("SUBSTRATE_")
        assert option.text


@pytest.mark.parametrize(
    ("word", "text"), [("--record-net", "1m"), ("--record-net=4m", "4m"), ("--record-net=", "")]
)
def test_a_switch_may_have_a_value_behind_its_sign(word, text):
    (flag,) = parse(word, "-c", "true").flags
    assert (flag.name, flag.key, flag.text) == ("--record-net", "net.record", text)


def test_what_stands_behind_such_a_switch_is_not_its_value():
    request = parse("--record-net", "-c", "4m")
    assert request.cmd_text == b"4m"
    assert parse("run", "--record-net", "4m").file == b"4m"
    with pytest.raises(UsageError, match="takes no value"):
        parse("--no-world=4m", "-c", "true")
