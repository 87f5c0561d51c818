"""The last step to a command: a program of some 150 bytes that execs it and nothing else.

Why not exec it from here: the kernel opens a script's interpreter (and a binary's) with the eyes
of the process that calls execve(2), and at that moment /proc/self/exe is still our own Python, on
a mount of the host's. A file that begins with `#!/proc/self/exe` would run it, and could change
mode, times and attributes of the host's file from inside, or write it where the kernel lets a
running program be written (the way of CVE-2019-5736). So Python first becomes this program,
which lies in a sealed memfd and has only the command's own three fds and the go socket.

Its words: one byte that is the number of the go socket; the files to try, in order; an empty
word; then the command's own argv. It marks the socket close-on-exec and tries the files, going on
where execvp(3) does (ENOENT, ENOTDIR, EACCES). Where none could be exec'd it sends a packet of one
byte, the errno that says most, and exits with 126. It reads nothing, and holds nothing that is not
the world's already.

The listing beside the bytes is what they were assembled from; a test assembles it again.
Sources: execve(2), memfd_create(2), fcntl(2), <asm/unistd_64.h>, <asm-generic/unistd.h>, elf(5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    from substrate.world.spec import CommandSpec

_CODE: Final = {
    "x86_64": bytes.fromhex(
        "4c8b2424"  # mov r12, [rsp]
        "488d5c2408"  # lea rbx, [rsp+8]
        "4e8d6ce308"  # lea r13, [rbx+r12*8+8]
        "488b03"  # mov rax, [rbx]
        "440fb630"  # movzx r14d, byte ptr [rax]
        "4883c308"  # add rbx, 8
        "4889dd"  # mov rbp, rbx
        # words:
        "488b4500"  # mov rax, [rbp]
        "4883c508"  # add rbp, 8
        "803800"  # cmp byte ptr [rax], 0
        "75f3"  # jne words
        "4489f7"  # mov edi, r14d
        "be02000000"  # mov esi, 2
        "ba01000000"  # mov edx, 1
        "b848000000"  # mov eax, 72
        "0f05"  # syscall
        "4531ff"  # xor r15d, r15d
        # try:
        "488b3b"  # mov rdi, [rbx]
        "4883c308"  # add rbx, 8
        "803f00"  # cmp byte ptr [rdi], 0
        "742d"  # je end
        "4889ee"  # mov rsi, rbp
        "4c89ea"  # mov rdx, r13
        "b83b000000"  # mov eax, 59
        "0f05"  # syscall
        "f7d8"  # neg eax
        "83f802"  # cmp eax, 2
        "740f"  # je absent
        "83f814"  # cmp eax, 20
        "740a"  # je absent
        "4189c7"  # mov r15d, eax
        "83f80d"  # cmp eax, 13
        "74d3"  # je try
        "eb0a"  # jmp end
        # absent:
        "4585ff"  # test r15d, r15d
        "75cc"  # jne try
        "4189c7"  # mov r15d, eax
        "ebc7"  # jmp try
        # end:
        "44893c24"  # mov [rsp], r15d
        "4489f7"  # mov edi, r14d
        "4889e6"  # mov rsi, rsp
        "ba01000000"  # mov edx, 1
        "41ba00400000"  # mov r10d, 0x4000
        "4531c0"  # xor r8d, r8d
        "4531c9"  # xor r9d, r9d
        "b82c000000"  # mov eax, 44
        "0f05"  # syscall
        "bf7e000000"  # mov edi, 126
        "b8e7000000"  # mov eax, 231
        "0f05"  # syscall
    ),
    "aarch64": bytes.fromhex(
        "f30340f9"  # ldr x19, [sp]
        "f4230091"  # add x20, sp, #8
        "950e138b"  # add x21, x20, x19, lsl #3
        "b5220091"  # add x21, x21, #8
        "898640f8"  # ldr x9, [x20], #8
        "36014039"  # ldrb w22, [x9]
        "f70314aa"  # mov x23, x20
        # words:
        "e98640f8"  # ldr x9, [x23], #8
        "29014039"  # ldrb w9, [x9]
        "c9ffff35"  # cbnz w9, words
        "e003162a"  # mov w0, w22
        "410080d2"  # mov x1, #2
        "220080d2"  # mov x2, #1
        "280380d2"  # mov x8, #25
        "010000d4"  # svc #0
        "18008052"  # mov w24, #0
        # try:
        "808640f8"  # ldr x0, [x20], #8
        "09004039"  # ldrb w9, [x0]
        "29020034"  # cbz w9, end
        "e10317aa"  # mov x1, x23
        "e20315aa"  # mov x2, x21
        "a81b80d2"  # mov x8, #221
        "010000d4"  # svc #0
        "e903004b"  # neg w9, w0
        "3f090071"  # cmp w9, #2
        "e0000054"  # b.eq absent
        "3f510071"  # cmp w9, #20
        "a0000054"  # b.eq absent
        "f803092a"  # mov w24, w9
        "3f350071"  # cmp w9, #13
        "40feff54"  # b.eq try
        "04000014"  # b end
        # absent:
        "18feff35"  # cbnz w24, try
        "f803092a"  # mov w24, w9
        "eeffff17"  # b try
        # end:
        "f8030039"  # strb w24, [sp]
        "e003162a"  # mov w0, w22
        "e1030091"  # mov x1, sp
        "220080d2"  # mov x2, #1
        "030088d2"  # mov x3, #0x4000
        "040080d2"  # mov x4, #0
        "050080d2"  # mov x5, #0
        "c81980d2"  # mov x8, #206
        "010000d4"  # svc #0
        "c00f80d2"  # mov x0, #126
        "c80b80d2"  # mov x8, #94
        "010000d4"  # svc #0
    ),
}  # fmt: skip
_ELF_MACHINE: Final = {"x86_64": 62, "aarch64": 183}
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 2 * 56
_F_ADD_SEALS: Final = 1033
_SEALED: Final = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 0x1, 0x2, 0x10


def image(machine: str) -> bytes:
    """The program as an ELF file: a read-only segment, no stack that can be executed."""
    code = _CODE[machine]
    size = _HEADERS + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(ident, 2, _ELF_MACHINE[machine], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 2, 64, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + load + stack + code


def prepare() -> int:
    """An fd of the program, which nobody can change; close-on-exec.

    In a pid namespace where memfds must not be executed (vm.memfd_noexec, sysctl(8)) it lies on a
    tmpfs that is attached nowhere and read-only; that takes the right to mount."""
    program = image(linux.MACHINE)
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("substrate-exec", flags | _MFD_EXEC)
    except PermissionError:
        return _on_tmpfs(program)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("substrate-exec", flags)  # before Linux 6.3 all are executable
    os.write(fd, program)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALED)
    return fd


def _on_tmpfs(program: bytes) -> int:
    attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    mount = linux.new_mount("tmpfs", [("mode", "755"), ("size", "4k")], attributes)
    file = os.open("exec", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o555, dir_fd=mount)
    os.write(file, program)
    os.close(file)
    linux.mount_setattr(mount, set_flags=linux.MOUNT_ATTR_RDONLY)
    fd = os.open("exec", os.O_PATH | os.O_CLOEXEC, dir_fd=mount)
    os.close(mount)
    return fd


def leap(program: int, go: int, spec: CommandSpec) -> NoReturn:
    """Becomes the program, which execs the command. Raises OSError where that fails."""
    os.set_inheritable(go, True)
    words = (bytes([go]), *files_to_try(spec), b"", *spec.argv)
    os.execve(program, words, dict(spec.environ))
    raise AssertionError("execve returned")


def files_to_try(spec: CommandSpec) -> tuple[bytes, ...]:
    """The file itself, or one in each directory of the command's PATH (execvp(3))."""
    if b"/" in spec.file:
        return (spec.file,)
    path = dict(spec.environ).get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
    return tuple((directory or b".") + b"/" + spec.file for directory in path.split(b":"))
