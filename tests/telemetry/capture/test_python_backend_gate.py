"""The exec gate of the python backend: nothing runs that was not allowed, whoever races it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from substrate.telemetry.capture import gate, holds, records
from substrate.telemetry.capture.python_backend import PythonBackend
from tests.telemetry.capture.traced_command import (
    PYTHON,
    Run,
    Traced,
    compiled,
    run,
    without_rights,
)

MODES = pytest.mark.parametrize("level", ["files", "all"], ids=["filter", "every call"])


class Asked:
    """Denies programs by the end of what they are, and remembers what it was asked."""

    def __init__(self, *denied: str, decision: int = gate.DENY) -> None:
        self.holds: list[holds.Hold] = []
        self._denied, self._decision = [os.fsencode(name) for name in denied], decision

    def __call__(self, hold: holds.Hold) -> int:
        self.holds.append(hold)
        if any(program.endswith(name) for program in hold.programs for name in self._denied):
            return self._decision
        return gate.ALLOW


def decisions(found: Run) -> list[tuple[str, str]]:
    return [(gate.DECISIONS[r.result], gate.REASONS[r.args[1]]) for r in found.kind(records.GATE)]


def gated(argv: list, ask: holds.Ask, level: str = "files", **more) -> Run:
    return run(argv, ask=ask, level=level, filtered=level == "files", **more)


@MODES
def test_what_is_allowed_runs(level):
    asked = Asked()
    found = gated(["/bin/sh", "-c", "/bin/echo a; exec /bin/echo b"], asked, level)
    assert (found.status, found.out) == (0, b"a\nb\n")
    assert decisions(found) == [("allow", "callback")] * 3
    assert [hold.path for hold in asked.holds] == [b"/bin/sh", b"/bin/echo", b"/bin/echo"]
    assert asked.holds[1].argv == (b"/bin/echo", b"a")
    assert asked.holds[1].programs == (os.fsencode(os.path.realpath("/bin/echo")),)
    assert [r.args[0] for r in found.kind(records.HOLD)] == [1, 2, 3]


@MODES
def test_what_is_denied_fails_with_eacces(tmp_path, level):
    (tmp_path / "f").touch()
    found = gated(
        ["/bin/sh", "-c", "rm f; echo $?"],
        Asked("/rm"),
        level,
        cwd=tmp_path,
        env={"PATH": "/usr/bin"},
    )
    assert found.out.endswith(b"126\n")
    assert (tmp_path / "f").exists()
    assert decisions(found)[1] == ("deny", "callback")
    failed = [r for r in found.calls("execve") if r.result == -13]
    assert [r.item(records.PATH) for r in failed] == [b"/usr/bin/rm"]
    assert len(found.kind(records.EXEC)) == 1


def test_a_vfork_child_that_is_denied(tmp_path):
    script = "import subprocess\ntry: subprocess.run(['/bin/rm', 'f'])\nexcept PermissionError: print('no')"
    found = gated([PYTHON, "-c", script], Asked("/rm"), cwd=tmp_path)
    assert (found.status, found.out) == (0, b"no\n")


@MODES
def test_what_is_to_be_killed_is(level):
    found = gated(
        ["/bin/sh", "-c", "/bin/echo a; echo $?"], Asked("/echo", decision=gate.KILL), level
    )
    assert found.out.endswith(b"137\n") and b"a\n" not in found.out
    assert decisions(found)[1] == ("kill", "callback")


def test_an_answer_may_come_later():
    backend = PythonBackend(ask=lambda hold: gate.ASK)
    traced = Traced(["/bin/sh", "-c", "(/bin/echo a); echo $?"], backend)

    def held(t):
        return [r.args[0] for r in t.seen() if r.kind == records.HOLD]

    traced.until(lambda t: held(t) == [1])
    backend.answer(7, gate.ALLOW)  # there is none of this number
    backend.answer(1, gate.ALLOW)
    backend.answer(1, gate.DENY)  # and this one is over
    traced.until(lambda t: held(t) == [1, 2])
    backend.answer(2, gate.DENY, gate.CLIENT_GONE)
    found = traced.finish()
    assert found.out.endswith(b"126\n")
    assert decisions(found) == [("allow", "callback"), ("deny", "client")]


def test_a_table_decides_what_it_names(tmp_path):
    table = gate.pack_table({b"echo": gate.ALLOW, b"/usr/bin/rm": gate.DENY, b"true": gate.ASK})
    backend = PythonBackend()
    backend.arm(table, gate.ALLOW, 60_000)
    (tmp_path / "f").touch()
    line = "/bin/echo a; /bin/rm f; /bin/echo $?; /bin/true; /bin/echo $?"
    traced = Traced(["/bin/sh", "-c", line], backend, cwd=tmp_path)
    traced.until(lambda t: any(r.kind == records.HOLD for r in t.seen()))
    backend.answer(1, gate.DENY)
    found = traced.finish()
    assert found.out.split(b"\n")[0] == b"a" and found.out.endswith(b"126\n")
    assert decisions(found) == [("deny", "table"), ("deny", "callback")]
    (refused, _) = found.kind(records.GATE)
    assert refused.item(records.ARGV) == b"/bin/rm\0f\0"
    assert (tmp_path / "f").exists()


def test_a_name_that_it_is_called_by_can_only_deny(tmp_path):
    shutil.copy("/bin/true", tmp_path / "copy")
    (tmp_path / "git").symlink_to("copy")
    script_file(tmp_path / "script", f"#!{tmp_path}/git -x\n")
    ways = ("(exec -a git ./copy)", "(exec -a -git ./copy)", "./git", "./script", "./copy")
    line = "; ".join(f"{way} 2>&-; echo -n $?," for way in ways)
    known = dict.fromkeys((b"bash", b"copy", b"script"), gate.ALLOW)
    for table, otherwise, expected in (
        ({**known, b"git": gate.DENY}, gate.ALLOW, b"126,126,126,126,0,"),
        ({**known, b"git": gate.DENY}, gate.ASK, b"126,126,126,126,0,"),
        ({**known, b"copy": gate.DENY, b"git": gate.ALLOW}, gate.ALLOW, b"126,126,126,126,126,"),
        (known, gate.DENY, b"0,0,0,0,0,"),
    ):
        backend = PythonBackend()
        backend.arm(gate.pack_table(table), otherwise, 60_000)
        found = Traced(["/bin/bash", "-c", line], backend, cwd=tmp_path).finish()
        assert found.out == expected


def test_more_holds_than_the_socket_has_room_for(tmp_path):
    """Answers that find no room go when the pipe was drained; none is lost."""
    script = (
        "import os\n"
        "r, w = os.pipe()\n"
        "for i in range(500):\n"
        "    if not os.fork():\n"
        "        os.close(w); os.read(r, 1)\n"
        "        os.execv('/bin/true', ['true'])\n"
        "os.close(w)\n"
        "bad = 0\n"
        "for i in range(500): bad += os.wait()[1] != 0\n"
        "print(bad)\n"
    )
    found = gated([PYTHON, "-I", "-S", "-c", script], Asked())
    assert found.out == b"0\n"
    assert decisions(found) == [("allow", "callback")] * 501


def test_others_go_on_while_one_is_held():
    backend = PythonBackend(ask=lambda hold: gate.ASK if hold.argv == (b"echo", b"a") else 1)
    script = "env echo a & /bin/true; /bin/true; /bin/echo b; wait"
    traced = Traced(["/bin/sh", "-c", script], backend)

    def held(t):
        return [
            r.args[0]
            for r in t.seen()
            if r.kind == records.HOLD and r.item(records.ARGV) == b"echo\0a\0"
        ]

    traced.until(lambda t: t.run.out == b"b\n" and held(t))
    backend.answer(held(traced)[0], gate.ALLOW)
    assert traced.finish().out == b"b\na\n"


def test_no_answer_in_time_denies():
    begin = time.monotonic()
    found = gated(["/bin/echo", "a"], lambda hold: gate.ASK, hold_ms=300)
    assert os.waitstatus_to_exitcode(found.status) == 127  # who execs it ends by that
    assert decisions(found) == [("deny", "timeout")]
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_hold(number):
    backend = PythonBackend(ask=lambda hold: gate.ASK if hold.argv[0] == b"a" else gate.ALLOW)
    traced = Traced(["/bin/bash", "-c", "exec -a a /bin/sleep 60"], backend)
    traced.until(lambda t: [r for r in t.seen() if r.kind == records.HOLD][1:])
    os.kill(traced.pid, number)
    found = traced.finish()
    assert os.WTERMSIG(found.status) == number
    assert decisions(found) == [("allow", "callback"), ("deny", "dying")]


def test_a_gate_that_raises_denies():
    class Broken(Exception):
        pass

    def ask(hold):
        raise Broken

    backend = PythonBackend(ask=ask)
    traced = Traced(["/bin/echo", "a"], backend)
    with pytest.raises(Broken):
        traced.finish()
    found = traced.finish()
    assert found.out != b"a\n" and os.waitstatus_to_exitcode(found.status) == 127


def test_a_search_along_path_asks_once(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "true").write_text("not executable")
    script = "import os; os.execvp('true', ['true'])"
    env = {"PATH": f"/no/a:/no/b:/etc/hostname/c:{tmp_path}/plain:{tmp_path}:/bin"}
    asked = Asked()
    found = gated([PYTHON, "-I", "-c", script], asked, env=env)
    assert found.status == 0
    assert [hold.path for hold in asked.holds][1:] == [b"/bin/true"]
    assert [r.result for r in found.calls("execve")] == [-2, -2, -20, -13, -2]
    assert len(decisions(found)) == 2


def script_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_scripts_are_asked_about_with_their_interpreters(tmp_path):
    inner = script_file(tmp_path / "inner", "#!/bin/sh -u\necho inner $# $0 $1\n")
    script_file(tmp_path / "outer", f"#! {inner}  with space \n")
    script_file(tmp_path / "bare", "#!/bin/sh")
    asked = Asked()
    line = "./inner a b; ./outer c; ./bare x; /bin/echo end"
    found = gated(["/bin/sh", "-c", line], asked, cwd=tmp_path)
    assert found.out == (
        b"inner 2 ./inner a\n" + os.fsencode(f"inner 3 {inner} with space\n") + b"end\n"
    )
    dash = os.fsencode(os.path.realpath("/bin/sh"))
    inside = os.fsencode(tmp_path)
    assert [hold.programs for hold in asked.holds[1:4]] == [
        (inside + b"/inner", dash),
        (inside + b"/outer", inside + b"/inner", dash),
        (inside + b"/bare", dash),
    ]
    assert [hold.before for hold in asked.holds[:4]] == [
        (),
        (b"/bin/sh", b"-u"),
        (b"/bin/sh", b"-u", inside + b"/inner", b"with space"),
        (b"/bin/sh",),
    ]
    assert {decision for decision, _ in decisions(found)} == {"allow"}
    script = found.kind(records.EXEC)[1]
    assert script.item(records.EXEC_NAME) == b"./inner"
    assert script.item(records.ARGV) == b"/bin/sh\0-u\0./inner\0a\0b\0"


def test_denying_an_interpreter_denies_its_scripts(tmp_path):
    script_file(tmp_path / "s", f"#!{PYTHON}\nopen('ran', 'w')\n")
    real = os.path.basename(os.path.realpath(PYTHON))
    found = gated(["/bin/sh", "-c", "./s; echo $?"], Asked(f"/{real}"), cwd=tmp_path)
    assert found.out.endswith(b"126\n") and not (tmp_path / "ran").exists()


WAYS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static char *e[] = {"A=b", 0};
static int at(int d, const char *n, char **a, int f) { return syscall(SYS_execveat, d, n, a, e, f); }
int main(int c, char **v) {
  if (c > 1 && !strcmp(v[1], "again")) { puts("again"); return 0; }
  for (int i = 0; i < 8; i++) {
    int st; pid_t p = fork();
    if (!p) {
      char *a[] = {"x", "again", 0}, n[64]; int fd, d;
      switch (i) {
      case 0: fd = memfd_create("m", 0); d = open("/proc/self/exe", O_RDONLY);
        { char b[65536]; int k; while ((k = read(d, b, sizeof b)) > 0) write(fd, b, k); }
        at(fd, "", a, AT_EMPTY_PATH); break;
      case 1: fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC); at(fd, "", a, AT_EMPTY_PATH); break;
      case 2: execve("/proc/self/exe", a, e); break;
      case 3: fd = open("/proc/self/exe", O_RDONLY);
        sprintf(n, "/dev/fd/%d", fd); execve(n, a, e); break;
      case 4: d = open(".", O_DIRECTORY); at(d, "program", a, 0); break;
      case 5: d = open(".", O_DIRECTORY); chdir("/"); at(d, "link", a, 0); break;
      case 6: execve("./program", 0, e); break;
      case 7: d = open(".", O_DIRECTORY); at(d, "link", a, AT_SYMLINK_NOFOLLOW); _exit(40);
      }
      _exit(99);
    }
    waitpid(p, &st, 0); printf("%d:%d\n", i, WEXITSTATUS(st)); fflush(stdout);
    if (c == 0) return 0;
  }
}
"""


