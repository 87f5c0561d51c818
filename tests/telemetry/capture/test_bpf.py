"""The bpf backend sees all that a tree does, tells what it could not, and nothing of others.

Real programs on the real kernel; where bpf(2) is not to be had the tests are skipped with the
probe's own explanation.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from substrate.telemetry.capture import bpf, bpf_system, calls, records
from substrate.telemetry.capture.backend import CaptureError
from tests.telemetry.capture.bpf_tracing import Tracing, compile_c, read, trace

WHY_NOT = bpf.probe()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"bpf: {WHY_NOT}")
x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 only")

HEADERS = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
"""


def given(one):
    """The items of what a call was given, without what its descriptor is, and from where it went."""
    return tuple(item for item in one.items if item[0] not in (records.BASE, records.LOCAL))


def calls_of(seen, name):
    return [one for one in seen if one.kind == records.CALL and one.name == name]


def paths(seen, name="openat"):
    return [one.item(records.PATH) for one in calls_of(seen, name)]


def forks(seen):
    return [one for one in seen if one.kind == records.FORK]


def exits(seen):
    return [one for one in seen if one.kind == records.EXIT]


def test_all_calls_of_a_known_number_are_there_with_results(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    int main(int c, char **v) {
        char name[64]; struct stat st;
        chdir(v[1]);
        for (int i = 0; i < 3000; i++) {
            sprintf(name, "f%d", i);
            int fd = open(name, O_CREAT | O_WRONLY, 0600);
            close(fd);
            if (i % 2) rename(name, "last"); else unlink(name);
            stat(name, &st);
        }
        for (int i = 0; i < 40; i++) { if (!fork()) _exit(i); wait(0); }
    }""",
    )
    seen = trace([program, str(tmp_path)])
    names = [f"f{i}".encode() for i in range(3000)]
    opened = [one for one in calls_of(seen, "openat") if one.item(records.PATH) in names]
    assert [one.item(records.PATH) for one in opened] == names
    assert {one.result for one in opened} == {3} and {one.args[3] for one in opened} == {0o600}
    looked = [one for one in calls_of(seen, "newfstatat") if one.item(records.PATH) in names]
    assert [one.result for one in looked] == [-errno.ENOENT] * 3000
    assert len(calls_of(seen, "unlink")) == len(calls_of(seen, "rename")) == 1500
    assert {one.item(records.PATH2) for one in calls_of(seen, "rename")} == {b"last"}
    assert len(forks(seen)) == 40
    assert [one.result >> 8 for one in exits(seen)] == [*range(40), 0]
    assert all(a.time_ns <= b.time_ns for a, b in itertools.pairwise(opened))


def test_records_are_exactly_as_they_are_documented(tmp_path):
    """Byte for byte what records.make_record writes."""
    tracing = Tracing(["/bin/true"])
    tracing.go()
    tracing.finish()
    tracing.close()
    again = b""
    for head, at, end in records.read_records(tracing.data):
        items = tuple((tag, text) for tag, _, text in records.read_items(tracing.data, at, end))
        again += records.make_record(
            head[1], flags=head[2], abi=head[3], tid=head[4], nr=head[5], time_ns=head[6],
            result=head[7], args=head[8:14], items=items,
        )  # fmt: skip
    assert again == tracing.data


@pytest.mark.parametrize("length", [1, 390, 391, 392, 400, 408, 1000, 4094, 4095])
def test_paths_of_all_lengths_are_whole(tmp_path, length):
    path = ("./" * 2100)[: length - 1] + "x"
    program = compile_c(
        tmp_path,
        HEADERS
        + """int main(int c, char **v) {
        chdir("/"); open(v[1], O_RDONLY); rename(v[1], v[2]); rename(v[2], v[1]); }""",
    )
    other = path[:-1] + "y"
    seen = trace([program, path, other])
    found = calls_of(seen, "openat")[-1]
    assert (found.item(records.PATH), found.flags) == (path.encode(), 0)
    assert found.result == -errno.ENOENT
    for one, (a, b) in zip(calls_of(seen, "rename"), [(path, other), (other, path)], strict=True):
        assert one.items == ((records.PATH, 0, a.encode()), (records.PATH2, 0, b.encode()))


def test_a_path_that_is_too_long_is_cut(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS + "int main(int c, char **v) { char *p = malloc(9000); memset(p, 'a', 8999);"
        "p[8999] = 0; open(p, 0); }",
    )
    found = calls_of(trace([program]), "openat")[-1]
    assert found.result == -errno.ENAMETOOLONG and found.flags == records.CUT
    ((tag, more, text),) = found.items
    assert (tag, more) == (records.PATH, 1) and set(text) == {ord("a")} and len(text) >= 4096


def test_what_cannot_be_read_is_told_and_what_is_not_there_yet_is_read_later(tmp_path):
    (tmp_path / "page").write_bytes(b"/nowhere/at/all\0".ljust(4096, b"\0"))
    (tmp_path / "long").write_bytes(b"/nowhere/" + b"b" * 3000 + b"\0" * 5000)
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    char *fresh(char *name) {
        int fd = open(name, O_RDONLY);
        return mmap(0, 8192, PROT_READ, MAP_PRIVATE, fd, 0);
    }
    int main(int c, char **v) {
        open((char *)8, O_RDONLY); open((char *)-1, O_RDONLY);
        connect(0, (void *)8, 16);
        char *edge = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(edge + 4096, 4096); memset(edge, 'a', 4096); open(edge + 4090, O_RDONLY);
        syscall(SYS_utimensat, 0, 0, 0, 0);
        char *one = fresh(v[1]), *two = fresh(v[2]);
        madvise(one, 8192, MADV_DONTNEED); madvise(two, 8192, MADV_DONTNEED);
        rename(one, two);
    }""",
    )
    seen = trace([program, str(tmp_path / "page"), str(tmp_path / "long")])
    bad = [one for one in seen if one.result == -errno.EFAULT]
    assert [one.name for one in bad] == ["openat", "openat", "connect", "openat"]
    assert all(one.flags & records.UNREADABLE and not given(one) for one in bad)
    (connect,) = calls_of(seen, "connect")
    assert connect.flags & records.UNREADABLE and not given(connect)
    assert calls_of(seen, "utimensat")[0].flags == 0
    (rename,) = calls_of(seen, "rename")
    assert rename.flags == 0
    assert rename.item(records.PATH) == b"/nowhere/at/all"
    assert rename.item(records.PATH2) == b"/nowhere/" + b"b" * 3000


