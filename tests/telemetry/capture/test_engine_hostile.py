"""Traced processes that want not to be seen, to be taken for others, past the gate, or into the
engine (capture.md §3). Each was a way once, or is one that a reviewer would try first."""

from __future__ import annotations

import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from substrate.telemetry.capture import gate
from substrate.telemetry.capture.backend import CaptureError
from tests.telemetry.capture.captured import PYTHON, Running, armed, capture, parse

only_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="calls of i386")


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- not to be seen


@pytest.mark.parametrize("backend", ["hybrid", "ptrace"])
@pytest.mark.parametrize(
    ("way", "times"),
    [
        ("clone", 5),
        ("clone3", 5),
        ("clone3-race", 2000),
        pytest.param("int80-clone", 5, marks=only_x86_64),
    ],
)
def test_nobody_makes_a_child_without_a_tracer(hostile, backend, way, times):
    """One that gets away may be traced by a friend, who lets it do what the filter stops."""
    found = capture([hostile.path("untraced"), way, str(times)], backend)
    assert found.stdout.endswith(b" 0 untraced\n"), found.stdout
    assert found.status == 0


@pytest.mark.parametrize(
    ("backend", "level"), [("hybrid", "files"), ("ptrace", "files"), ("hybrid", "all")]
)
@pytest.mark.parametrize("way", ["syscall", pytest.param("int80", marks=only_x86_64)])
def test_nobody_answers_in_our_place(hostile, tmp_path, backend, level, way):
    """A notification wins over a trace: whoever had a listener could let all go on unseen."""
    path = os.fsencode(tmp_path / "f")
    found = capture([hostile.path("answers"), way, path], backend, level=level)
    assert os.waitstatus_to_exitcode(found.status) == 3  # it has none
    assert [r.call for r in found.of("openat", "unlinkat") if r.path() == path] == [
        "openat",
        "unlinkat",
    ]


def test_clone3_is_told_of_where_every_call_is(hostile):
    found = capture([hostile.path("untraced"), "clone3", "3"], "ptrace", level="all")
    assert [r.result for r in found.of("clone3")] == [-38] * 3


@only_x86_64
def test_a_thread_of_i386_is_a_thread(hostile):
    found = capture([hostile.path("narrow"), "thread"])
    assert found.status == 0, found.status
    (fork,) = found.of("fork")
    assert fork.args[1] == 1
    (end,) = [r for r in found.of("exit") if r.tid == fork.result]
    assert end.args[3] == 1


# --- to be taken for others


@only_x86_64
def test_words_above_what_i386_has_are_nothing(hostile, tmp_path):
    """int 0x80 of a program of 64 bits: the kernel takes the low halves of the registers."""
    path = tmp_path / "f"
    found = capture([hostile.path("wide"), path])
    assert found.status == 0
    assert path.exists()
    (opened,) = [r for r in found.of("open") if r.abi == 1]
    assert opened.path() == os.fsencode(path)
    assert max(opened.args) < 2**32


def test_a_length_has_32_bits(hostile):
    found = capture([hostile.path("narrow"), "long-address"])
    assert found.status == 0
    (connected,) = found.of("connect")
    address = connected.items["address"]
    assert (len(address), socket.inet_ntoa(address[4:8])) == (16, "127.0.0.1")


@only_x86_64
@pytest.mark.parametrize("backend", ["hybrid", "notify"])
def test_socketcall_reads_no_more_than_the_kernel(hostile, backend):
    found = capture([hostile.path("narrow"), "socketcall"], backend)
    assert found.status == 0
    assert len(found.of("listen")) == 1


# --- past the gate


