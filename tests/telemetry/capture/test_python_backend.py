"""The python backend tells all that real processes do, and of each what the kernel says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from substrate.telemetry.capture import calls, records
from tests.telemetry.capture.traced_command import PYTHON, Run, compiled, run

x86_only = pytest.mark.skipif(calls.MACHINE != "x86_64", reason="calls of x86 only")


def assert_whole(found: Run) -> None:
    """Every task is introduced before it does anything, and leaves once."""
    known, gone = {found.pid}, set()
    for record in found.records:
        if record.kind == records.EXEC and record.args[0]:
            assert record.args[0] in known
            gone.add(record.args[0])
        assert record.tid in known - gone, record
        if record.kind == records.FORK:
            assert record.result not in known
            known.add(record.result)
        elif record.kind == records.EXIT:
            gone.add(record.tid)
    assert known == gone
    assert not found.lost
    assert not found.kind(records.TROUBLE)


def paths(found: list) -> list[bytes]:
    return [record.item(records.PATH) for record in found]


def test_a_shell_pipeline(tmp_path):
    (tmp_path / "f").write_text("b\na\n")
    found = run(["/bin/sh", "-c", "cat f | sort | head -1; exit 3"], cwd=tmp_path)
    assert os.waitstatus_to_exitcode(found.status) == 3
    assert found.out == b"a\n"
    assert_whole(found)
    assert next(words[0] for words in found.execs()) == b"/bin/sh"
    assert sorted(words[0] for words in found.execs()[1:]) == [b"cat", b"head", b"sort"]
    (cat,) = [r for r in found.kind(records.EXEC) if r.item(records.EXE).endswith(b"/cat")]
    assert found.kind(records.EXEC)[0].item(records.CWD) == os.fsencode(tmp_path)
    descriptors = {
        struct.unpack("=I", item[:4])[0]: item[8:] for tag, item in cat.items if tag == records.FD
    }
    (sort,) = [r for r in found.kind(records.EXEC) if r.item(records.EXE).endswith(b"/sort")]
    read_from = next(item[8:] for tag, item in sort.items if tag == records.FD)
    assert descriptors[1] == read_from and read_from.startswith(b"pipe:[")
    assert b"f" in paths([r for r in found.calls("openat") if r.tid == cat.tid])
    last = found.records[-1]
    assert (last.kind, last.tid, last.result) == (records.EXIT, found.pid, 3 << 8)


COUNTS = r"""
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <unistd.h>
extern char **environ;
static void *opens(void *name) {
  for (int i = 0; i < 200; i++) { int fd = open(name, O_RDONLY); if (fd < 0) abort(); close(fd); }
  return 0;
}
static volatile int alarms;
static void on_alarm(int s) { alarms++; }
int main(int c, char **v) {
  pthread_t t[4];
  close(open("counted", O_CREAT | O_WRONLY, 0600));
  if (!strcmp(v[1], "threads")) {
    for (int i = 0; i < 4; i++) pthread_create(t + i, 0, opens, "counted");
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
  } else if (!strcmp(v[1], "names")) {
    for (int i = 0; i < 50; i++) {
      mkdir("d", 0700); rename("d", "e"); symlink("x", "l"); link("counted", "h");
      unlink("l"); unlink("h"); rmdir("e"); chmod("counted", 0600 + (i & 1));
    }
  } else if (!strcmp(v[1], "programs")) {
    for (int i = 0; i < 20; i++) {
      pid_t p; char *a[] = {"true", 0}; int st;
      if (i % 2) posix_spawn(&p, "/bin/true", 0, 0, a, environ);
      else if (i % 4) { p = vfork(); if (!p) { execv("/bin/true", a); _exit(1); } }
      else { p = fork(); if (!p) { execv("/bin/true", a); _exit(1); } }
      waitpid(p, &st, 0); if (st) abort();
    }
  } else if (!strcmp(v[1], "connects")) {
    int l = socket(AF_INET, SOCK_STREAM, 0); struct sockaddr_in a = {AF_INET};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK); socklen_t n = sizeof a;
    bind(l, (void *)&a, n); listen(l, 64); getsockname(l, (void *)&a, &n);
    for (int i = 0; i < 30; i++) {
      int s = socket(AF_INET, SOCK_STREAM, 0);
      if (connect(s, (void *)&a, n)) abort();
      close(accept(l, 0, 0)); close(s);
    }
    printf("%d\n", ntohs(a.sin_port));
  } else if (!strcmp(v[1], "alarms")) {
    struct sigaction on = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &on, 0);
    struct itimerval each = {{0, 2000}, {0, 2000}}; setitimer(ITIMER_REAL, &each, 0);
    opens("counted"); opens("counted");
    while (!alarms) pause();
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("counting"), COUNTS)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("threads", {"openat": 800}),
        ("alarms", {"openat": 400}),
        (
            "names",
            dict.fromkeys(("mkdir", "rename", "symlink", "link", "rmdir", "chmod"), 50)
            | {"unlink": 100},
        ),
        ("connects", {"connect": 30, "accept": 30, "socket": 31}),
    ],
)
@x86_only
def test_known_counts(counting, tmp_path, what, expected):
    found = run([counting, what], cwd=tmp_path)
    assert found.status == 0
    assert_whole(found)
    ours = [
        r
        for r in found.kind(records.CALL)
        if r.name != "openat" or (r.item(records.PATH) == b"counted" and not r.args[2] & os.O_CREAT)
    ]
    assert all(not record.flags and record.result >= 0 for record in ours)
    counted = Counter(record.name for record in ours)
    assert {name: counted[name] for name in expected} == expected
    if what == "threads":
        assert sum(r.args[1] for r in found.kind(records.FORK)) == 4