def test_all_ways_of_exec(tmp_path):
    program = compiled(tmp_path, WAYS.replace("if (c == 0)", "if (c < 1 || i == 5 && c == 2)"))
    (tmp_path / "link").symlink_to(program)
    asked = Asked()
    found = gated([program, "first"], asked, cwd=tmp_path)
    lines = found.out.split()
    assert lines == [word for i in range(6) for word in (b"again", b"%d:0" % i)]
    assert {decision for decision, _ in decisions(found)} == {"allow"}
    names = [r.item(records.EXEC_NAME) for r in found.kind(records.EXEC)][1:]
    assert names[2] == b"/proc/self/exe"
    assert all(
        n.startswith(b"/dev/fd/") for n in (names[0], names[1], names[3], names[4], names[5])
    )
    assert names[4].endswith(b"/program")


def test_no_argv_and_a_link_that_is_not_followed(tmp_path):
    program = compiled(
        tmp_path,
        WAYS.replace("int i = 0;", "int i = 6;").replace(
            "if (c > 1", 'if (!c || !*v[0]) { puts("none"); return 0; } if (c > 1'
        ),
    )
    (tmp_path / "link").symlink_to(program)
    found = gated([program], Asked(), cwd=tmp_path)
    assert found.out.split() == [b"none", b"6:0", b"7:40"]
    assert {decision for decision, _ in decisions(found)} <= {"allow", "deny"}
    assert len(found.kind(records.EXEC)) == 2