def test_threads_are_tasks_of_the_tree(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    void *work(void *p) { char n[32]; for (int i = 0; i < 200; i++) {
        sprintf(n, "/nowhere/%d.%d", (int)(long)p, i); open(n, O_RDONLY); } return 0; }
    int main() { pthread_t t[16];
        for (long i = 0; i < 16; i++) pthread_create(t + i, 0, work, (void *)i);
        for (int i = 0; i < 16; i++) pthread_join(t[i], 0); }""",
    )
    seen = trace([program])
    threads = [one.result for one in forks(seen)]
    assert len(threads) == 16 and all(one.args[1] == 1 for one in forks(seen))
    for n, tid in enumerate(threads):
        mine = [one.item(records.PATH) for one in calls_of(seen, "openat") if one.tid == tid]
        mine = [path for path in mine if path.startswith(b"/nowhere")]
        assert mine == [f"/nowhere/{n}.{i}".encode() for i in range(200)]
    assert sum(one.args[3] for one in exits(seen)) == 16


def test_a_fork_comes_before_all_that_the_child_does_and_its_exit_last(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    int main() { for (int d = 0; d < 9; d++) { fork(); open("/nowhere", 0); }
        while (wait(0) > 0); }""",
    )
    seen = trace([program])
    assert len(forks(seen)) == 511 and len(exits(seen)) == 512
    assert paths(seen).count(b"/nowhere") == sum(2**d for d in range(1, 10))
    living = {seen[0].tid}
    for one in seen:
        assert one.tid in living
        if one.kind == records.FORK:
            assert one.result not in living
            living.add(one.result)
        elif one.kind == records.EXIT:
            living.remove(one.tid)
    assert not living


