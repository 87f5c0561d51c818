"""strace's text is read whole or refused: lines of strace 6.1 of each form, and live runs."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.capture.backends import strace_missing
from tests.telemetry.capture.facts import Fact, Kind
from tests.telemetry.capture.strace_peer import StraceCapture, facts_of
from tests.telemetry.capture.strace_text import (
    Call,
    Ended,
    Entry,
    Fd,
    Group,
    Item,
    Superseded,
    Text,
    UnknownLine,
    Word,
    parse_result,
    parse_values,
    read_happenings,
)


def facts(text: str, cwd: bytes = b"/w") -> list[Fact]:
    return list(facts_of(read_happenings(text), cwd, lambda path: path))


def hexed(text: str) -> str:
    r"""Texts as -xx writes them: `"a"` is `"\x61"`, and what is in <> too."""
    found, inside = [], ""
    for at, char in enumerate(text):
        if inside and char == inside:
            inside = ""
        elif inside:
            found.append(f"\\x{ord(char):02x}")
            continue
        elif char == '"':
            inside = '"'
        elif char == "<" and (text[at - 1].isdigit() or text.endswith("AT_FDCWD", 0, at)):
            inside = ">"
        found.append(char)
    return "".join(found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"ab"', Text(b"ab")),
        ('"ab"...', Text(b"ab", cut=True)),
        ('""', Text(b"")),
        ('@"ab"', Text(b"ab", abstract=True)),
        ("3</a b>", Fd("3", b"/a b")),
        ("3</a>(deleted)", Fd("3", b"/a (deleted)")),
        ("AT_FDCWD</w>", Fd("AT_FDCWD", b"/w")),
        ("AT_FDCWD", Word("AT_FDCWD")),
        ("O_RDONLY|O_CLOEXEC", Word("O_RDONLY|O_CLOEXEC")),
        ("0x4d /* AF_??? */", Word("0x4d")),
        ("htons(80)", Call("htons", (Item("", Word("80")),))),
        ("[]", Group("[", ())),
        ("[1 2]", Group("[", (Item("", Word("1")), Item("", Word("2"))))),
        ("~[RTMIN]", Group("~[", (Item("", Word("RTMIN")),))),
        ("[112 => 16]", Group("[", (Item("", Word("112"), Word("16")),))),
        ('{a=1, b={c="x"}}', Group("{", (
            Item("a", Word("1")), Item("b", Group("{", (Item("c", Text(b"x")),))),
        ))),
        ("{a=1} => {b=2}", Group("{", (Item("a", Word("1")),))),
        ("&sin6_addr", Word("&sin6_addr")),
        ("makedev(0x1, 0x3)", Call("makedev", (Item("", Word("0x1")), Item("", Word("0x3"))))),
        ("[{tv_sec=1, tv_nsec=0} /* 1970-01-01T00:00:01+0000 */, UTIME_OMIT]", Group("[", (
            Item("", Group("{", (Item("tv_sec", Word("1")), Item("tv_nsec", Word("0"))))),
            Item("", Word("UTIME_OMIT")),
        ))),
    ],
)  # fmt: skip
def test_values_are_read(text, value):
    assert parse_values(hexed(text) + ")") == (value,)
    assert parse_values(f"1, {hexed(text)}, 2)") == (Word("1"), value, Word("2"))


@pytest.mark.parametrize(
    "text", ["", "1", '"a")', '"\\x61)', "{a=1)", "[1)", "<", '3<"', "1, {a=]})", "=> 1)", '"\\n")']
)
def test_values_of_no_known_form_are_refused(text):
    with pytest.raises(UnknownLine):
        parse_values(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("3", 3),
        (r"3<\x2f\x61>", 3),
        (r"3<\x2f\x61>(deleted)", 3),
        ("0x7f0000000000", 0x7F0000000000),
        ("-1 ENOENT (No such file or directory)", -2),
        ("-1 (errno 4000)", -4000),
        ("?", None),
        ("? ERESTARTSYS (To be restarted if SA_RESTART is set)", -512),
        ("? ERESTARTNOINTR (To be restarted)", -513),
        ("? ERESTARTNOHAND (To be restarted if no handler)", -514),
        ("? ERESTART_RESTARTBLOCK (Interrupted by signal)", -516),
        ("1 (in [3])", 1),
    ],
)
def test_results_are_read(text, number):
    assert parse_result(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1 EODD (?)",
        "-1 (errno 18446744073709551359)",
        "0 and more",
        "? EODD (x)",
        "3</a>",
    ],
)
def test_results_of_no_known_form_are_refused(text):
    with pytest.raises(UnknownLine):
        parse_result(text)


OPEN = hexed('openat(AT_FDCWD</w>, "a", O_RDONLY) = 3</w/a>')


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        (["1 +++ exited with 3 +++"], [(1, 3 << 8)]),
        (["1     +++ exited with 3 +++"], [(1, 3 << 8)]),
        (["1 +++ killed by SIGKILL +++"], [(1, signal.SIGKILL)]),
        (["1 +++ killed by SIGSEGV (core dumped) +++"], [(1, signal.SIGSEGV | 0x80)]),
        (["1 +++ killed by SIGRTMIN +++"], [(1, 32)]),
        (["1 +++ killed by SIGRT_3 +++"], [(1, 35)]),
        (["1 --- SIGALRM {si_signo=SIGALRM, si_code=SI_KERNEL} ---"], []),
        (["1 --- stopped by SIGSTOP ---"], []),
    ],
)
def test_ends_and_signals_are_read(lines, seen):
    found = read_happenings("\n".join([*lines, ""]))
    assert [(end.tid, end.status) for end in found if isinstance(end, Ended)] == seen


@pytest.mark.parametrize(
    "text",
    [
        "what is this",
        "1",
        "1 ",
        "1 openat",
        "1 openat(AT_FDCWD",
        "1 openat() + 3",
        "1 ???( <unfinished ...>",
        "1 <... openat resumed>) = 3",
        "1 openat( <unfinished ...>\n1 <... mkdir resumed>) = 0",
        "1 openat( <unfinished ...>\n1 openat( <unfinished ...>",
        "1 openat( <unfinished ...>",
        "1 +++ superseded by execve in pid 2 +++",
        "1 +++ something else +++",
        "1 --- something else ---",
        "[ Process PID=1 runs in 32 bit mode. ]",
        "strace: Process 1 attached",
        "1 openat(1) = 3 <detached ...>",
        "1 openat(1) = 3\n1 openat(1",
    ],
)
def test_lines_of_no_known_form_are_refused(text):
    with pytest.raises(UnknownLine):
        read_happenings(text + "\n")


@given(st.text('0123456789 +-<>.=?()[]{}"\\x,abcE_\n', max_size=80))
def test_no_text_makes_it_crash(text):
    try:
        read_happenings(text)
    except UnknownLine:
        pass


def test_an_unfinished_call_is_joined_with_its_end():
    text = hexed(
        '1 openat(AT_FDCWD</w>, "a", O_RDONLY <unfinished ...>\n'
        '2 mkdir("b", 0700 <unfinished ...>\n'
        "1 <... openat resumed>)             = 3</w/a>\n"
        "2 <... mkdir resumed>)              = -1 EEXIST (File exists)\n"
    )
    one, two = read_happenings(text)
    assert isinstance(one, Entry) and isinstance(two, Entry)
    assert (one.name, one.result.number, one.began, one.ended) == ("openat", 3, 0, 2)
    assert (two.name, two.result.number, two.began, two.ended) == ("mkdir", -17, 1, 3)


@pytest.mark.parametrize(
    "end",
    [
        "1 <... accept resumed> <unfinished ...>) = ?\n1 +++ killed by SIGKILL +++\n",
        "1 +++ killed by SIGKILL +++\n",
    ],
)
def test_a_call_in_which_a_task_died_has_no_result(end):
    text = "1 accept(3, <unfinished ...>\n" + end
    call, died = facts(text)
    assert (call.call, call.result) == ("accept", None)
    assert (died.kind, died.result) == (Kind.EXIT, signal.SIGKILL)


def test_an_exec_by_a_thread_is_told_with_the_leaders_number():
    text = hexed(
        '1 execve("/p", ["p"], 0x7ffc0 /* 9 vars */) = 0\n'
        "1 clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD, exit_signal=0, stack=0x7f, stack_size=0x20} "
        "=> {parent_tid=[2]}, 88) = 2\n"
        "1 accept(3, <unfinished ...>\n"
        '2 execve("t", ["t"], 0x1 /* 1 var */ <unfinished ...>\n'
        "1 +++ superseded by execve in pid 2 +++\n"
        "1 <... execve resumed>)             = 0\n"
        '1 open("x", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        "1 +++ exited with 0 +++\n"
    )
    assert any(isinstance(each, Superseded) for each in read_happenings(text))
    found = facts(text)
    assert [(fact.kind, fact.tid) for fact in found if fact.kind is Kind.EXEC] == [
        (Kind.EXEC, 1),
        (Kind.EXEC, 1),
    ]
    assert [fact.path for fact in found if fact.call == "open"] == [b"/w/x"]
    assert [fact.result for fact in found if fact.call == "accept"] == [None]


def test_a_child_that_is_seen_before_its_birth_stands_where_its_parent_stood():
    text = hexed(
        '1 chdir("d") = 0\n'
        "1 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD <unfinished ...>\n"
        '2 open("a", O_RDONLY) = 3</w/d/a>\n'
        '2 chdir("/e") = 0\n'
        "1 <... clone resumed>, child_tidptr=0x7f) = 2\n"
        '1 open("a", O_RDONLY) = 3</w/d/a>\n'
        '2 open("a", O_RDONLY) = 3</e/a>\n'
    )
    found = facts(text)
    assert [fact.kind for fact in found[:3]] == [Kind.CALL, Kind.FORK, Kind.CALL]
    assert [(f.tid, f.path) for f in found if f.call == "open"] == [
        (2, b"/w/d/a"),
        (1, b"/w/d/a"),
        (2, b"/e/a"),
    ]


def test_tasks_with_one_directory_move_together():
    text = hexed(
        "1 clone(child_stack=NULL, flags=CLONE_FS|SIGCHLD) = 2\n"
        '2 chdir("d") = 0\n'
        '1 open("a", O_RDONLY) = 3</w/d/a>\n'
    )
    assert facts(text)[-1].path == b"/w/d/a"


def test_a_number_that_is_used_again_is_another_task():
    text = hexed(
        "1 fork() = 2\n2 +++ exited with 0 +++\n"
        '1 chdir("d") = 0\n1 fork() = 2\n2 open("a", O_RDONLY) = 3</w/d/a>\n'
    )
    assert facts(text)[-1].path == b"/w/d/a"


def test_where_strace_says_where_a_task_stands_that_is_taken():
    text = hexed(
        '1 openat(AT_FDCWD</real>, "a", O_RDONLY) = 3</real/a>\n'
        '1 open("a", O_RDONLY) = 3</real/a>\n'
    )
    assert [fact.path for fact in facts(text)] == [b"/real/a", b"/real/a"]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('chroot("r") = 0', {"call": "chroot", "path": b"/w/r"}),
        ('symlinkat("t", 4</d>, "l") = 0', {"path": b"t", "path2": b"/d/l"}),
        ('symlink("t", "l") = 0', {"path": b"t", "path2": b"/w/l"}),
        ('memfd_create("m", 0) = 3</memfd:m>(deleted)', {"path": b"m", "result": 3}),
        ('renameat2(AT_FDCWD</w>, "a", 4</d>, "b", RENAME_EXCHANGE) = 0', {"path": b"/w/a", "path2": b"/d/b"}),
        ("fchmod(3</w/a>, 0600) = 0", {"path": b"/w/a"}),
        ("fchmod(999, 0600) = -1 EBADF (Bad file descriptor)", {"path": None, "result": -9}),
        ("utimensat(3</w/a>, NULL, NULL, 0) = 0", {"path": b"/w/a"}),
        ('openat(999, "a", O_RDONLY) = -1 EBADF (Bad file descriptor)', {"path": b"a"}),
        ("openat(AT_FDCWD</w>, 0x1, O_RDONLY) = -1 EFAULT (Bad address)", {"path": None}),
        ('lchown32("a", -1, -1) = 0', {"call": "lchown", "path": b"/w/a"}),
        ('execve("a", ["x"...], 0x1 /* 1 var */) = -1 E2BIG (Argument list too long)', {"call": "execve", "argv": (b"x",), "cut": True}),
        ('execve("a", NULL, NULL) = -1 ENOENT (No such file or directory)', {"argv": ()}),
        ("connect(3<socket:[9]>, {sa_family=AF_UNIX, sun_path=\"/s\"}, 5) = 0", {"path": None, "addresses": (b"unix:/s",)}),
        ("connect(3<socket:[9]>, {sa_family=AF_UNIX, sun_path=@\"s\"}, 5) = 0", {"addresses": (b"unix:@s",)}),
        ("accept(3<socket:[9]>, {sa_family=AF_UNIX}, [110 => 2]) = 4<socket:[8]>", {"addresses": (b"unix:",)}),
        ("connect(3<socket:[9]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"127.0.0.1\")}, 16) = 0", {"addresses": (b"inet:127.0.0.1:80",)}),
        ("connect(3<socket:[9]>, {sa_family=AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, \"::1\", &sin6_addr), sin6_scope_id=0}, 28) = 0", {"addresses": (b"inet6:[::1]:80",)}),
        ("connect(3<socket:[9]>, {sa_family=AF_UNSPEC, sa_data=\"x\"}, 16) = 0", {"addresses": (b"unspec",)}),
        ("connect(3<socket:[9]>, 0x1, 16) = -1 EFAULT (Bad address)", {"addresses": ()}),
        ('sendto(3<socket:[9]>, "ab"..., 12, 0, NULL, 0) = 12', {"data": b"ab", "cut": True, "addresses": ()}),
        ('sendmsg(3<socket:[9]>, {msg_name={sa_family=AF_UNIX, sun_path="/s"}, msg_namelen=4, msg_iov=[{iov_base="x", iov_len=1}], msg_iovlen=1}, 0) = 1', {"addresses": (b"unix:/s",)}),
        ('sendmmsg(3<socket:[9]>, [{msg_hdr={msg_name={sa_family=AF_UNIX, sun_path="/s"}}, msg_len=1}, {msg_hdr={msg_name=NULL}}], 2, 0) = 2', {"addresses": (b"unix:/s",)}),
    ],
)  # fmt: skip
def test_calls_become_facts(line, fields):
    (fact,) = facts(f"1 {hexed(line)}\n")
    assert {name: getattr(fact, name) for name in fields} == fields


def test_paths_below_another_root_are_the_hosts():
    text = hexed('1 chroot("r") = 0\n1 open("/a", O_RDONLY) = 3</w/r/a>\n1 chdir("/d") = 0\n')
    assert [fact.path for fact in facts(text)] == [b"/w/r", b"/w/r/a", b"/w/r/d"]


@pytest.mark.parametrize("seccomp_bpf", [True, False])
def test_a_live_run_is_read_whole(seccomp_bpf, tmp_path):
    if reason := strace_missing():
        pytest.skip(reason)
    script = b"echo 1 > a; (cd /; : < etc/passwd); kill -TERM $$ & wait; sleep 9"
    stdout = os.open(os.devnull, os.O_WRONLY)
    try:
        capture = StraceCapture(seccomp_bpf=seccomp_bpf, looks=True)
        captured = capture([b"/bin/sh", b"-c", script], {b"PATH": b"/bin"}, tmp_path, stdout)
    finally:
        os.close(stdout)
    assert captured.status == signal.SIGTERM
    by_path = {fact.path: fact for fact in captured.facts if fact.call == "openat"}
    assert by_path[bytes(tmp_path) + b"/a"].result == 3
    assert by_path[b"/etc/passwd"].result == 3
    ends = [fact.result for fact in captured.facts if fact.kind is Kind.EXIT]
    assert signal.SIGTERM in ends
    forks = [fact for fact in captured.facts if fact.kind is Kind.FORK]
    assert len(ends) == len(forks) + 1