def test_known_counts_of_programs(counting, tmp_path):
    found = run([counting, "programs"], cwd=tmp_path)
    assert found.status == 0
    assert_whole(found)
    assert found.execs()[1:] == [[b"true"]] * 20
    assert len(found.kind(records.FORK)) == 20
    assert len(found.kind(records.EXIT)) == 21


def test_connect_and_accept_tell_addresses(counting, tmp_path):
    found = run([counting, "connects"], cwd=tmp_path)
    port = int(found.out)
    for record in found.calls("connect"):
        family, theirs, address = struct.unpack_from("=HH4s", record.item(records.ADDRESS))
        assert (family, socket.ntohs(theirs)) == (socket.AF_INET, port)
        assert address == bytes([127, 0, 0, 1])
        assert record.item(records.BASE).startswith(b"socket:[")
    peers = [struct.unpack_from("=H2x4s", r.item(records.ADDRESS)) for r in found.calls("accept")]
    assert peers == [(socket.AF_INET, bytes([127, 0, 0, 1]))] * 30  # it did not ask


def test_python_threads_and_their_files(tmp_path):
    script = (
        "import threading, pathlib\n"
        "def one(i):\n"
        "    for j in range(5): pathlib.Path(f't{i}-{j}').write_text('x')\n"
        "all_ = [threading.Thread(target=one, args=(i,)) for i in range(8)]\n"
        "[t.start() for t in all_]; [t.join() for t in all_]\n"
    )
    found = run([PYTHON, "-I", "-S", "-c", script], cwd=tmp_path)
    assert found.status == 0
    assert_whole(found)
    opened = [r.item(records.OPENED) for r in found.calls("openat") if r.args[2] & os.O_CREAT]
    assert sorted(opened) == sorted(
        os.fsencode(tmp_path / f"t{i}-{j}") for i in range(8) for j in range(5)
    )


PATHS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
  char *m = mmap(0, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(m + 2 * 4096, 4096, PROT_NONE);
  char *end = m + 2 * 4096;
  strcpy(end - sizeof "at-the-end", "at-the-end"); open(end - sizeof "at-the-end", O_RDONLY);
  strcpy(m + 4096 - 4, "over-two"); open(m + 4096 - 4, O_RDONLY);
  memcpy(end - 4, "open", 4); open(end - 4, O_RDONLY);      /* no NUL before the hole */
  open((char *)8, O_RDONLY); open(0, O_RDONLY);
  char *far = m + 3 * 4096; memset(far, 'y', 4500); far[4500] = 0; open(far, O_RDONLY);
  memset(far, 'z', 4095); far[4095] = 0; open(far, O_RDONLY);
  return 0;
}
"""


def test_paths_at_the_end_of_their_memory(tmp_path):
    found = run([compiled(tmp_path, PATHS)], cwd=tmp_path)
    assert found.status == 0
    asked = found.calls("openat")[-7:]
    assert [(r.item(records.PATH), r.flags, r.result) for r in asked] == [
        (b"at-the-end", 0, -2),
        (b"over-two", 0, -2),
        (b"open", records.UNREADABLE, -14),
        (None, records.UNREADABLE, -14),
        (None, 0, -14),
        (b"y" * 4096, records.CUT, -36),
        (b"z" * 4095, 0, -36),
    ]


KINDS_OF_NAMES = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int c, char **v) {
  mkdir("d", 0700); int d = open("d", O_DIRECTORY);
  close(openat(d, "in", O_CREAT | O_WRONLY, 0600));
  struct { uint64_t flags, mode, resolve; } how = {O_RDONLY, 0, 8};
  close(syscall(437, d, "in", &how, sizeof how));
  symlinkat("in", d, "link"); close(openat(d, "link", O_RDONLY));
  renameat2(d, "in", d, "link", 2 /* EXCHANGE */);
  int t = open("d", O_TMPFILE | O_WRONLY, 0600);
  if (t >= 0) { char n[64]; sprintf(n, "/proc/self/fd/%d", t);
    linkat(AT_FDCWD, n, d, "from-tmpfile", AT_SYMLINK_FOLLOW); }
  fchmod(d, 0755); futimens(d, 0);
  chdir("d"); close(open("in", O_RDONLY)); fchdir(d); chdir("/");
  return 0;
}
"""