def test_an_exec_of_a_thread_becomes_the_leader(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    void *work(void *p) { execl("/bin/true", "true", "of a thread", (char *)0); return 0; }
    int main() { pthread_t t; pthread_create(&t, 0, work, 0); for (;;) pause(); }""",
    )
    seen = trace([program])
    first, second = [one for one in seen if one.kind == records.EXEC]
    (thread,) = [one.result for one in forks(seen)]
    assert first.args[0] == 0
    assert (second.tid, second.args[0]) == (first.tid, thread)
    assert second.item(records.ARGV) == b"true\0of a thread\0"
    at = seen.index(second)
    assert exits(seen[:at]) == []  # the process goes on
    assert {one.tid for one in seen[at:]} == {first.tid}
    assert [one.tid for one in exits(seen[at:])] == [first.tid]


@pytest.mark.parametrize(
    ("last", "result"),
    [("pthread_exit(0);", 0), ("exit(7);", 7 << 8), ("kill(getpid(), 9); pause();", 9)],
    ids=["nobody says", "exit", "signal"],
)
def test_a_process_ends_with_its_last_thread_and_once(tmp_path, last, result):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    void *work(void *p) { usleep((long)p * 1000); if ((long)p == 40) { LAST } return 0; }
    int main() {
        pthread_t t;
        for (long n = 0; n <= 40; n += 2) pthread_create(&t, 0, work, (void *)n);
        pthread_exit(0);
    }""".replace("LAST", last),
    )
    for _ in range(5):
        seen = trace([program], status=result)
        (root,) = [one for one in exits(seen) if not one.args[3]]
        assert (root.tid, root.result) == (seen[0].tid, result)
        assert seen[-1] is root
        assert len([one for one in exits(seen) if one.args[3]]) == 21


