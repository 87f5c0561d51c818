"""Runs a program on a kernel that lacks some system calls, as far as the program can tell.

    python without_calls.py ERRNO CALL[,CALL...] PROGRAM [ARG...]

A seccomp filter answers the calls with the error, in the program and in all that it starts:
what an older kernel does (ENOSYS) or the filter of a container that has not heard of a call
(EPERM). Needs nothing of substrate, so that any user can run it with the system's Python.
"""

import ctypes
import os
import struct
import sys

NUMBERS = {  # (x86_64, aarch64): <asm/unistd_64.h>, <asm-generic/unistd.h>
    "capset": (126, 91),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "copy_file_range": (326, 285),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "getrandom": (318, 278),
    "kcmp": (312, 272),
    "landlock_create_ruleset": (444, 444),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_tree": (428, 428),
    "openat2": (437, 437),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "renameat2": (316, 276),
    "seccomp": (317, 277),
    "sendfile": (40, 71),
    "setns": (308, 268),
    "statx": (332, 291),
    "syncfs": (306, 267),
    "umount2": (166, 39),
    "unshare": (272, 97),
}
#: calls that no kernel lacks; a disk, or what lies below a filesystem, can fail them
READING = {
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "readlinkat": (267, 78),
}
#: clone(2) and unshare(2) with any of these flags, by the name "namespaces"
_NEW_FLAGS = 0x7E020000
_CLONE, _UNSHARE = (56, 220), (272, 97)
#: socket(2) of AF_NETLINK, NETLINK_NETFILTER, by the name "netfilter"
_SOCKET, _AF_NETLINK, _NETLINK_NETFILTER = (41, 198), 16, 12
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def install(number: int, calls: list[str]) -> None:
    """Answers `calls` with the error `number` from here on (seccomp(2), prctl(2))."""
    column = ("x86_64", "aarch64").index(os.uname().machine)
    program = [(0x20, 0, 0, 0)]  # load the call's number
    refuse, allow = (0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000)
    for call in calls:
        if call == "namespaces":
            for with_flags in (_CLONE, _UNSHARE):
                flags = [(0x20, 0, 0, 16), (0x45, 0, 1, _NEW_FLAGS), refuse, allow]
                program += [(0x15, 0, len(flags), with_flags[column]), *flags]
        elif call == "netfilter":
            family, protocol = (0x20, 0, 0, 16), (0x20, 0, 0, 32)
            arguments = [
                *(family, (0x15, 0, 3, _AF_NETLINK)),
                *(protocol, (0x15, 0, 1, _NETLINK_NETFILTER), refuse, allow),
            ]
            program += [(0x15, 0, len(arguments), _SOCKET[column]), *arguments]
        else:
            program += [(0x15, 0, 1, (NUMBERS | READING)[call][column]), refuse]
    program.append(allow)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    given = ctypes.byref(Program(len(program), ctypes.addressof(code)))
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) or libc.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), given, zero, zero
    ):
        raise OSError(ctypes.get_errno(), "no filter could be set")


if __name__ == "__main__":
    install(int(sys.argv[1]), sys.argv[2].split(","))
    os.execv(sys.argv[3], sys.argv[3:])