@x86_only
def test_directories_links_and_exchanges(tmp_path):
    found = run([compiled(tmp_path, KINDS_OF_NAMES)], cwd=tmp_path)
    assert found.status == 0
    inside = os.fsencode(tmp_path / "d")
    made = next(r for r in found.calls("openat") if r.item(records.PATH) == b"in")
    assert made.item(records.BASE) == inside
    assert made.item(records.OPENED) == inside + b"/in"
    (how,) = found.calls("openat2")
    assert struct.unpack("=3Q", how.item(records.HOW)) == (0, 0, 8)
    (link,) = found.calls("symlinkat")
    assert (link.item(records.PATH), link.item(records.PATH2)) == (b"in", b"link")
    assert (link.item(records.BASE), link.item(records.BASE2)) == (None, inside)
    followed = next(r for r in found.calls("openat") if r.item(records.PATH) == b"link")
    assert followed.item(records.OPENED) == inside + b"/in"
    (swap,) = found.calls("renameat2")
    assert (swap.item(records.BASE), swap.item(records.BASE2), swap.args[4]) == (inside, inside, 2)
    (linked,) = found.calls("linkat")
    assert linked.result == 0 and linked.item(records.PATH).startswith(b"/proc/self/fd/")
    (mode,) = found.calls("fchmod")
    assert mode.item(records.BASE) == inside
    (times,) = found.calls("utimensat")
    assert (times.item(records.PATH), times.item(records.BASE)) == (None, inside)
    assert [r.item(records.CWD) for r in found.calls("chdir", "fchdir")] == [inside, inside, b"/"]


CHROOT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  if (geteuid() && unshare(CLONE_NEWUSER)) return 77;
  mkdir("jail", 0700); close(open("jail/f", O_CREAT | O_WRONLY, 0600));
  if (chroot("jail") || chdir("/")) return 1;
  return open("/f", O_RDONLY) < 0;
}
"""


def test_a_path_below_a_chroot_is_the_kernels(tmp_path):
    found = run([compiled(tmp_path, CHROOT)], cwd=tmp_path)
    if os.waitstatus_to_exitcode(found.status) == 77:
        pytest.skip("no user namespaces")
    assert found.status == 0
    jail = os.fsencode(tmp_path / "jail")
    (change,) = found.calls("chroot")
    assert change.item(records.ROOT) == jail
    last = found.calls("openat", "open")[-1]
    assert (last.item(records.PATH), last.item(records.OPENED)) == (b"/f", jail + b"/f")


OTHER_TABLES = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
static long int80(long nr, long b, long c, long d) {
  long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(b), "c"(c), "d"(d) : "memory",
    "r8", "r9", "r10", "r11"); return r; }
int main(void) {
  char *m = mmap((void *)0x10000000, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  strcpy(m, "/etc/hostname"); printf("%ld\n", int80(5, (long)m, 0, 0) > 0);
  unsigned a[3] = {16 /* AF_NETLINK */, 3, 0}; memcpy(m + 256, a, sizeof a);
  printf("%ld\n", int80(102, 1, (long)m + 256, 0) > 0);
  int r = syscall(0x40000000 | 257, -100, "/etc/hostname", 0, 0); printf("%d\n", r);
  return 0;
}
"""