def test_programs_have_their_words_and_the_kernels_name(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\nexit 0\n")
    script.chmod(0o755)
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    void run(char **v, char **e, int how) {
        if (!vfork()) {
            if (how) { int fd = open(v[0], O_RDONLY); syscall(SYS_execveat, fd, "", v, e, 0x1000); }
            else execve(v[0], v, e);
            _exit(9);
        }
        wait(0);
    }
    int main(int c, char **v) {
        char *none[] = {0}, *env[] = {"A=B", 0}, *t[] = {"/bin/true", "", "b c", 0};
        char *s[] = {v[1], "x", 0}, *no[] = {"/bin/nothing", 0};
        run(t, none, 0); run(t, env, 0); run(s, env, 0); run(t, env, 1); run(no, env, 0);
    }""",
    )
    seen = trace([program, str(script)])
    done = [one for one in seen if one.kind == records.EXEC][1:]
    words = [one.item(records.ARGV) for one in done]
    name = str(script).encode()
    assert words[:2] == [b"/bin/true\0\0b c\0"] * 2
    assert words[2] == b"/bin/sh\0-e\0" + name + b"\0x\0"
    assert words[3] == b"/bin/true\0\0b c\0"
    # a literal's page may not be there when the first is entered: then the kernel's name has to do
    assert done[0].item(records.PATH) in (None, b"/bin/true")
    assert [one.item(records.PATH) for one in done[1:]] == [b"/bin/true", name, b""]
    names = [one.item(records.EXEC_NAME) for one in done]
    assert names[:3] == [b"/bin/true", b"/bin/true", name] and names[3].startswith(b"/dev/fd/")
    assert {one.flags for one in done} == {0}
    (failed,) = calls_of(seen, "execve")
    assert failed.result == -errno.ENOENT and failed.item(records.PATH) == b"/bin/nothing"


def test_an_exec_whose_path_was_not_readable_has_the_kernels(tmp_path):
    (tmp_path / "page").write_bytes(b"/bin/true".ljust(4096, b"\0"))
    program = compile_c(
        tmp_path,
        HEADERS
        + """int main(int c, char **v) {
        int fd = open(v[1], O_RDONLY); char *w[] = {"t", 0};
        char *p = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
        madvise(p, 4096, MADV_DONTNEED); execv(p, w); return 1; }""",
    )
    last = [one for one in trace([program, str(tmp_path / "page")]) if one.kind == records.EXEC][-1]
    assert last.item(records.PATH) is None and last.flags == 0
    assert last.item(records.EXEC_NAME) == b"/bin/true"
    assert last.item(records.ARGV) == b"t\0"


@pytest.mark.parametrize("size", [100, 32000, 32700, 32766, 32767, 32768, 40000, 120000])
def test_words_beyond_their_room_are_cut(size):
    words = ["/bin/true", "a" * (size - 12), "z"]
    (done,) = [one for one in trace(words) if one.kind == records.EXEC]
    whole = b"".join(word.encode() + b"\0" for word in words)
    found = done.item(records.ARGV)
    if len(whole) < 32768:
        assert (found, done.flags) == (whole, 0)
    else:
        assert done.flags == records.CUT and len(found) == 32768
        assert found[:-1] == whole[:32767]


def test_addresses_pairs_and_what_is_sent(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    #include <netinet/in.h>
    #include <arpa/inet.h>
    int main() {
        struct sockaddr_in a = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}}; socklen_t n = sizeof a;
        int s = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0), p[2];
        bind(s, (void *)&a, n); getsockname(s, (void *)&a, &n); listen(s, 1);
        connect(c, (void *)&a, n);
        struct sockaddr_in from; n = sizeof from; accept(s, (void *)&from, &n);
        socketpair(AF_UNIX, SOCK_STREAM, 0, p); pipe(p);
        int u = socket(AF_INET, SOCK_DGRAM, 0);
        sendto(u, "to", 2, 0, (void *)&a, sizeof a);
        struct iovec v = {"message", 7}, w = {"other", 5};
        struct mmsghdr m[9] = {{{&a, sizeof a, &v, 1}}};
        for (int i = 1; i < 9; i++) m[i] = (struct mmsghdr){{&a, sizeof a, &w, 1}};
        sendmsg(u, &m[0].msg_hdr, 0); sendmmsg(u, m, 8, 0); sendmmsg(u, m, 9, 0);
        struct sockaddr_un x = {AF_UNIX, "\\0hidden"};
        bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&x, 9);
    }""",
    )
    seen = trace([program])
    bound = calls_of(seen, "bind")
    loopback = socket.inet_aton("127.0.0.1")
    assert bound[0].item(records.ADDRESS)[4:8] == loopback
    assert bound[1].item(records.ADDRESS) == struct.pack("=H", socket.AF_UNIX) + b"\0hidden"
    (connect,), (accept,) = calls_of(seen, "connect"), calls_of(seen, "accept")
    address = connect.item(records.ADDRESS)
    assert len(address) == 16 and accept.item(records.ADDRESS)[4:8] == loopback
    for name in ("socketpair", "pipe2" if calls_of(seen, "pipe2") else "pipe"):
        a, b = struct.unpack("=2i", calls_of(seen, name)[-1].item(records.PAIR))
        assert b == a + 1
    (sent,), (message,) = calls_of(seen, "sendto"), calls_of(seen, "sendmsg")
    assert given(sent) == ((records.ADDRESS, 0, address), (records.DATA, 0, b"to"))
    first = ((records.ADDRESS, 0, address), (records.DATA, 0, b"message"))
    second = ((records.ADDRESS, 0, address), (records.DATA, 0, b"other"))
    assert given(message) == first
    eight, nine = calls_of(seen, "sendmmsg")
    assert (given(eight), eight.flags) == (first + 7 * second, 0)
    assert (given(nine), nine.flags) == (first + 7 * second, records.CUT)