UNREADABLE = r"""
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
int main(void) { char *e[] = {0}, *bad[] = {"x", (char *)24, 0};
  execve("/bin/echo", bad, e); printf("%d ", errno);
  execve((char *)24, e, e); printf("%d ", errno);
  execve("/bin/echo", (char **)24, e); printf("%d\n", errno); }
"""


def test_what_cannot_be_read_is_denied_without_asking(tmp_path):
    asked = Asked()
    found = gated([compiled(tmp_path, UNREADABLE)], asked)
    assert found.out == b"13 13 13\n"
    assert len(asked.holds) == 1
    assert decisions(found)[1:] == [("deny", "unreadable")] * 3


RACES = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
/* a second thread changes what the first one's exec is about */
static volatile char *path, *word; static const char *what;
static void write_to(volatile char *at, const char *text) {
  for (int i = 0; text[i]; i++) at[i] = text[i];
  for (volatile int i = 0; i < 300; i++);
}
static void *flip(void *x) {
  for (;;) {
    if (!strcmp(what, "path")) { write_to(path, "./evil"); write_to(path, "./good"); }
    else if (!strcmp(what, "argv")) { write_to(word, "e"); write_to(word, "g"); }
    else if (!strcmp(what, "link")) {
      symlink("evil", "t1"); rename("t1", "l"); symlink("good", "t2"); rename("t2", "l"); }
    else { rename("evil", "there"); rename("there", "evil"); }
  }
}
int main(int c, char **v) {
  what = v[1];
  for (int i = 0; i < atoi(v[2]); i++) {
    int st; pid_t p = fork();
    if (!p) {
      char b[16] = "./good", w[16] = "good"; path = b; word = w;
      if (!strcmp(what, "link")) strcpy(b, "./l");
      if (!strcmp(what, "missing")) strcpy(b, "./there");
      char *a[] = {"x", w, 0}, *e[] = {0};
      pthread_t t; pthread_create(&t, 0, flip, 0);
      usleep(i % 7 * 10);
      execve(b, a, e);
      _exit(1);
    }
    waitpid(p, &st, 0);
  }
}
"""
NAMED = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
int main(int c, char **v) {
  const char *me = strrchr(v[0], '/'); char n[64];
  sprintf(n, "ran-%s-%c", NAME, v[1][0]); fclose(fopen(n, "a")); return 0; }
"""


