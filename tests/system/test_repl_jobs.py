"""Jobs of the interactive shell: they live on between lines, and end with it (shell.md §2)."""

import json
import signal
import time

from tests.system import traces_left
from tests.system.shell_scene import shell as shell

#: says when it is there, so that no key reaches its shell instead
_SLEEPER = b"sh -c 'echo u''p; exec sleep 1000'"


def test_jobs_live_on_and_are_told(shell, caller):
    there = shell()
    assert b"[1] " in there.line(b"sleep 1000 &")
    shown = there.line(b"echo one > a; x=5")
    assert b" +1 &1]" in shown
    shown = there.line(b"(sleep 999; exit 3) & sh -c 'sleep 998 | cat' &")
    assert b"[2] " in shown
    assert b"[3] " in shown
    assert b"&3]" in shown
    shown = there.line(b"jobs")
    assert b"[1]   Running                 sleep 1000 &\r\n" in shown
    assert b"[2]-  Running" in shown
    assert b"[3]+  Running" in shown
    assert b"[1]   Terminated              sleep 1000\r\n" in there.line(b"kill %1")
    assert b"Killed" in there.line(b"kill -KILL $!")
    assert b"[2]+" in there.line(b"jobs -l")
    assert b"Terminated" in there.line(b"kill %?999")
    shown = there.line(b"jobs; echo <$x>".replace(b"<$x>", b'"<$x>"'))
    assert b"\n<5>\r\n" in shown
    assert b"&" not in shown.rpartition(b"[w")[2]
    assert b"no such job" in there.line(b"fg %1")
    there.type(b"exit 4\r")
    assert there.wait() == 4
    starts = [e for e in caller.events() if e["event_type"] == "command_start"]
    ends = {e["span_id"] for e in caller.events() if e["event_type"] == "command_end"}
    assert len({e["span_id"] for e in starts}) == len(starts)
    assert {e["span_id"] for e in starts} == ends
    caller.verify()


def test_stop_list_bg_fg_and_the_end(shell):
    there = shell()
    there.type(_SLEEPER + b"\r")
    there.expect(b"up\r\n")
    there.type(b"\x1a")
    shown = there.prompt()
    assert b"[1]+  Stopped                 sh -c" in shown
    assert b" ^Z1]" in shown
    assert b" 148 " in shown
    assert b"\n148\r\n" in there.line(b"echo $?")
    assert b" &1]" in there.line(b"bg")
    assert b"Running" in there.line(b"jobs")
    there.type(b"fg\r")
    there.expect(b"exec sleep 1000'\r\n")
    shown = there.press_until_prompt(b"\x03")
    assert b" 130 " in shown
    assert b"&1" not in shown
    there.type(b"echo status-$?\r")  # a key too many may have met the prompt
    there.expect(b"status-130\r\n")


def test_wait_disown_and_what_a_job_ended_with(shell):
    there = shell()
    there.line(b"(read <go; exit 7) 2>/dev/null & mkfifo go 2>/dev/null; true")
    there.line(b"mkfifo go; (read x <go; exit 7) &")
    there.line(b"(echo >go)")
    there.line(b"wait %2")
    there.line(b"sleep 1000 & disown")
    assert b"&" not in there.line(b"true").rpartition(b"[w")[2]
    there.line(_SLEEPER.replace(b"u''p", b"") + b" &")
    there.type(b"wait\r")
    there.expect(b"[?2004l")
    shown = there.press_until_prompt(b"\x03")
    assert b" 130 " in shown
    assert b"&1]" in shown


def test_leaving_with_jobs_is_asked_for_twice(shell):
    there = shell()
    there.line(b"sleep 1000 &")
    assert b"leave again to leave" in there.line(b"exit 5")
    there.type(b"exit 6\r")
    assert there.wait() == 6


def test_a_killed_shell_takes_its_jobs_along(shell, caller):
    there = shell()
    there.line(b"sleep 1000 & sleep 1000 &")
    there.process.send_signal(signal.SIGKILL)
    there.process.wait()
    assert not traces_left.gone(lambda: traces_left.processes(there.mark))
    assert caller.substrate("-c", "echo next").stdout == b"next\n"


def test_verbs_that_change_layers_wait_for_jobs(shell):
    there = shell()
    there.line(b"echo one > a")
    there.line(b"sleep 1000 &")
    assert b"wait until no job runs" in there.line(b":undo --yes")
    there.line(b"kill %1")
    until = time.monotonic() + 30  # it is told to end, and not waited for
    while b"wait until no job runs" in (shown := there.line(b":undo --yes")):
        assert time.monotonic() < until
    assert b"undone" in shown
    assert b"\nnone\r\n" in there.line(b"ls a 2>/dev/null || echo none")


def test_lines_beside_a_job_have_spans_and_changes_of_their_own(shell, caller):
    there = shell()
    there.line(b"sleep 1000 &")
    there.line(b"echo two > second")
    there.line(b"echo three > third")
    log = caller.substrate("log", "--format", "json")
    rows = json.loads(log.stdout)["commands"]
    changed = {row["display"]: row["changes"] for row in rows if "echo" in row["display"]}
    assert [counts["added"] for counts in changed.values()] == [1, 1]