def test_a_script_cannot_become_another_one_while_it_is_asked_about(tmp_path):
    """The interpreter that runs in the end is the same; what it is given is not."""
    denied = script(tmp_path / "denied", "#!/bin/sh\necho denied ran\n")
    asked = script(tmp_path / "asked", "#!/bin/sh\necho asked ran\n")
    table = {os.fsencode(denied): gate.DENY, os.fsencode(asked): gate.ASK}
    with Running(["/bin/sh", "-c", f"{asked} word"], arm=armed(table)) as running:
        running.go()
        held = None
        while running.status is None:
            for record in parse(running.step()):
                if record.kind == "hold":
                    held = record.args[0]
                    script(asked, f"#!{denied}\n")
                    assert running.backend.answer(held, gate.ALLOW, gate.BY_CALLBACK)
        found = running.wait()
    assert held is not None
    assert b"denied ran" not in found.stdout
    assert (gate.KILL, gate.HAS_RACED) in [(r.result, r.args[1]) for r in found.of("gate")]


def test_a_script_of_another_name_is_not_put_in_its_place(tmp_path):
    """The same interpreter, the same words: only the file that the name leads to is another one."""
    script(tmp_path / "deploy", "#!/bin/sh\necho denied ran\n")
    script(tmp_path / "ok", "#!/bin/sh\necho asked ran\n")
    link = tmp_path / "x"
    link.symlink_to("ok")
    table = {b"deploy": gate.DENY, b"ok": gate.ASK}
    with Running(["/bin/sh", "-c", "./x; ./ok"], arm=armed(table), cwd=tmp_path) as running:
        running.go()
        while running.status is None:
            for record in parse(running.step()):
                if record.kind == "hold":
                    link.unlink()
                    link.symlink_to("deploy")
                    assert running.backend.answer(record.args[0], gate.ALLOW, gate.BY_CALLBACK)
        found = running.wait()
    assert found.stdout == b"asked ran\n"
    assert [(r.result, r.args[1]) for r in found.of("gate")] == [
        (gate.ALLOW, gate.BY_CALLBACK), (gate.KILL, gate.HAS_RACED), (gate.ALLOW, gate.BY_CALLBACK),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("/bin/dash -c :", 0), ("/bin/dash < /dev/null", 0), ("/bin/dash s", 1), ("./s", 0),
        ("/bin/dash -ec :", 1), ("./l", 0), ("./argued", 1), ("./below", 0),
    ],
)  # fmt: skip
def test_an_interpreter_is_asked_about_where_its_words_may_name_a_file(tmp_path, line, asked):
    dash = os.path.realpath("/bin/dash")
    script(tmp_path / "s", f"#!{dash}\n:\n")
    script(tmp_path / "argued", f"#!{dash} s\n:\n")
    script(tmp_path / "below", "#!./s\n:\n")
    (tmp_path / "l").symlink_to("s")
    table = {os.path.basename(dash).encode(): gate.ASK_FILE}
    with Running(["/bin/bash", "-c", line], arm=armed(table), cwd=tmp_path) as running:
        running.go()
        while running.status is None:
            for record in parse(running.step()):
                if record.kind == "hold":
                    assert running.backend.answer(record.args[0], gate.ALLOW, gate.BY_CALLBACK)
        found = running.wait()
    assert found.status == 0
    assert len(found.of("hold")) == asked


@pytest.mark.parametrize(
    "line",
    ["#!{echo}", "#! {echo}\n", "#!{echo} word\n", "#!\t{echo} \t two words \t\n", "#!{echo} \n",
     "#!{echo} ./s\n", "#!{echo}\0rest\n", "#!{echo} word"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["by name", "by descriptor", "without words"])
def test_first_lines_are_read_as_the_kernel_does(tmp_path, line, way):
    """What runs and what was looked at must agree to the byte, or an innocent script is killed."""
    echo = tmp_path / "e"
    echo.symlink_to("/bin/echo")
    script(tmp_path / "s", line.format(echo="./e"))
    call = {
        "by name": "os.execv('./s', ['x', 'a', ''])",
        "by descriptor": "os.execve(os.open('s', os.O_RDONLY), ['x', 'a'], {})",
        "without words": "ctypes.CDLL(None).execve(b'./s', None, None)",
    }[way]
    code = f"import os, ctypes\n{call}\n"
    plain = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True)
    found = capture([sys.executable, "-I", "-c", code], cwd=tmp_path, arm=armed({}))
    assert (os.waitstatus_to_exitcode(found.status), found.stdout) == (
        plain.returncode,
        plain.stdout,
    ), [(r.result, r.args[1]) for r in found.of("gate")]