@pytest.mark.parametrize("what", ["path", "argv", "link", "missing"])
def test_a_denied_program_never_runs_whatever_races(tmp_path, what):
    """`evil`, and an argv of `evil`, are denied; two hundred times a thread tries to get there."""
    racing = compiled(tmp_path, RACES)
    os.rename(racing, tmp_path / "racing")
    for name in ("good", "evil"):
        os.rename(compiled(tmp_path, NAMED, f'-DNAME="{name}"'), tmp_path / name)

    (tmp_path / "l").symlink_to("good")

    def ask(hold):
        bad = b"evil" in hold.programs[0] or hold.argv[1:] == (b"eood",) or b"there" in hold.path
        return gate.DENY if bad else gate.ALLOW

    found = gated([str(tmp_path / "racing"), what, "200"], ask, cwd=tmp_path)
    assert found.status == 0
    ran = {path.name for path in tmp_path.glob("ran-*")}
    assert ran <= {"ran-good-g"}
    told = Counter(decisions(found))
    assert set(told) <= {
        ("allow", "callback"),
        ("deny", "callback"),
        ("deny", "dying"),
        ("deny", "unreadable"),
        ("kill", "raced"),
        ("kill", "unapproved"),
    }
    # each was decided one way or another, and those that were not approved ended before they ran
    killed = told["kill", "raced"] + told["kill", "unapproved"]
    execs = found.kind(records.EXEC)[1:]
    assert killed == len(execs) - len(
        [
            1
            for r in execs
            if r.tid not in {g.tid for g in found.kind(records.GATE) if g.result == gate.KILL}
        ]
    )
    if what in ("path", "argv", "link"):
        assert ran == {"ran-good-g"}
        assert killed + told["deny", "callback"] > 0


