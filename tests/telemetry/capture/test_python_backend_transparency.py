"""A command under the python backend cannot tell: status, signals, stops and output are the same."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from substrate.telemetry.capture import records
from substrate.telemetry.capture.python_backend import PythonBackend
from tests.telemetry.capture.traced_command import PYTHON, Traced, compiled, run

MODES = pytest.mark.parametrize("level", ["files", "all"], ids=["filter", "every call"])


def untraced(argv: list[str], cwd: object = None) -> tuple[bytes, int]:
    done = subprocess.run(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout, done.returncode


def both_ways(argv: list[str], level: str, cwd: object = None) -> bytes:
    """The output, which is the same traced and untraced, as the status is."""
    found = run(argv, level=level, filtered=level == "files", cwd=cwd)
    assert (found.out, os.waitstatus_to_exitcode(found.status)) == untraced(argv, cwd)
    assert not found.lost
    return found.out


@pytest.mark.parametrize("script", ["exit 0", "exit 41", "kill -TERM $$", "kill -SEGV $$"])
@MODES
def test_status(script, level):
    both_ways(["/bin/sh", "-c", script], level)


def test_a_killed_command_leaves_its_signal():
    found = run(["/bin/sh", "-c", "kill -9 $$"])
    assert os.WTERMSIG(found.status) == signal.SIGKILL
    assert found.kind(records.EXIT)[-1].result == found.status


SIGNALS = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static pid_t child; static volatile int heard;
static void on(int s, siginfo_t *i, void *x) {
  if (s == SIGSEGV) { printf("segv %d %d\n", i->si_code, (long)i->si_addr == 16); fflush(0); _exit(5); }
  printf("%d code %d from %s value %d errno %d\n", s, i->si_code,
    i->si_pid == child ? "child" : i->si_pid == getpid() ? "self" : "other",
    s >= SIGRTMIN ? i->si_value.sival_int : 0, i->si_errno); fflush(0);
  heard = s; }
int main(void) {
  struct sigaction a = {.sa_sigaction = on, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigfillset(&a.sa_mask);
  for (int s = 1; s < 65; s++) if (s != SIGKILL && s != SIGSTOP && s != 32 && s != 33) sigaction(s, &a, 0);
  raise(SIGUSR1); raise(SIGTRAP); kill(getpid(), SIGTERM); raise(SIGTSTP); raise(SIGCONT);
  union sigval v = {7};
  sigqueue(getpid(), SIGRTMIN + 3, v);
  int st, go[2]; pipe(go);
  child = fork();
  if (!child) { char c; read(go[0], &c, 1); v.sival_int = 42; sigqueue(getppid(), SIGRTMIN, v);
    read(go[0], &c, 1); _exit(3); }
  write(go[1], "g", 1); while (heard != SIGRTMIN) usleep(100);
  write(go[1], "g", 1); while (heard != SIGCHLD) usleep(100);
  while (waitpid(child, &st, 0) < 0); printf("exit %d\n", WEXITSTATUS(st));
  *(volatile int *)16 = 1;
}
"""


@MODES
def test_signals_come_as_they_were_sent(tmp_path, level):
    out = both_ways([compiled(tmp_path, SIGNALS)], level)
    assert b"34 code -1 from child value 42 errno 0\n" in out


STOPS = r"""
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  for (int k = 0; k < 4; k++) {
    int how[] = {SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU}, st;
    pid_t p = fork();
    if (!p) { sigset_t u; sigemptyset(&u); sigaddset(&u, SIGUSR1); sigprocmask(SIG_BLOCK, &u, 0);
      setpgid(0, 0); raise(how[k]); int got; sigwait(&u, &got); _exit(3); }
    waitpid(p, &st, WUNTRACED); printf("stopped %d by %d\n", WIFSTOPPED(st), WSTOPSIG(st));
    printf("still %d\n", waitpid(p, &st, WNOHANG | WCONTINUED));
    kill(p, SIGCONT); waitpid(p, &st, WCONTINUED); printf("continued %d\n", WIFCONTINUED(st));
    kill(p, SIGUSR1); waitpid(p, &st, 0); printf("exit %d\n", WEXITSTATUS(st));
  }
  int st; pid_t p = fork();
  if (!p) { raise(SIGSTOP); _exit(4); }
  waitpid(p, &st, WUNTRACED); kill(p, SIGKILL); waitpid(p, &st, 0);
  printf("killed %d\n", WTERMSIG(st)); return 0;
}
"""