@x86_only
def test_calls_of_other_tables_are_seen(tmp_path):
    found = run([compiled(tmp_path, OTHER_TABLES)])
    assert found.status == 0
    if not found.out.startswith(b"1\n"):
        pytest.skip("no 32-bit calls in this kernel")
    others = [r for r in found.kind(records.CALL) if r.abi != calls.NATIVE]
    assert [(r.abi, r.name) for r in others] == [
        (calls.I386, "open"),
        (calls.I386, "socket"),
        (calls.X32, "openat"),
    ]
    opened, made, wide = others
    assert opened.item(records.OPENED) == b"/etc/hostname"
    assert made.args == (16, 3, 0, 0, 0, 0)
    assert made.item(records.OPENED).startswith(b"socket:[")
    assert wide.item(records.PATH) == b"/etc/hostname"


I386_PROGRAM = r"""
static long call(long nr, long b, long c, long d) {
  long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(b), "c"(c), "d"(d) : "memory");
  return r; }
void _start(void) {
  call(39, (long)"made-by-32", 0700, 0);
  static char *argv[] = {"/bin/echo", "from 32 bits", 0};
  call(11, (long)"/bin/echo", (long)argv, 0); call(1, 9, 0, 0);
}
"""


@x86_only
def test_a_program_of_32_bits(tmp_path):
    try:
        program = compiled(tmp_path, I386_PROGRAM, "-m32", "-nostdlib", "-static")
    except subprocess.CalledProcessError:
        pytest.skip("the compiler makes no 32-bit programs")
    found = run([program], cwd=tmp_path)
    assert found.out == b"from 32 bits\n"
    (made,) = found.calls("mkdir")
    assert (made.abi, made.item(records.PATH), made.result) == (calls.I386, b"made-by-32", 0)
    first, second = found.kind(records.EXEC)
    assert first.item(records.EXEC_NAME) == os.fsencode(program)  # its auxv is of 32 bits
    assert (second.abi, second.item(records.PATH)) == (calls.I386, b"/bin/echo")
    assert found.execs()[1] == [b"/bin/echo", b"from 32 bits"]


SOCKETS = """
import os, socket, struct
a, b = socket.socketpair()
r, w = os.pipe()
name = b"\\0substrate-%d" % os.getpid()
server = socket.socket(socket.AF_UNIX); server.bind(name); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect(name)
peer, _ = server.accept()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0))
v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
v.sendto(b"q" * 20, u.getsockname())
v.sendmsg([b"one", b"two"], [], 0, u.getsockname())
a.sendall(b"z" * 600)
print(u.getsockname()[1])
"""


@x86_only
def test_sockets_and_what_is_sent(tmp_path):
    found = run([PYTHON, "-I", "-S", "-c", SOCKETS], cwd=tmp_path)
    assert found.status == 0, found.out
    port = int(found.out)
    (pair,) = found.calls("socketpair")
    assert len(pair.item(records.PAIR)) == 8
    (connect,) = found.calls("connect")
    assert connect.item(records.ADDRESS)[:13] == b"\1\0\0substrate-"
    (to,) = found.calls("sendto")  # long ones on connected sockets are not stopped
    assert to.item(records.DATA) == b"q" * 20
    assert struct.unpack_from("=H", to.item(records.ADDRESS), 2)[0] == socket.htons(port)
    (message,) = found.calls("sendmsg")
    assert message.item(records.DATA) is None  # in pieces
    assert message.item(records.ADDRESS) == to.item(records.ADDRESS)


THREAD_EXEC = r"""
#include <pthread.h>
#include <unistd.h>
static void *go(void *x) { execl("/bin/echo", "echo", "from a thread", (char *)0); return 0; }
static void *wait_(void *x) { pause(); return 0; }
int main(void) { pthread_t t; for (int i = 0; i < 3; i++) pthread_create(&t, 0, wait_, 0);
  pthread_create(&t, 0, go, 0); pause(); }
"""


@pytest.mark.parametrize("level", ["files", "all"])
def test_an_exec_by_a_thread_goes_on_as_the_leader(tmp_path, level):
    found = run([compiled(tmp_path, THREAD_EXEC)], level=level, filtered=level == "files")
    assert (found.status, found.out) == (0, b"from a thread\n")
    assert_whole(found)
    caller = found.kind(records.FORK)[-1].result
    execed = found.kind(records.EXEC)[-1]
    assert (execed.tid, execed.args[0]) == (found.pid, caller)
    exits = found.kind(records.EXIT)
    assert [e.result for e in exits if e.tid == found.pid] == [0]
    assert caller not in [e.tid for e in exits]
    assert len(exits) == 4


