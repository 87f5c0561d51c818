"""The program that execs a command: its bytes, and what it does as a real process."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.world import linux, trampoline, wire
from substrate.world.spec import CommandSpec

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
    pairs = {b"PATH": path, **{k.encode(): v for k, v in environ.items()}}
    return CommandSpec(
        file=file,
        argv=argv,
        environ=tuple(pairs.items()),
        cwd=b"/",
        umask=0,
        rlimits=(),
        terminal=None,
        stdio=(0, 0, 0),
        ignored_signals=(),
    )


def leap(command):
    """(status, output, the packet on the go socket, its sender was the child)."""
    ours, theirs = wire.pair()
    reading, writing = os.pipe()
    program = trampoline.prepare()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writing, 1)
            linux.mark_close_on_exec(3)
            trampoline.leap(program, theirs.fileno(), command)
        finally:
            os._exit(99)
    theirs.close()
    os.close(writing)
    os.close(program)
    with os.fdopen(reading, "rb") as stream:
        output = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    message = wire.receive(ours)
    ours.close()
    return status, output, message and message.kind[0], message and message.pid == pid


def test_the_command_gets_its_own_words_and_environment():
    show = b'printf "%s|" "$0" "$@" "$X"; ls /proc/self/fd | wc -l; readlink /proc/$$/exe'
    command = spec(b"/bin/sh", argv=(b"sh", b"-c", show, b"a", b"", b"c"), X=b"value")
    status, output, packet, _ = leap(command)
    # 0 to 2 and the listing itself
    assert (status, packet) == (0, None)
    words, _, program = output.partition(b"\n")
    assert words == b"a||c|value|4"
    assert os.path.samefile(program.strip(), "/bin/sh")


def test_it_is_searched_in_path():
    command = spec(b"echo", path=b"/etc/passwd:/nonexistent::/bin")
    assert leap(command) == (0, b"one \n", None, None)


@pytest.mark.parametrize(
    ("file", "path", "number"),
    [
        (b"/nonexistent", b"", errno.ENOENT),
        (b"/etc/passwd", b"", errno.EACCES),
        (b"/etc/passwd/x", b"", errno.ENOTDIR),
        (b"/proc/self/fd/0/" + b"x" * 300, b"", errno.ENOTDIR),
        (b"no-such-command", b"/usr/bin:/bin", errno.ENOENT),
        (b"passwd", b"/etc:/nonexistent", errno.EACCES),
        (b"passwd", b"/nonexistent:/etc", errno.EACCES),
    ],
)
def test_a_refusal_is_told_once(file, path, number):
    assert leap(spec(file, path=path)) == (126, b"", number, True)


def test_what_is_no_program_ends_the_search(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "tool").write_bytes(b"\x00\x01 nothing that can run")
    (tmp_path / "second" / "tool").write_text("#!/bin/sh\necho ran\n")
    for path in tmp_path.glob("*/tool"):
        path.chmod(0o755)
    path = f"{tmp_path}/first:{tmp_path}/second".encode()
    assert leap(spec(b"tool", path=path)) == (126, b"", errno.ENOEXEC, True)


def test_many_words_arrive(tmp_path):
    words = tuple(b"%d" % n * 20 for n in range(5000))
    status, output, _, _ = leap(spec(b"/bin/echo", argv=(b"echo", *words)))
    assert (status, output) == (0, b" ".join(words) + b"\n")


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
    assert done.stdout == f"/exec\n{errno.EROFS}\n(0, b'one \\n', None, None)\n", done.stderr
