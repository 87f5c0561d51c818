"""The program in which a command waits, and from which it is exec'd: some 350 bytes.

Why not exec a command from Python. The kernel opens a script's interpreter (and a binary's) with
the eyes of the process that calls execve(2), and at that moment /proc/self/exe would still be our
own Python, on a mount of the host's. A file that begins with `#!/proc/self/exe` would run it, and
could change mode, times and attributes of the host's file from inside, or write it where the kernel
lets a running program be written (the way of CVE-2019-5736). And a Python's memory takes a
millisecond to be given up; a seat (command.py) has done that before the command is known.

The program lies in a memfd that nobody can change. It makes itself undumpable, receives one packet
on fd 3, and maps the file that comes with it (as fd 4) at `BASE`; the packet's 8 bytes are the
length. What lies there is a script (script.py): entries of eight words, a system call's number and
its six arguments, and how its result is taken; the list ends where a number is negative. The calls
are made in their order:

- PLAIN: a result below zero ends it;
- ONE: any result but 1 ends it without a word (nobody gives the go any more);
- EXEC: returns only if it failed. As execvp(3) does, it goes on after ENOENT, ENOTDIR, EACCES.

When it ends it says on fd 5 which errno says most and after how many entries, as a wire message of
kind `x`, and exits with 126. It holds nothing that is not the world's already.

The listing beside the bytes is what they were assembled from; a test assembles it again.
Sources: execve(2), recvmsg(2), memfd_create(2), <asm/unistd_64.h>, <asm-generic/unistd.h>, elf(5).
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

#: where a script is mapped: far below what the kernel maps, with the smallest address space too
#: (2^36, aarch64)
BASE: Final = 0x8_0000_0000
#: how a result is taken
PLAIN, ONE, EXEC = range(3)
_CODE: Final = {
    "x86_64": bytes.fromhex(
        "bf04000000"  # mov edi, 4
        "31f6"  # xor esi, esi
        "b89d000000"  # mov eax, 157
        "0f05"  # syscall
        "4531ff"  # xor r15d, r15d
        "4881ec00010000"  # sub rsp, 256
        "4c893c24"  # mov [rsp], r15
        "4c897c2408"  # mov [rsp+8], r15
        "488d4c2440"  # lea rcx, [rsp+64]
        "48894c2410"  # mov [rsp+16], rcx
        "48c744241801000000"  # mov qword ptr [rsp+24], 1
        "488d542450"  # lea rdx, [rsp+80]
        "488911"  # mov [rcx], rdx
        "48c7410808000000"  # mov qword ptr [rcx+8], 8
        "488d542460"  # lea rdx, [rsp+96]
        "4889542420"  # mov [rsp+32], rdx
        "48c744242840000000"  # mov qword ptr [rsp+40], 64
        "bf03000000"  # mov edi, 3
        "4889e6"  # mov rsi, rsp
        "ba00000040"  # mov edx, 0x40000000
        "b82f000000"  # mov eax, 47
        "0f05"  # syscall
        "4883f808"  # cmp rax, 8
        "0f85d9000000"  # jne out
        "48bf0000000008000000"  # movabs rdi, 0x800000000
        "488b742450"  # mov rsi, [rsp+80]
        "ba03000000"  # mov edx, 3
        "41ba12000000"  # mov r10d, 0x12
        "41b804000000"  # mov r8d, 4
        "4531c9"  # xor r9d, r9d
        "b809000000"  # mov eax, 9
        "0f05"  # syscall
        "4889c3"  # mov rbx, rax
        "4885c0"  # test rax, rax
        "7909"  # jns begin
        "f7d8"  # neg eax
        "4189c7"  # mov r15d, eax
        "31db"  # xor ebx, ebx
        "eb66"  # jmp end
        # begin:
        # next:
        "488b03"  # mov rax, [rbx]
        "4885c0"  # test rax, rax
        "785e"  # js end
        "488b7b08"  # mov rdi, [rbx+8]
        "488b7310"  # mov rsi, [rbx+16]
        "488b5318"  # mov rdx, [rbx+24]
        "4c8b5320"  # mov r10, [rbx+32]
        "4c8b4328"  # mov r8, [rbx+40]
        "4c8b4b30"  # mov r9, [rbx+48]
        "0f05"  # syscall
        "8b4b38"  # mov ecx, [rbx+56]
        "4883c340"  # add rbx, 64
        "85c9"  # test ecx, ecx
        "750c"  # jnz special
        "4885c0"  # test rax, rax
        "79ce"  # jns next
        "f7d8"  # neg eax
        "4189c7"  # mov r15d, eax
        "eb2d"  # jmp end
        # special:
        "83f901"  # cmp ecx, 1
        "7508"  # jne try
        "4883f801"  # cmp rax, 1
        "74bc"  # je next
        "eb58"  # jmp out
        # try:
        "f7d8"  # neg eax
        "83f802"  # cmp eax, 2
        "740f"  # je absent
        "83f814"  # cmp eax, 20
        "740a"  # je absent
        "4189c7"  # mov r15d, eax
        "83f80d"  # cmp eax, 13
        "74a6"  # je next
        "eb0a"  # jmp end
        # absent:
        "4585ff"  # test r15d, r15d
        "759f"  # jnz next
        "4189c7"  # mov r15d, eax
        "eb9a"  # jmp next
        # end:
        "c6042478"  # mov byte ptr [rsp], 0x78
        "c744240105000000"  # mov dword ptr [rsp+1], 5
        "44887c2405"  # mov [rsp+5], r15b
        "c1eb06"  # shr ebx, 6
        "895c2406"  # mov [rsp+6], ebx
        "bf05000000"  # mov edi, 5
        "4889e6"  # mov rsi, rsp
        "ba0a000000"  # mov edx, 10
        "41ba00400000"  # mov r10d, 0x4000
        "4531c0"  # xor r8d, r8d
        "4531c9"  # xor r9d, r9d
        "b82c000000"  # mov eax, 44
        "0f05"  # syscall
        # out:
        "bf7e000000"  # mov edi, 126
        "b8e7000000"  # mov eax, 231
        "0f05"  # syscall
    ),
    "aarch64": bytes.fromhex(
        "800080d2"  # mov x0, #4
        "010080d2"  # mov x1, #0
        "e81480d2"  # mov x8, #167
        "010000d4"  # svc #0
        "14008052"  # mov w20, #0
        "ff0304d1"  # sub sp, sp, #256
        "ff7f00a9"  # stp xzr, xzr, [sp]
        "e1030191"  # add x1, sp, #64
        "220080d2"  # mov x2, #1
        "e10b01a9"  # stp x1, x2, [sp, #16]
        "e3430191"  # add x3, sp, #80
        "040180d2"  # mov x4, #8
        "e31304a9"  # stp x3, x4, [sp, #64]
        "e5830191"  # add x5, sp, #96
        "060880d2"  # mov x6, #64
        "e51b02a9"  # stp x5, x6, [sp, #32]
        "ff1b00f9"  # str xzr, [sp, #48]
        "600080d2"  # mov x0, #3
        "e1030091"  # mov x1, sp
        "0200a852"  # mov w2, #0x40000000
        "881a80d2"  # mov x8, #212
        "010000d4"  # svc #0
        "1f2000f1"  # cmp x0, #8
        "41070054"  # b.ne out
        "0001c0d2"  # mov x0, #0x800000000
        "e12b40f9"  # ldr x1, [sp, #80]
        "620080d2"  # mov x2, #3
        "430280d2"  # mov x3, #0x12
        "840080d2"  # mov x4, #4
        "050080d2"  # mov x5, #0
        "c81b80d2"  # mov x8, #222
        "010000d4"  # svc #0
        "8000f8b6"  # tbz x0, #63, begin
        "f403004b"  # neg w20, w0
        "130080d2"  # mov x19, #0
        "1f000014"  # b end
        # begin:
        "f30300aa"  # mov x19, x0
        # next:
        "680240f9"  # ldr x8, [x19]
        "8803f8b7"  # tbnz x8, #63, end
        "608640a9"  # ldp x0, x1, [x19, #8]
        "628e41a9"  # ldp x2, x3, [x19, #24]
        "649642a9"  # ldp x4, x5, [x19, #40]
        "010000d4"  # svc #0
        "693a40b9"  # ldr w9, [x19, #56]
        "73020191"  # add x19, x19, #64
        "89000035"  # cbnz w9, special
        "e0feffb6"  # tbz x0, #63, next
        "f403004b"  # neg w20, w0
        "12000014"  # b end
        # special:
        "3f050071"  # cmp w9, #1
        "81000054"  # b.ne try
        "1f0400f1"  # cmp x0, #1
        "20feff54"  # b.eq next
        "1c000014"  # b out
        # try:
        "e903004b"  # neg w9, w0
        "3f090071"  # cmp w9, #2
        "e0000054"  # b.eq absent
        "3f510071"  # cmp w9, #20
        "a0000054"  # b.eq absent
        "f403092a"  # mov w20, w9
        "3f350071"  # cmp w9, #13
        "00fdff54"  # b.eq next
        "04000014"  # b end
        # absent:
        "d4fcff35"  # cbnz w20, next
        "f403092a"  # mov w20, w9
        "e4ffff17"  # b next
        # end:
        "090f8052"  # mov w9, #0x78
        "e9030039"  # strb w9, [sp]
        "a9008052"  # mov w9, #5
        "e91300b8"  # stur w9, [sp, #1]
        "f4170039"  # strb w20, [sp, #5]
        "697e0653"  # lsr w9, w19, #6
        "e96300b8"  # stur w9, [sp, #6]
        "a00080d2"  # mov x0, #5
        "e1030091"  # mov x1, sp
        "420180d2"  # mov x2, #10
        "030088d2"  # mov x3, #0x4000
        "040080d2"  # mov x4, #0
        "050080d2"  # mov x5, #0
        "c81980d2"  # mov x8, #206
        "010000d4"  # svc #0
        # out:
        "c00f80d2"  # mov x0, #126
        "c80b80d2"  # mov x8, #94
        "010000d4"  # svc #0
    ),
}  # fmt: skip
_ELF_MACHINE: Final = {"x86_64": 62, "aarch64": 183}
_IMAGE: Final = 0x400000
_HEADERS: Final = 64 + 2 * 56
#: who may not read a program is not dumpable from its exec on (execve(2), prctl(2) PR_SET_DUMPABLE)
_UNREADABLE: Final = 0o111
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
        *(ident, 2, _ELF_MACHINE[machine], 1, _IMAGE + _HEADERS, 64, 0, 0, 64, 56, 2, 64, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _IMAGE, _IMAGE, size, size, 0x10000)
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
    os.fchmod(fd, _UNREADABLE)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALED)
    return fd


def _on_tmpfs(program: bytes) -> int:
    attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
    mount = linux.new_mount("tmpfs", [("mode", "755"), ("size", "4k")], attributes)
    file = os.open("exec", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, _UNREADABLE, dir_fd=mount)
    os.write(file, program)
    os.close(file)
    linux.mount_setattr(mount, set_flags=linux.MOUNT_ATTR_RDONLY)
    fd = os.open("exec", os.O_PATH | os.O_CLOEXEC, dir_fd=mount)
    os.close(mount)
    return fd


def become(program: int, seat: int) -> NoReturn:
    """Becomes the program, which waits on the socket `seat`. Raises OSError where that fails."""
    if seat != 3:
        os.dup2(seat, 3)
    os.set_inheritable(3, True)
    os.execve(program, (b"substrate-seat",), {})
    raise AssertionError("execve returned")