UNTRACED = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static int child(const char *name) {
  int fd = open(name, O_CREAT | O_WRONLY, 0600); _exit(fd < 0 ? errno : 0); }
int main(void) {
  int st; uint64_t a[8] = {CLONE_UNTRACED, 0, 0, 0, SIGCHLD};
  long p = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0);
  if (!p) child("by-clone");
  waitpid(p, &st, __WALL); printf("%d\n", st);
  p = syscall(435, a, sizeof a); if (!p) child("by-clone3");
  printf("%s\n", p < 0 ? strerror(errno) : "made");
  a[0] = 0; p = syscall(435, a, sizeof a); if (!p) child("traced");
  waitpid(p, &st, 0); printf("%d\n", st);
}
"""


@pytest.mark.parametrize("level", ["files", "all"])
def test_nothing_becomes_untraced(tmp_path, level):
    program = compiled(tmp_path, UNTRACED)
    found = run([program], cwd=tmp_path, level=level, filtered=level == "files")
    assert found.out == b"0\nFunction not implemented\n0\n"
    assert_whole(found)
    made = [r.item(records.PATH) for r in found.calls("openat", "open") if r.args[2] & os.O_CREAT]
    if level == "files":  # by the filter there is no clone3(2), and libc uses clone(2)
        assert made == [b"by-clone"]
        assert len(found.kind(records.FORK)) == 1
        return
    assert made == [b"by-clone", b"traced"]
    (denied,) = found.kind(records.DENIED)
    assert (denied.name, denied.result) == ("clone3", -38)
    first, second = found.kind(records.FORK)
    assert [(r.args[0], r.args[1]) for r in (first, second)] == [(0x11, 0), (0, 0)]


def test_a_daemon_is_followed_to_its_end(tmp_path):
    script = (
        "import os, sys\n"
        "r, w = os.pipe()\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "while os.getppid() == int(sys.argv[1]): pass\n"
        "open('late', 'w').close()\n"
    )
    found = run([PYTHON, "-I", "-S", "-c", script, str(os.getpid())], cwd=tmp_path)
    assert found.status == 0
    assert_whole(found)
    late = [r for r in found.calls("openat") if r.item(records.PATH) == b"late"]
    assert late and late[0].tid not in (found.pid, found.kind(records.FORK)[0].result)
    ended = [r.tid for r in found.records if r.kind == records.EXIT]
    assert {found.pid, late[0].tid} <= set(ended)


RESTARTED = r"""
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static struct sockaddr_un a = {AF_UNIX, "s"};
static int times;
static void on(int s) {
  if (++times == 3) { int c = socket(AF_UNIX, SOCK_STREAM, 0); connect(c, (void *)&a, sizeof a); }
  else ualarm(20000, 0); }