def test_interpreters_that_are_scripts(tmp_path):
    """As deep as the kernel goes, and one deeper."""
    last = "/bin/echo"
    for depth in range(6):
        last = str(script(tmp_path / f"s{depth}", f"#!{last} {depth}\n"))
        plain = subprocess.run([PYTHON[0], "-c", f"import os; os.execv({last!r}, ['x', 'y'])"],
                               capture_output=True)  # fmt: skip
        found = capture([*PYTHON, f"import os; os.execv({last!r}, ['x', 'y'])"], arm=armed({}))
        assert (os.waitstatus_to_exitcode(found.status), found.stdout) == (
            plain.returncode,
            plain.stdout,
        )


def test_renames_elsewhere_kill_nobody(tmp_path):
    """openat2(2) answers EAGAIN for a path with `..` while anybody renames anything."""
    stop = threading.Event()

    def rename(at: int) -> None:
        one, other = tmp_path / f"a{at}", tmp_path / f"b{at}"
        one.mkdir()
        while not stop.is_set():
            one.rename(other)
            other.rename(one)

    threads = [threading.Thread(target=rename, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    try:
        code = "for i in range(300):\n  s = os.spawnv(os.P_WAIT, '/usr/bin/../../usr/bin/../bin/true', ['true'])\n  if s: sys.exit(str(s))"
        found = capture([*PYTHON, f"import os, sys\n{code}"], arm=armed({}))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (found.status, found.stderr) == (0, b"")
    assert found.of("gate") == []


@pytest.mark.parametrize("backend", ["hybrid", "notify"])
def test_a_table_is_what_it_says(backend):
    """KILL is nothing that a table can say; of two words about one program the stricter holds."""
    from substrate.telemetry.capture import engine

    def entry(decision: int, path: bytes) -> bytes:
        return struct.pack("=BBH", decision, 0, len(path)) + path

    for table, otherwise in (
        (entry(gate.KILL, b"true"), gate.ALLOW),
        (b"", gate.KILL),
        (b"\1\0", 1),
    ):
        made = engine.make(backend, "files")
        with pytest.raises((ValueError, OSError)):
            made.arm(table, otherwise, 1000)
        made.close()
    for first, then in ((gate.DENY, gate.ASK), (gate.ASK, gate.DENY), (gate.ALLOW, gate.DENY)):
        table = entry(first, b"true") + entry(then, b"true")
        found = capture(["sh", "-c", "/bin/true; echo $?"], backend,
                        arm=lambda made, table=table: made.arm(table, gate.ALLOW, 100))  # fmt: skip
        assert found.stdout == b"126\n"


# --- into the engine


def stack_text(pid: int, text: bytes) -> int:
    """Where `text` stands last on the stack of a process."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps:
        (line,) = [line for line in maps if line.rstrip().endswith("[stack]")]
    low, high = (int(word, 16) for word in line.split()[0].split("-"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(low)
        return low + memory.read(high - low).rindex(text)


def waits_in_exec(pid: int, name: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().startswith(name)
    except OSError:
        return False


def test_a_name_that_grows_on_the_stack_stays_in_its_room(tmp_path):
    """AT_EXECFN is in the memory of a process that others may write to while it stops at its exec:
    it is longer then than any path. The tracer waits for room in the ring meanwhile."""
    name, longer = b"./" + b"n" * 40, b"L" * 4120
    os.symlink("/bin/echo", os.path.join(os.fsencode(tmp_path), name))
    code = (
        "import os\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        f"    os.execve({name!r}, [b'mark', {longer!r}], {{}})\n"
        "while not os.waitpid(pid, os.WNOHANG)[0]:\n"
        "    try: os.open('x' * 4000, os.O_WRONLY)\n"
        "    except OSError: pass\n"
    )
    for _ in range(40):  # it may be seen before the ring is full
        found, child = _rename_on_the_stack(code, tmp_path, name, longer)
        assert found.status == 0
        (executed,) = [r for r in found.records if r.kind == "exec" and r.tid == child]
        if executed.path("exec_name") == longer:
            verdicts = [(r.result, r.args[1]) for r in found.of("gate")]
            assert (gate.KILL, gate.HAS_RACED) in verdicts
            return
    pytest.fail("the tracer was always faster")


def _rename_on_the_stack(code, tmp_path, name, longer):
    with Running(
        [*PYTHON, code], cwd=tmp_path, ring_bytes=65536, arm=armed({b"echo": gate.ASK})
    ) as running:
        running.go()
        holds: list[tuple[int, int]] = []
        while not holds:
            holds = [(r.tid, r.args[0]) for r in parse(running.step()) if r.kind == "hold"]
        ((child, hold),) = holds
        assert running.backend.answer(hold, gate.ALLOW, gate.BY_CALLBACK)
        ended = False
        while not (ended or waits_in_exec(child, b"mark\0")):
            time.sleep(0.005)
            if not waits_in_exec(child, b"mark\0"):  # what has filled the ring was before its exec
                ended = any(r.kind == "exit" and r.tid == child for r in parse(running.step()))
        try:
            word, pair = stack_text(child, longer + b"\0"), stack_text(child, struct.pack("=Q", 31))
            with open(f"/proc/{child}/mem", "r+b", buffering=0) as memory:
                memory.seek(pair)
                memory.write(struct.pack("=QQ", 31, word))
        except (OSError, ValueError):
            pass  # it has ended already
        return running.wait(), child


def test_a_forked_child_ends_nothing(tmp_path):
    """It has a copy of the engine and none of its threads: neither a use nor an end of it may reach
    the command, nor wait for threads that are not there."""
    with Running(["sh", "-c", "sleep 0.4; echo done"]) as running:
        running.go()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            ok = 1
            try:
                try:
                    running.backend.drain()
                except ValueError:
                    ok = 0
                running.backend.close()
            finally:
                os._exit(ok)
        assert os.waitpid(pid, 0)[1] == 0
        assert time.monotonic() - started < 5
        found = running.wait()
    assert (found.status, found.stdout) == (0, b"done\n")


def test_after_the_end_there_is_nothing_to_use():
    with Running(["true"]) as running:
        running.go()
        running.wait()
        running.backend.close()
        running.backend.close()
        for use in (running.backend.drain, running.backend.finished, running.backend.kill):
            with pytest.raises(ValueError, match="closed"):
                use()


@pytest.mark.parametrize(
    ("flag", "field"),
    [(1 << 4, 5), (1 << 5, 5), (1 << 6, 5), (1 << 7, 5), (1 << 8, 4), (1 << 3, 0), (1 << 18, 1)],
)
def test_a_shape_without_what_its_flags_need_is_refused(flag, field):
    from substrate.telemetry.capture._engine import Engine

    def shape(value: int) -> bytes:
        bytes_ = [255] * 6 + [0, 0]
        bytes_[field] = value
        return struct.pack("=I8BII", 1, *bytes_, flag, 0)

    with pytest.raises(ValueError, match="table"):
        Engine((shape(255), b"", b""), b"", 65536, 0, False)
    Engine((shape(1), b"", b""), b"", 65536, 0, False)


def test_one_engine_for_one_command():
    from substrate.telemetry.capture import engine

    made = engine.make("hybrid", "files")
    with pytest.raises(CaptureError):
        made.attach(2**22 + 1, None)
    with pytest.raises(ValueError, match="one command"):
        made.attach(os.getpid(), None)
    made.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No child of ours stays behind: each test's are in groups of their own."""
    yield
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
    os.kill(0, signal.SIGCONT)