@MODES
def test_stops_of_children(tmp_path, level):
    # a group that has no parent in its session is orphaned, and three of the signals do nothing
    # there: so this one runs in a session in which it has one
    program = compiled(tmp_path, STOPS)
    assert b"stopped 1 by 20\n" in both_ways(["/bin/sh", "-c", f"{program}; exit $?"], level)


@MODES
def test_a_stop_of_the_whole_command(tmp_path, level):
    backend = PythonBackend(level=level, filtered=level == "files")
    script = (
        "import sys, time\nprint('up', flush=True)\nsys.stdin.read(0)\nwhile True: time.sleep(9)"
    )
    traced = Traced([PYTHON, "-c", script], backend, level=level, filtered=level == "files")
    traced.until(lambda t: t.run.out == b"up\n")
    for _ in range(3):
        os.killpg(traced.pid, signal.SIGSTOP)
        _, status = os.waitpid(traced.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
        os.killpg(traced.pid, signal.SIGCONT)
        _, status = os.waitpid(traced.pid, os.WCONTINUED)
        assert os.WIFCONTINUED(status)
    os.killpg(traced.pid, signal.SIGINT)
    found = traced.finish()
    assert os.WTERMSIG(found.status) == signal.SIGINT
    assert b"KeyboardInterrupt" in found.out


JOBS = """
set -m
exec 2>/dev/null
sleep 60 &
job=$!
kill -STOP %1
until [[ $(jobs) = *Stopped* ]]; do :; done
bg %1 >/dev/null
until [[ $(jobs) = *Running* ]]; do :; done
kill %1
wait $job
echo $?
(trap 'echo got; exit 6' USR1; kill -USR1 $BASHPID; sleep 9)
echo $?
"""


@MODES
def test_job_control_of_a_shell(level):
    assert both_ways(["/bin/bash", "-c", JOBS], level) == b"143\ngot\n6\n"


KEYS = """
import os, pty, signal
signal.alarm(40)
pid, terminal = pty.fork()
if not pid:
    os.execv("/bin/bash", ["bash", "--norc", "--noprofile", "-i"])
said = b""
def until(text):
    global said
    while text not in said:
        said += os.read(terminal, 4096)
    said = said.partition(text)[2]
def type(text):
    os.write(terminal, text)
def until_in_front():
    # the shell has handed over its terminal, and the job reads from it
    while (job := os.tcgetpgrp(terminal)) == pid: pass
    while open(f"/proc/{job}/stat").read().rpartition(")")[2].split()[0] != "S": pass
    while b"cat" not in open(f"/proc/{job}/cmdline", "rb").read(): pass
type(b"PS1='re''ady>'\\n"); until(b"ready>")
type(b"cat\\n"); until_in_front(); type(b"ec-ho\\n"); until(b"ec-ho\\r\\nec-ho")
type(b"\\x1a"); until(b"Stopped"); until(b"ready>")
type(b"fg\\n"); until_in_front(); type(b"\\x03"); until(b"ready>")
type(b"echo st=$?\\n"); until(b"\\r\\n"); until(b"st=130")
type(b"exit 5\\n")
try:
    while os.read(terminal, 4096): pass
except OSError: pass
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@MODES
def test_keys_at_a_terminal(level):
    assert both_ways([PYTHON, "-I", "-S", "-c", KEYS], level) == b"5\n"


@MODES
def test_a_program_that_traces_itself_does_not_stop_the_capture(tmp_path, level):
    source = r"""
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <sys/ptrace.h>
int main(void) { long r = ptrace(PTRACE_TRACEME, 0, 0, 0); printf("%s\n", strerror(r ? errno : 0)); }
"""
    found = run([compiled(tmp_path, source)], level=level, filtered=level == "files")
    assert (found.status, found.out) == (0, b"Operation not permitted\n")


@MODES
def test_a_storm_of_processes_that_are_killed(tmp_path, level):
    source = r"""
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  int st, bad = 0;
  for (int i = 0; i < 60; i++) {
    pid_t p = fork();
    if (!p) { for (;;) { if (!fork()) { open("/etc/hostname", O_RDONLY); _exit(0); } wait(0); } }
    usleep(i * 50); kill(p, SIGKILL); waitpid(p, &st, 0);
    bad += !WIFSIGNALED(st) || WTERMSIG(st) != SIGKILL;
  }
  return bad;
}
"""
    found = run([compiled(tmp_path, source)], level=level, filtered=level == "files")
    assert found.status == 0
    made = [record.result for record in found.kind(records.FORK)]
    ended = [record.tid for record in found.kind(records.EXIT)]
    assert sorted([*made, found.pid]) == sorted(ended)