int main(void) {
  struct sigaction sa = {.sa_handler = on, .sa_flags = SA_RESTART}; sigaction(SIGALRM, &sa, 0);
  int l = socket(AF_UNIX, SOCK_STREAM, 0); bind(l, (void *)&a, sizeof a); listen(l, 1);
  ualarm(20000, 0);
  return accept(l, 0, 0) < 0;
}
"""


@x86_only
def test_an_interrupted_call_is_told_as_restarted(tmp_path):
    found = run([compiled(tmp_path, RESTARTED)], cwd=tmp_path)
    assert found.status == 0
    results = [(r.flags, r.result > 0) for r in found.calls("accept")]
    assert results == [(records.RESTARTED, False)] * 3 + [(0, True)]


def test_a_call_that_never_ended_is_told(tmp_path):
    script = "import os, signal, threading, socket\ns = socket.create_server(('127.0.0.1', 0))\nthreading.Timer(0.1, os._exit, (4,)).start()\ns.accept()"
    found = run([PYTHON, "-I", "-c", script])
    assert os.waitstatus_to_exitcode(found.status) == 4
    assert_whole(found)
    (accept,) = found.calls("accept", "accept4")
    assert accept.flags == records.UNOBSERVED


def test_credentials_and_ids(tmp_path):
    found = run(["/bin/true"])
    (execed,) = found.kind(records.EXEC)
    ids = (os.getuid(), os.geteuid(), os.getgid(), os.getegid())
    assert struct.unpack("=6I", execed.item(records.CREDENTIALS)) == (*ids, 0, 0)
    assert struct.unpack("=I", execed.item(records.PIDS)) == (found.pid,)


def test_a_script_is_told_from_its_interpreter(tmp_path):
    (tmp_path / "s").write_text("#!/bin/sh\nexec /bin/echo ./s\n")
    (tmp_path / "s").chmod(0o755)
    found = run(["/bin/sh", "-c", "exec ./s"], cwd=tmp_path)
    assert [(r.item(records.EXEC_NAME), r.args[1]) for r in found.kind(records.EXEC)] == [
        *((b"/bin/sh", 0), (b"./s", 1), (b"/bin/echo", 0)),
    ]


def test_a_failed_exec_is_a_call(tmp_path):
    found = run(["/bin/sh", "-c", "exec ./missing a"], cwd=tmp_path)
    assert os.waitstatus_to_exitcode(found.status) == 127
    (failed,) = found.calls("execve")
    assert (failed.item(records.PATH), failed.result) == (b"./missing", -2)


def test_without_a_filter_the_same_is_told(tmp_path):
    command = ["/bin/sh", "-c", "echo a > f; mkdir -p d/e; mv f d; rm -r d; exec ./missing"]
    with_filter = run(command, cwd=tmp_path)
    without = run(command, cwd=tmp_path, filtered=False)
    assert_whole(without)
    assert Counter(map(told, with_filter.records)) == Counter(map(told, without.records))


def told(record) -> tuple:
    result = record.result if record.kind == records.CALL else 0
    return record.kind, record.name, record.item(records.PATH), record.item(records.ARGV), result


def test_every_call_is_told_when_asked(tmp_path):
    found = run(["/bin/sh", "-c", "echo $$; umask 077"], level="all", filtered=False)
    assert_whole(found)
    numbers = Counter(record.nr for record in found.kind(records.CALL))
    wanted = {"x86_64": {"getpid": 39, "write": 1, "umask": 95}, "aarch64": {"umask": 166}}
    for number in wanted[calls.MACHINE].values():
        assert numbers[number]
    assert found.kind(records.CALL)[-1].flags == records.UNOBSERVED  # exit_group


STRACE = re.compile(rb"^(\d+) +(\w+)\((.*)= (-?\d+|\?)")
UNFINISHED = re.compile(rb"^(\d+) +(\w+\(.*) <unfinished \.\.\.>$")
RESUMED = re.compile(rb"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
TEXT = re.compile(rb'"((?:[^"\\]|\\.)*)"')


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_the_same_set_as_strace(tmp_path):
    command = [
        "/bin/sh",
        "-c",
        "mkdir d; echo a > d/f; ln -s f d/l; cat d/l d/none | sort; rm -r d",
    ]
    names = ["openat", "mkdir", "unlinkat", "symlink", "symlinkat", "chdir", "execve", "pipe2"]
    place = tmp_path / "here"
    place.mkdir()
    log = tmp_path / "log"
    subprocess.run(
        ["strace", "-f", "-o", log, "-s", "4096", "-e", f"trace={','.join(names)}", *command],
        cwd=place,
        capture_output=True,
    )
    theirs = set()
    begun = {}
    for line in log.read_bytes().splitlines():
        if match := UNFINISHED.match(line):
            begun[match[1]] = match[2]
            continue
        if match := RESUMED.match(line):
            line = match[1] + b" " + begun.pop(match[1]) + match[2]
        if match := STRACE.match(line):
            text = TEXT.search(line)
            theirs.add((match[2].decode(), text and text[1], int(match[4]) >= 0))
    found = run(command, cwd=place)
    ours = set()
    for record in found.records:
        if record.kind in (records.CALL, records.EXEC) and record.name in names:
            path = record.item(records.PATH)
            ours.add((record.name, path, record.result >= 0))
    assert ours == theirs


def test_no_stray_import_of_python_ptrace():
    """GPL-2.0-only: one module has it, which is loaded in the tracer's process only."""
    root = Path(__file__).resolve().parents[3]
    having = [
        path.relative_to(root)
        for top in ("substrate", "world", "telemetry", "replay", "graph", "shim")
        for path in (root / top).rglob("*.py")
        if re.search(r"^\s*(from|import) ptrace\b", path.read_text(), re.MULTILINE)
    ]
    assert set(map(str, having)) == {"telemetry/capture/reference/requests.py"} | (
        {"substrate/telemetry/capture/reference/requests.py"} & set(map(str, having))
    )
    import sys

    assert "ptrace" not in sys.modules