@x86_only
def test_i386_calls_are_known_also_when_they_look_like_native_ones(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    int main() {
        char *path = mmap((void *)0x10000000, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        strcpy(path, "/nowhere/i386");
        long r; /* rcx and r11 as `syscall` would leave them */
        asm volatile("lea 1f(%%rip), %%rcx; pushfq; pop %%r11; int $0x80; 1:"
                     : "=a"(r) : "a"(5), "b"(path), "d"(0) : "rcx", "r11", "memory");
        asm volatile("int $0x80" : "=a"(r) : "a"(39), "b"(path), "c"(0700) : "memory");
        char x32[] = "/nowhere/x32"; syscall(0x40000000 | 257, -100, x32, 0);
        open("/nowhere/native", 0);
    }""",
        "-no-pie",
        "-mno-red-zone",
    )
    seen = trace([program])
    found = [
        (one.abi, one.name, one.item(records.PATH))
        for one in seen
        if (one.item(records.PATH) or b"").startswith(b"/nowhere")
    ]
    assert found == [
        (calls.I386, "open", b"/nowhere/i386"),
        (calls.I386, "mkdir", b"/nowhere/i386"),
        (calls.X32, "openat", b"/nowhere/x32"),
        (calls.NATIVE, "openat", b"/nowhere/native"),
    ]


def test_calls_that_a_filter_answers_are_recorded(tmp_path):
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    #include <linux/filter.h>
    #include <linux/seccomp.h>
    int main() {
        struct sock_filter f[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdirat, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fchmodat, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
        struct sock_fprog p = {6, f};
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); prctl(PR_SET_SECCOMP, 2, &p);
        char denied[] = "/denied", fake[] = "/fake"; /* nobody else brings their pages in */
        syscall(SYS_mkdirat, -100, denied, 0); syscall(SYS_fchmodat, -100, fake, 0777);
        if (!fork()) _exit(0); wait(0);
    }""",
    )
    seen = trace([program])
    (made,), (changed,) = calls_of(seen, "mkdirat"), calls_of(seen, "fchmodat")
    assert (made.result, made.item(records.PATH)) == (-errno.EACCES, b"/denied")
    assert (changed.result, changed.item(records.PATH)) == (0, b"/fake")
    assert len([one for one in seen if one.name in ("clone", "clone3")]) == 1


def test_memory_changed_during_a_call_does_not_change_what_was_asked(tmp_path):
    """A sibling writes over the path of an open that waits."""
    fifo = tmp_path / ("fifo" + "o" * 200)
    os.mkfifo(fifo)
    program = compile_c(
        tmp_path,
        HEADERS
        + """
    char path[4096]; int waits;
    void *work(void *p) { waits = 1; open(path, O_RDONLY); return 0; }
    int main(int c, char **v) {
        pthread_t t; strcpy(path, v[1]); pthread_create(&t, 0, work, 0);
        while (!waits) sched_yield(); usleep(100000);
        strcpy(path, "/etc/passwd"); open(v[1], O_WRONLY); pthread_join(t, 0);
    }""",
    )
    seen = trace([program, str(fifo)])
    assert paths(seen).count(str(fifo).encode()) == 2 and b"/etc/passwd" not in paths(seen)


def test_a_process_outside_the_tree_is_never_recorded(tmp_path):
    stop = threading.Event()
    others = []

    def others_work():
        while not stop.is_set():
            others.append(subprocess.run(["/bin/true", "outside"]).returncode)
            assert not os.path.exists("/nowhere/outside")

    worker = threading.Thread(target=others_work)
    worker.start()
    try:
        seen = trace(["/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do /bin/true inside; done"])
    finally:
        stop.set()
        worker.join()
    assert others
    tree = {seen[0].tid} | {one.result for one in forks(seen)}
    assert {one.tid for one in seen} == tree
    assert not any(b"outside" in text for one in seen for _, _, text in one.items)
    assert len([one for one in seen if one.kind == records.EXEC]) == 10


def test_a_full_ring_is_counted_and_told():
    tracing = Tracing(
        ["/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do [ -e /nowhere ]; i=$((i+1)); done"],
        limits=bpf.Limits(ring=1 << 16),
    )
    try:
        tracing.go()
        tracing.finish(drain=False)
        lost = tracing.backend.lost()
        seen = tracing.seen()
        assert tracing.backend.finished()
    finally:
        tracing.close()
    told = [one for one in seen if one.kind == records.LOST]
    assert set(lost) == {"full"} and sum(one.result for one in told) == lost["full"]
    looked = [one for one in seen if one.item(records.PATH) == b"/nowhere"]
    assert 300 < len(looked) < 3000
    assert len(seen) - len(told) + lost["full"] > 3000


def test_tasks_beyond_their_number_are_told():
    tracing = Tracing(["/bin/sh", "-c", "(true) & (true) & wait"], limits=bpf.Limits(tasks=1))
    try:
        tracing.go()
        tracing.finish()
        assert tracing.backend.lost() == {"memory": 2}
    finally:
        tracing.close()
    (*_, told) = [one for one in tracing.seen() if one.kind == records.LOST]
    assert told.result in (1, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signals_end_is_told(number):
    seen_status = []
    tracing = Tracing(["/bin/sh", "-c", f"kill -{int(number)} $$"])
    try:
        tracing.go()
        seen_status.append(tracing.finish())
    finally:
        tracing.close()
    assert [one.result for one in exits(tracing.seen())] == seen_status


def test_only_the_levels_that_were_asked_for_are_recorded():
    tracing = Tracing(["/bin/ls", "/"], levels=(calls.EXEC,))
    tracing.go()
    tracing.finish()
    tracing.close()
    assert {one.name for one in tracing.seen()} == {"execve", ""}


def test_a_program_that_the_kernel_refuses_is_explained():
    code = bytes.fromhex("9500000000000000")
    with pytest.raises(CaptureError, match="R0 !read_ok") as caught:
        bpf_system.load_program("broken", code)
    assert caught.value.errno == errno.EACCES


def test_the_probe_says_what_is_missing():
    code = (
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "from substrate.telemetry.capture import bpf; print(bpf.probe())"
    )
    project = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", code], capture_output=True, text=True, cwd=project
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Operation not permitted" in done.stdout and "CAP_BPF" in done.stdout


def test_another_pid_namespace_is_refused():
    code = "from substrate.telemetry.capture import bpf; print(bpf.probe())"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pid namespace" in done.stdout


def test_what_is_no_process_that_waits_is_refused():
    backend = bpf.BpfBackend()
    try:
        with pytest.raises(CaptureError, match="no process"):
            backend.attach(2**22 - 1, None)
        with pytest.raises(CaptureError, match="no filter"):
            backend.attach(os.getpid(), os.open("/dev/null", os.O_RDONLY))
        assert not backend.finished()
    finally:
        backend.close()
    backend.close()
    assert backend.drain() == b"" and backend.finished()


def test_closing_kills_what_is_left_of_the_tree():
    tracing = Tracing(["/bin/sh", "-c", "sleep 1000 & setsid sleep 1000 & wait"])
    try:
        tracing.go()
        while len([one for one in read(tracing.data) if one.kind == records.EXEC]) < 3:
            tracing.data += tracing.backend.drain()
        tree = {one.tid for one in tracing.seen()}
    finally:
        tracing.close()
    _, status = os.waitpid(tracing.pid, 0)
    assert status in (signal.SIGKILL, 0)  # its children end first, and then what it waits for
    for tid in tree - {tracing.pid}:
        with (
            open(f"/proc/{tid}/stat", "rb")
            if os.path.exists(f"/proc/{tid}")
            else open(os.devnull, "rb") as file
        ):
            assert b"sleep" not in file.read() or bpf._is_dead(tid)


def program_ids() -> set[int]:
    found, at = set(), 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=II", at, 0), 128)
        if bpf_system._syscall(bpf_system._NR_BPF, 11, attributes, 128) < 0:
            return found
        at = struct.unpack_from("=I", attributes, 4)[0]
        found.add(at)


def test_nothing_is_left_of_a_supervisor_that_was_killed(tmp_path):
    before = program_ids()
    code = (
        "from substrate.telemetry.capture import bpf; b = bpf.BpfBackend(); b.ready();"
        "print('ready', flush=True); import time; time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout.readline() == b"ready\n"
        mine = program_ids() - before
        assert len(mine) >= 5
        supervisor.kill()
    # links are let go of by a worker of the kernel
    for _ in range(1000):
        if not mine & program_ids():
            break
        os.sched_yield()
        threading.Event().wait(0.01)
    assert not mine & program_ids()
