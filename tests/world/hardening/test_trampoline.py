"""The program that execs a command: its bytes, and what it does as a real process."""

import contextlib
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from substrate.world import linux, script, trampoline, wire
from substrate.world.handle import Go
from substrate.world.spec import CLOSED, NULL, CommandSpec

ASSEMBLERS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
SOURCE = Path(trampoline.__file__).read_text()


def listing(machine):
    """(bytes, assembler source) as they stand beside each other in the module."""
    text = SOURCE.partition(f'"{machine}": bytes.fromhex(')[2].partition("\n    ),")[0]
    code, source = "", ["_start:"]
    for line in text.strip().splitlines():
        found = re.fullmatch(r'\s*(?:"([0-9a-f]+)"\s+)?# (.+)', line)
        code += found[1] or ""
        source.append(found[2])
    return bytes.fromhex(code), "\n".join(source) + "\n"


@pytest.mark.parametrize("machine", sorted(ASSEMBLERS))
def test_the_bytes_are_what_the_listing_says(machine, tmp_path):
    assembler = f"{ASSEMBLERS[machine]}-as"
    if shutil.which(assembler) is None:
        pytest.skip(f"{assembler} (binutils-{ASSEMBLERS[machine].replace('_', '-')}) is missing")
    code, source = listing(machine)
    syntax = ".intel_syntax noprefix\n" if machine == "x86_64" else ""
    (tmp_path / "in.s").write_text(f"{syntax}.globl _start\n{source}")
    subprocess.run([assembler, "in.s", "-o", "out.o"], cwd=tmp_path, check=True)
    objcopy = f"{ASSEMBLERS[machine]}-objcopy"
    subprocess.run(
        [objcopy, "-O", "binary", "-j", ".text", "out.o", "out"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "out").read_bytes() == code == trampoline._CODE[machine]


def spec(file, argv=(b"zero", b"one", b""), path=b"/usr/bin:/bin", **environ):
    given = {"cwd": b"/", "umask": 0, "rlimits": (), "stdio": (NULL, 0, 0), "ignored_signals": ()}
    given |= {name: environ.pop(name) for name in tuple(environ) if name in given}
    pairs = {b"PATH": path, **{k.encode(): v for k, v in environ.items()}}
    return CommandSpec(file=file, argv=argv, environ=tuple(pairs.items()), terminal=None, **given)


#: runs the program of the other machine, whose calls it translates
EMULATOR = "/usr/bin/qemu-aarch64"


class Seat:
    """A process that is the program, of which this one is the parent."""

    def __init__(self, machine=linux.MACHINE):
        self.machine = machine
        self.directory = tempfile.TemporaryDirectory()
        image = Path(self.directory.name) / "image"
        image.write_bytes(trampoline.image(machine))
        image.chmod(0o755)
        self.door, seat = wire.pair()
        program = trampoline.prepare()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                null = os.open("/dev/null", os.O_RDWR)
                for standard in range(3):
                    os.dup2(null, standard)
                high = fcntl.fcntl(seat.fileno(), fcntl.F_DUPFD, 50)
                kept = fcntl.fcntl(program, fcntl.F_DUPFD_CLOEXEC, 51)
                for fd in range(3, 50):
                    with contextlib.suppress(OSError):
                        os.close(fd)
                linux.mark_close_on_exec(3)
                if machine != linux.MACHINE:
                    os.dup2(high, 3)
                    os.execve(EMULATOR, [EMULATOR, image], {})
                trampoline.become(kept, high)
            finally:
                os._exit(99)
        seat.close()
        os.close(program)

    def give(self, command, *streams):
        ours, theirs = wire.pair()
        compiled = script.compile_script(command, len(streams), self.machine)
        memory = script.pack(compiled)
        script.hand_over(len(compiled.content), memory, self.door, theirs, streams)
        os.close(memory)
        theirs.close()
        return Go(ours, lambda: None, compiled)

    def status(self):
        self.door.close()
        self.directory.cleanup()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def leap(command, machine=linux.MACHINE):
    """(status, output, how it failed: step and errno)."""
    reading, writing = os.pipe()
    seat = Seat(machine)
    go = seat.give(command, writing)
    os.close(writing)
    hello = go.receive()
    failed = None
    if hello is not None and hello.kind == wire.HELLO:
        assert hello.pid == seat.pid
        go.give()
    else:
        failed = hello
    with os.fdopen(reading, "rb") as stream:
        output = stream.read()
    status = seat.status()
    failed = failed or go.receive()
    go.close()
    assert failed is None or failed.pid == seat.pid
    return status, output, failed and (failed.text(0), failed.number(1))


def test_the_command_gets_its_own_words_and_environment():
    show = b'printf "%s|" "$0" "$@" "$X"; ls /proc/self/fd | wc -l; readlink /proc/$$/exe'
    command = spec(b"/bin/sh", argv=(b"sh", b"-c", show, b"a", b"", b"c"), X=b"value")
    status, output, failed = leap(command)
    # 0 to 2 and the listing itself
    assert (status, failed) == (0, None)
    words, _, program = output.partition(b"\n")
    assert words == b"a||c|value|4"
    assert os.path.samefile(program.strip(), "/bin/sh")


def test_all_that_it_was_given_is_in_force(tmp_path):
    show = (
        "import os, resource, signal, sys\n"
        "print(os.getcwd(), oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "print([int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN])\n"
        "print(sorted(os.listdir('/proc/self/fd')), os.readlink('/proc/self/fd/0'))\n"
    )
    command = spec(
        os.fsencode(sys.executable),
        argv=(b"python", b"-c", show.encode()),
        cwd=os.fsencode(tmp_path),
        umask=0o027,
        rlimits=((resource.RLIMIT_NOFILE, 99, 123),),
        ignored_signals=(signal.SIGHUP, signal.SIGUSR1),
    )
    status, output, failed = leap(command)
    assert (status, failed) == (0, None)
    ignored = [1, 10, 13, 25]  # Python itself ignores SIGPIPE and SIGXFSZ
    # 3 is the listing
    assert output.decode() == (
        f"{tmp_path} 0o27 (99, 123)\n{ignored}\n['0', '1', '2', '3'] /dev/null\n"
    )


def test_a_stream_can_be_closed():
    command = spec(b"/bin/ls", argv=(b"ls", b"/proc/self/fd"), stdio=(CLOSED, 0, CLOSED))
    assert leap(command) == (0, b"0\n1\n", None)


def test_it_is_searched_in_path():
    command = spec(b"echo", path=b"/etc/passwd:/nonexistent::/bin")
    assert leap(command) == (0, b"one \n", None)


@pytest.mark.parametrize(
    ("file", "path", "number"),
    [
        (b"/nonexistent", b"", errno.ENOENT),
        (b"/etc/passwd", b"", errno.EACCES),
        (b"/etc/passwd/x", b"", errno.ENOTDIR),
        (b"/proc/self/fd/0/" + b"x" * 300, b"", errno.ENOTDIR),
        (b"no-such-command", b"/usr/bin:/bin", errno.ENOENT),
        (b"no-such-command", b":".join([b"/nonexistent"] * 3000), errno.ENOENT),
        (b"passwd", b"/etc:/nonexistent", errno.EACCES),
        (b"passwd", b"/nonexistent:/etc", errno.EACCES),
    ],
)
def test_a_refusal_is_told_once(file, path, number):
    step = f"exec {os.fsdecode(file)}"
    assert leap(spec(file, path=path)) == (126, b"", (step, number))


def test_what_is_no_program_ends_the_search(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "tool").write_bytes(b"\x00\x01 nothing that can run")
    (tmp_path / "second" / "tool").write_text("#!/bin/sh\necho ran\n")
    for path in tmp_path.glob("*/tool"):
        path.chmod(0o755)
    path = f"{tmp_path}/first:{tmp_path}/second".encode()
    assert leap(spec(b"tool", path=path)) == (126, b"", ("exec tool", errno.ENOEXEC))


@pytest.mark.parametrize(
    ("given", "failed"),
    [
        ({"cwd": b"/nonexistent"}, ("chdir /nonexistent", errno.ENOENT)),
        ({"cwd": b"/etc/passwd"}, ("chdir /etc/passwd", errno.ENOTDIR)),
        ({"rlimits": ((7, 9, 8),)}, ("limits", errno.EINVAL)),
        ({"stdio": (NULL, 0, 5)}, ("streams", errno.EBADF)),
    ],
)
def test_a_step_that_fails_is_named_and_nothing_runs(given, failed):
    assert leap(spec(b"/bin/echo", **given)) == (126, b"", failed)


def test_many_words_arrive():
    words = tuple(b"%d" % n * 20 for n in range(5000))
    status, output, _ = leap(spec(b"/bin/echo", argv=(b"echo", *words)))
    assert (status, output) == (0, b" ".join(words) + b"\n")


def test_more_than_a_megabyte_of_words_and_variables_arrives():
    words = [b"x" * 100_000 for _ in range(8)]
    status, output, _ = leap(
        spec(
            b"/bin/sh",
            argv=(b"sh", b"-c", b"echo $#; printf %s $LONG | wc -c", b"sh", *words),
            LONG=b"y" * 120_000,
        )
    )
    assert (status, output) == (0, b"8\n120000\n")


def test_what_the_kernel_does_not_take_is_refused():
    words = [b"x" * 100_000 for _ in range(100)]
    command = spec(b"/bin/echo", argv=(b"echo", *words))
    assert leap(command) == (126, b"", ("exec /bin/echo", errno.E2BIG))


def test_without_a_go_nothing_runs():
    reading, writing = os.pipe()
    seat = Seat()
    go = seat.give(spec(b"/bin/echo"), writing)
    os.close(writing)
    assert go.receive().kind == wire.HELLO
    go.close()
    with os.fdopen(reading, "rb") as stream:
        assert stream.read() == b""
    assert seat.status() == 126


@pytest.mark.skipif(
    not os.path.exists(EMULATOR) or linux.MACHINE == "aarch64", reason="qemu-user is missing"
)
def test_the_program_of_the_other_machine_does_the_same(tmp_path):
    there = {"cwd": os.fsencode(tmp_path), "ignored_signals": (1,), "stdio": (NULL, 0, CLOSED)}
    show = b"pwd; umask; ls /proc/self/fd"
    words = (b"sh", b"-c", show)
    found = leap(spec(b"sh", words, path=b"/nonexistent:/bin", umask=0o27, **there), "aarch64")
    assert found == (0, b"%s\n0027\n0\n1\n2\n" % os.fsencode(tmp_path), None)
    for command, failed in (
        (spec(b"nowhere"), ("exec nowhere", errno.ENOENT)),
        (spec(b"passwd", path=b"/etc:/nonexistent"), ("exec passwd", errno.EACCES)),
        (spec(b"sh", cwd=b"/nonexistent"), ("chdir /nonexistent", errno.ENOENT)),
        (spec(b"sh", stdio=(NULL, 0, 5)), ("streams", errno.EBADF)),
    ):
        assert leap(command, "aarch64") == (126, b"", failed)


@pytest.mark.parametrize("packet", [b"", b"x", b"123456789"])
def test_what_is_no_request_ends_it(packet):
    seat = Seat()
    if packet:
        seat.door.send(packet)
    assert seat.status() == 126


def test_a_waiting_one_is_small():
    seat = Seat()
    wait_until_it_waits(seat.pid)
    status = Path(f"/proc/{seat.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 200  # KiB
    assert seat.status() == 126


def wait_until_it_waits(pid):
    until = time.monotonic() + 10
    while "recvmsg" not in Path(f"/proc/{pid}/wchan").read_text() and (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S"
    ):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_nobody_can_change_the_program():
    fd = trampoline.prepare()
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    os.close(again)
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and sets a value of a pid namespace")
def test_where_memfds_are_not_executed_it_lies_on_a_tmpfs():
    """The setting counts for a pid namespace (sysctl(8) vm.memfd_noexec), so for our own here."""
    code = (
        "from substrate.world import trampoline, linux; import os\n"
        "open('/proc/sys/vm/memfd_noexec', 'w').write('2')\n"
        "fd = trampoline.prepare()\n"
        "print(os.readlink(f'/proc/self/fd/{fd}'))\n"
        "try: os.chmod(f'/proc/self/fd/{fd}', 0o600)\n"
        "except OSError as error: print(error.errno)\n"
        "import tests.world.hardening.test_trampoline as here\n"
        "print(here.leap(here.spec(b'echo')))\n"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount", "--mount-proc"]
    done = subprocess.run(
        [*unshare, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == f"/exec\n{errno.EROFS}\n(0, b'one \\n', None)\n", done.stderr