def test_the_session_may_be_ended_by_somebody_else(shell, caller):
    there = shell()
    there.line(b"x=5")
    there.line(b"sleep 1000 &")
    assert caller.substrate("world", "stop").returncode == 0
    assert b"\n<5>\r\n" in there.line(b'echo "<$x>"')


def test_history_expansion_is_shown_before_it_runs(shell):
    there = shell()
    there.line(b"echo one two")
    assert b"echo one two\r\none two\r\n" in there.line(b"!!")
    assert b"echo two\r\ntwo\r\n" in there.line(b"echo !$")
    assert b"history expansion failed" in there.line(b"!nothing")
    assert b"\r\na!!\r\n" in there.line(b"echo 'a!!'")
    there.line(b"set +H")
    assert b"\r\na!!\r\n" in there.line(b'echo "a!!"')


def test_the_state_of_an_own_shell_stays_right_beside_jobs(shell):
    there = shell()
    there.line(b"sleep 1000 &")
    there.line(b"cd /tmp; umask 027; f() { echo f-$1; }; alias g='f aliased'; set -o noclobber")
    there.line(b"trap 'echo trapped' USR1; declare -A m=([k]=v); shopt -s nullglob")
    shown = there.line(
        b"g; f ${m[k]}; umask; pwd; set -o | grep noclobber; kill -USR1 $$; echo *none*"
    )
    for text in (b"f-aliased", b"f-v", b"0027", b"/tmp", b"noclobber      \ton", b"trapped"):
        assert text in shown


def test_what_somebody_types_meanwhile_is_the_next_lines(shell):
    there = shell()
    there.line(b"sleep 1000 &")
    for number in range(5):
        there.type(b"echo n%d-$((%d+1))\r" % (number, number))
    there.expect(b"n4-5\r\n")


def test_without_a_name_nobody_is_left(shell):
    """A job that hides from SIGHUP ends with the session all the same."""
    there = shell()
    there.line(b"(trap '' HUP TERM; sleep 1000) & nohup sleep 1000 >/dev/null 2>&1 & true")
    there.type(b"exit\r")
    there.prompt()
    there.type(b"exit\r")
    assert there.wait() == 0
    assert not traces_left.gone(lambda: traces_left.processes(there.mark))


def test_a_line_that_says_it_is_over_reads_no_keys_of_the_prompt(shell, caller):
    (caller.work / "own.sh").write_text(
        "stty raw -echo\n"
        "for n in /proc/$PPID/fd/*; do\n"
        "case $(readlink $n) in pipe*) [ -w $n ] && printf '\\0\\0000\\0000\\0yes\\0\\0' > $n & ;; esac\n"
        "done\n"
        "exec dd bs=1 of=stolen 2>/dev/null\n".replace("\\n", "\n")
    )
    there = shell()
    there.type(b"sh ./own.sh\r")
    there.expect(b"without leaving its state")
    there.expect(b"[?2004h")
    there.type(b"echo one-two-three-$((1+1))\r")
    there.expect(b"one-two-three-2\r\n")
    there.type(b"echo bytes-$(wc -c < stolen)\r")
    there.expect(b"bytes-0\r\n")


def test_a_line_that_failed_is_no_job(shell):
    there = shell()
    for failed in (b"false", b"(exit 3) | (exit 4)"):
        there.line(failed)
        shown = there.line(b"echo jobs-$(jobs -p)-$((1+1)); jobs; kill %1; wait %1")
        assert b"\njobs--2\r\n" in shown
        assert b"exit" not in shown.partition(b"\njobs--2")[2]
        assert shown.count(b"no such job") == 2
    there.line(b"(exit 3) | (exit 4)")
    assert b"\n4-3 4\r\n" in there.line(b'echo "$?-${PIPESTATUS[*]}"')
    there.type(_SLEEPER + b" | cat\r")
    there.expect(b"up\r\n")
    there.type(b"\x1a")
    assert b"[1]+  Stopped" in there.prompt()
    shown = there.line(b"kill %1; jobs")  # within a longer line: of that line alone
    assert b"no such job" in shown
    assert b"exit" not in shown.partition(b"no such job")[2]
    assert b"Terminated" in there.line(b"kill %1") + there.line(b"jobs")


def test_a_word_behind_a_colon_that_is_none(shell):
    there = shell()
    assert b":nope is no command here: :help lists what is\r\n" in there.line(b":nope")
    assert b"did you mean :status?" in there.line(b":stauts")
    shown = there.line(b":help")
    for part in (b":undo", b"history [N]", b"quit"):
        assert part in shown


def test_no_child_of_the_shell_is_left_a_zombie(shell):
    there = shell()
    there.line(b"echo a > file")
    there.line(b":discard --yes")  # its session ends with that, and another one begins
    assert b"\no2k\r\n" in there.line(b"echo o$((1+1))k")
    children = f"/proc/{there.process.pid}/task/{there.process.pid}/children"
    states = []
    with open(children) as file:
        pids = file.read().split()
    for pid in pids:
        with open(f"/proc/{pid}/stat", "rb") as file:
            states.append(file.read().rpartition(b")")[2].split()[0])
    assert b"Z" not in states
