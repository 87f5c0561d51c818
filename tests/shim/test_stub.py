"""A shim asks, and becomes the real command; both stubs alike."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.shim.supervisor import SESSION, SPAN, encode


def test_what_is_allowed_runs_with_its_span(place, supervisor):
    done = place.call("tool", "a b", "")
    assert (done.returncode, done.stdout, done.stderr) == (7, f"tool|a b||{SPAN}\n".encode(), b"")
    (asked,) = supervisor.asked
    assert asked.mode == b"shim"
    assert asked.file == os.fsencode(place.bin / "tool")
    assert asked.cwd == os.fsencode(place.work)
    assert asked.argv[1:] == [b"a b", b""]
    assert b"SUBSTRATE_SESSION=" + SESSION.encode() in asked.environ
    assert asked.seals == 0xF
    assert (asked.fds, asked.parent, asked.flags) == (0, b"", {})


def test_what_is_denied_says_the_line_and_is_126(place, supervisor):
    supervisor.answers["tool"] = [
        encode(b"D", b"126", b"substrate: denied: tool", b"user command[1]")
    ]
    done = place.call("tool")
    assert (done.returncode, done.stdout, done.stderr) == (126, b"", b"substrate: denied: tool\n")


def test_a_failure_is_125_with_its_hint(place, supervisor):
    supervisor.answers["tool"] = [encode(b"F", b"125", b"substrate: no room", b"make some")]
    done = place.call("tool")
    assert (done.returncode, done.stderr) == (125, b"substrate: no room\nhint: make some\n")


def test_lines_before_the_answer_are_shown_and_do_not_act_on_a_terminal(place, supervisor):
    supervisor.answers["tool"] = [encode(b"T", b"waiting \x1b[2J"), supervisor.accepted]
    done = place.call("tool")
    assert (done.returncode, done.stderr) == (7, b"waiting \\x1b[2J\n")


def test_the_parent_span_is_handed_on_only_if_it_is_one(place, supervisor):
    place.extra["SUBSTRATE_PARENT_SPAN"] = SPAN
    place.call("tool")
    place.extra["SUBSTRATE_PARENT_SPAN"] = "spn_../../etc/passwd"
    place.call("tool")
    assert [asked.parent for asked in supervisor.asked] == [SPAN.encode(), b""]


_TWICE = """
import ctypes, os, sys
words, entries = ([os.fsencode(word) for word in sys.argv[1:2]], os.environb)
envp = [b"TWICE=first", *(name + b"=" + text for name, text in entries.items()), b"TWICE=second"]
def array(values):
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)
ctypes.CDLL(None).execve(words[0], array(words), array(envp))
"""


def test_of_two_variables_of_a_name_the_first_is_asked_about_and_run_with(place, supervisor):
    place.script("tool", "#!/bin/sh\necho $TWICE\n")
    done = place.call(sys.executable, "-c", _TWICE, place.shims / "tool")
    assert (done.stdout, done.stderr) == (b"first\n", b"")


def test_the_umask_is_told(place, supervisor):
    place.call("tool", umask=0o027)
    assert supervisor.asked[0].umask == 0o027


@pytest.mark.parametrize("bypass", ["1", "0", "yes"])
def test_a_bypass_is_the_supervisors_to_grant(place, supervisor, bypass):
    place.extra["SUBSTRATE_BYPASS"] = bypass
    place.call("tool")
    assert supervisor.asked[0].flags == ({"bypass": True} if bypass == "1" else {})


def test_the_session_of_the_workspace_is_found_without_a_variable(place, supervisor):
    (place.work / ".git").mkdir()
    below = place.work / "a" / "b"
    below.mkdir(parents=True)
    supervisor.make_current(place.work)
    environ = {k: v for k, v in place.environ.items() if k != "SUBSTRATE_SESSION"}
    done = place.call("tool", env=environ, cwd=below)
    assert (done.returncode, len(supervisor.asked)) == (7, 1)


def test_a_world_names_its_session(place, supervisor):
    place.extra["SUBSTRATE_SESSION"] = "w7"
    assert place.call("tool").returncode == 7


# --- the real command


def test_python_finds_its_environment_behind_the_shim(place, supervisor):
    """By argv[0] it would find the shim first in PATH, and no environment."""
    venv = place.base / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", venv], check=True)
    place.extra["PATH"] = f"{place.shims}:{venv}/bin:/usr/bin:/bin"
    done = place.call("python3", "-c", "import sys; print(sys.prefix)")
    assert done.stdout.decode().strip() == str(venv)


def test_what_stands_behind_the_shims_comes_before_what_stands_before_them(place, supervisor):
    first = place.base / "first"
    first.mkdir()
    place.script("tool", "#!/bin/sh\necho first\n", first)
    place.extra["PATH"] = f"{first}:{place.shims}:{place.bin}"
    assert place.call("tool").stdout.startswith(b"tool|")
    place.extra["PATH"] = f"{first}:{place.shims}"
    assert place.call("tool").stdout == b"first\n"


def test_the_original_path_is_for_where_path_has_nothing_else(place, supervisor):
    place.extra["PATH"] = str(place.shims)
    place.extra["SUBSTRATE_ORIGINAL_PATH"] = f"{place.shims}:{place.bin}"
    assert place.call("tool").returncode == 7


def test_the_directory_is_known_by_its_inode(place, supervisor):
    alias = place.base / "alias"
    alias.symlink_to(place.shims)
    place.extra["PATH"] = f"{alias}:{place.shims}/../shims:{place.bin}"
    assert place.call("tool").returncode == 7


@pytest.mark.parametrize("how", ["copy", "link", "symlink", "other directory"])
def test_a_shim_is_never_the_real_command(place, supervisor, how):
    second = place.base / "second"
    second.mkdir()
    if how == "copy":
        shutil.copy(place.shims / ".stub", second / "tool")
    elif how == "link":
        os.link(place.shims / ".stub", second / "tool")
    elif how == "symlink":
        (second / "tool").symlink_to(place.shims / "tool")
    else:
        shutil.copy(place.shims / ".substrate-shims", second)
        place.script("tool", "#!/bin/sh\nexit 3\n", second)
    place.extra["PATH"] = f"{place.shims}:{second}:{place.bin}"
    assert place.call("tool").returncode == 7
    place.extra["PATH"] = f"{place.shims}:{second}"
    done = place.call("tool")
    assert done.returncode == 127
    assert b"command not found in PATH behind the shims" in done.stderr


def test_a_loop_of_programs_that_become_shims_ends(place, supervisor):
    place.script("tool", f'#!/bin/sh\nexec {place.shims}/tool "$@"\n')
    done = place.call("tool")
    assert done.returncode == 125
    assert b"a loop" in done.stderr
    assert len(supervisor.asked) == 16


def test_shims_below_shims_are_asked_about_too(place, supervisor):
    place.script("other", "#!/bin/sh\ntool; exec tool\n")
    supervisor.answers["tool"] = [encode(b"D", b"126", b"no tool", b"")]
    done = place.call("other")
    assert (done.returncode, done.stderr) == (126, b"substrate: no tool\n" * 2)
    assert [os.path.basename(asked.file) for asked in supervisor.asked] == [
        b"other",
        b"tool",
        b"tool",
    ]
    assert supervisor.asked[1].parent == SPAN.encode()


def test_what_cannot_be_run_is_126(place, supervisor):
    (place.bin / "tool").chmod(0o644)
    done = place.call("tool")
    assert done.returncode == 126
    assert b"cannot be run" in done.stderr


def test_a_script_without_an_interpreter_line_is_the_shells(place, supervisor):
    place.script("tool", 'echo plain "$1"\n')
    assert place.call("tool", "x").stdout == b"plain x\n"


@pytest.mark.parametrize("entry", ["", "."])
def test_an_entry_that_is_empty_is_the_current_directory(place, supervisor, entry):
    place.script("tool", "#!/bin/sh\necho here\n", place.work)
    place.extra["PATH"] = f"{place.shims}:{entry}:{place.bin}"
    assert place.call("tool").stdout == b"here\n"


def test_without_a_path_the_usual_places_are_looked_at(place, supervisor):
    environ = {k: v for k, v in place.environ.items() if k != "PATH"}
    done = place.call("python3", "-c", "print(1)", env=environ)
    assert done.stdout == b"1\n"


# --- nobody to ask


def test_without_a_supervisor_nothing_runs(place, tmp_path):
    done = place.call("tool")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"no session of substrate runs here" in done.stderr
    assert b"hint: start one: `substrate world start`" in done.stderr


def test_a_supervisor_that_died_is_no_supervisor(place, supervisor):
    supervisor.close()
    done = place.call("tool")
    assert done.returncode == 125
    assert b"cannot be reached" in done.stderr


def test_a_supervisor_that_ends_before_it_answers(place, supervisor):
    supervisor.answers["tool"] = [None]
    done = place.call("tool")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"has ended" in done.stderr


def test_the_owner_may_let_commands_run_unasked(place):
    place.deploy(fail_open=True)
    assert place.call("tool").returncode == 7
    place.extra["SUBSTRATE_PARENT_SPAN"] = SPAN  # of a world, where there is always somebody
    assert place.call("tool").returncode == 125


def test_what_others_can_write_opens_nothing(place):
    place.deploy(fail_open=True)
    (place.shims / ".substrate-shims").chmod(0o666)
    assert place.call("tool").returncode == 125


# --- what is handed on


def test_large_calls_are_handed_over_whole(place, supervisor):
    words = ["x" * 100_000 for _ in range(9)]
    place.extra.update({f"LARGE_{n}": "y" * 100_000 for n in range(9)})
    place.script("tool", '#!/bin/sh\necho "$#" "${#9}" "${#LARGE_8}"\n')
    assert place.call("tool", *words).stdout == b"9 100000 100000\n"
    assert supervisor.asked[0].argv[1:] == [word.encode() for word in words]
    assert len(b"".join(supervisor.asked[0].environ)) > 900_000


def test_names_that_are_not_utf8_stay_as_they_are(place, supervisor):
    place.script("tool", '#!/bin/sh\nprintf %s "$1"\n')
    assert place.call("tool", b"\xff\xfe\n").stdout == b"\xff\xfe\n"
    assert supervisor.asked[0].argv[1] == b"\xff\xfe\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_stay_closed(place, supervisor, closed):
    def close() -> None:
        for fd in closed:
            os.close(fd)

    out = place.base / "out"
    place.script(
        "tool",
        f"#!/usr/bin/python3\nimport os\nopen({str(out)!r}, 'w').write(' '.join("
        "str(n) for n in range(3) if not os.path.exists(f'/proc/self/fd/{n}')))\n",
    )
    environ = place.environ
    code = subprocess.run(
        [place.shims / "tool"], env=environ, cwd=place.work, preexec_fn=close, timeout=60
    ).returncode
    assert code == 0
    # the script's own file takes the lowest free number
    assert set(out.read_text().split()) <= {str(n) for n in closed}
    assert len(supervisor.asked) == 1


def test_what_is_ignored_stays_so(place, supervisor):
    place.script("tool", "#!/bin/sh\ngrep SigIgn /proc/$$/status\n")
    done = place.call(
        "tool",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        restore_signals=True,
    )
    assert int(done.stdout.split()[1], 16) & 1