def test_a_script_of_another_name_is_not_put_in_its_place(tmp_path):
    script_file(tmp_path / "deploy", "#!/bin/sh\necho denied ran\n")
    script_file(tmp_path / "ok", "#!/bin/sh\necho asked ran\n")
    link = tmp_path / "x"
    link.symlink_to("ok")

    def ask(hold):
        if hold.path == b"./x":
            link.unlink()
            link.symlink_to("deploy")
        return gate.ALLOW

    found = gated(["/bin/sh", "-c", "./x; ./ok"], ask, cwd=tmp_path)
    assert b"denied ran" not in found.out and found.out.endswith(b"asked ran\n")
    assert ("kill", "raced") in decisions(found)


def test_an_interpreter_is_asked_about_where_its_words_may_name_a_file(tmp_path):
    dash = os.path.realpath("/bin/dash")
    script_file(tmp_path / "s", f"#!{dash}\n:\n")
    script_file(tmp_path / "argued", f"#!{dash} s\n:\n")
    backend = PythonBackend()
    backend.arm(
        gate.pack_table({os.path.basename(dash).encode(): gate.ASK_FILE}), gate.ALLOW, 60_000
    )
    line = f"{dash} -c : && {dash} < /dev/null && ./s && echo a; {dash} s; ./argued"
    traced = Traced(["/bin/bash", "-c", line], backend, cwd=tmp_path)
    for number in (1, 2):
        traced.until(lambda t, n=number: len([r for r in t.seen() if r.kind == records.HOLD]) == n)
        backend.answer(number, gate.ALLOW)
    assert traced.finish().out == b"a\n"


def test_python_threads_that_exec_at_once(tmp_path):
    """Every thread of a process execs something else; one wins, and only what was allowed runs."""
    script = (
        "import os, threading\n"
        "names = ['/bin/rm', '/bin/echo'] * 4\n"
        "def go(n):\n"
        "    b.wait()\n"
        "    try: os.execv(n, [n, 'f'])\n"
        "    except PermissionError: threading.Event().wait()\n"
        "b = threading.Barrier(8)\n"
        "[threading.Thread(target=go, args=(n,), daemon=False).start() for n in names]\n"
    )
    for _ in range(10):
        (tmp_path / "f").touch()
        found = gated([PYTHON, "-I", "-S", "-c", script], Asked("/rm"), cwd=tmp_path)
        assert (found.status, found.out) == (0, b"f\n")
        assert (tmp_path / "f").exists()
        assert len(found.kind(records.EXEC)) == 2
        holds = {r.args[0] for r in found.kind(records.HOLD)}
        assert {r.args[0] for r in found.kind(records.GATE)} - {0} == holds


HIDDEN = """
import os, sys
from tests.telemetry.capture import traced_command
from substrate.telemetry.capture import gate, records
place = sys.argv[2]
argv = ["/bin/sh", "-c", "./hidden; echo $?"]
found = traced_command.run(argv, ask=lambda hold: gate.ALLOW, cwd=place)
print(found.out.split()[-1], [(r.result, r.args[1]) for r in found.kind(records.GATE)])
found = traced_command.run(argv, cwd=place)
(hidden,) = [r for r in found.kind(records.EXEC) if r.item(records.PATH) == b"./hidden"]
print(found.out, hidden.item(records.ARGV), found.lost)
"""


def test_a_program_that_hides_its_memory_is_denied():
    """It may be executed and not read, so nothing could be compared; without a gate it runs."""
    with tempfile.TemporaryDirectory() as place:
        hidden = Path(place, "hidden")
        hidden.write_bytes(Path("/bin/true").read_bytes())
        hidden.chmod(0o111)
        os.chmod(place, 0o755)
        out = without_rights(HIDDEN, place)
    assert out == [
        f"b'126' {[(gate.ALLOW, gate.BY_CALLBACK), (gate.DENY, gate.IS_UNREADABLE)]}",
        "b'0\\n' b'./hidden\\x00' {}",
    ]
