"""Which capabilities a command keeps, and giving up the others (capabilities(7), world.md §7).

Not the namespaces that make the kept ones harmless: in `ns-root-idmap` they count only over
the world's own ids; in `ns-root` they are real, so the list is what a package manager needs
and nothing that reaches a device, the network, a mount or another process' memory.

Device nodes cannot be made (CAP_MKNOD), files not opened by handle (CAP_DAC_READ_SEARCH),
`chroot`, `sethostname`, raw sockets and raised hard limits are refused for the same reason:
the capability is gone, from the bounding set too, so no exec brings it back.

Invariant: after `restrict` the thread's sets were read back and hold nothing else; else it
raises. It belongs after the last change of ids and before no_new_privs and the filters.
"""

from __future__ import annotations

import ctypes
import errno

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_NET_BIND_SERVICE: Final = 10
CAP_SETFCAP: Final = 31

#: what apt, dpkg, tar and a server on port 80 need as root
ROOT_KEEPS: Final = sum(
    1 << number
    for number in (
        CAP_CHOWN,
        CAP_DAC_OVERRIDE,
        CAP_FOWNER,
        CAP_FSETID,
        CAP_KILL,
        CAP_SETGID,
        CAP_SETUID,
        CAP_NET_BIND_SERVICE,
        CAP_SETFCAP,
    )
)

#: backend -> mask of what its commands keep. Not here: `none`, which changes nothing.
KEPT: Final[dict[str, int]] = {
    "ns-root-idmap": ROOT_KEEPS,
    "ns-root": ROOT_KEEPS,
    "ns-user": 0,
    # files of others in its copy; chown and the like are answered (world/answering.py)
    "guard": 1 << CAP_DAC_OVERRIDE,
}

_PR_CAPBSET_READ: Final = 23
_PR_SET_SECUREBITS: Final = 28
#: NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE: each with its lock. With these no uid gives a
#: capability, ever; a nested user namespace starts with its own bits. KEEP_CAPS is left alone: there
#: is nothing to keep, and ping ends where it cannot set it.
_NOTHING_FROM_IDS: Final = 0x01 | 0x02 | 0x04 | 0x08 | 0x40 | 0x80
_VERSION_3: Final = 0x20080522


def restrict(backend: str) -> int:
    """Cuts the calling thread's capabilities to what `backend` keeps; returns the mask left.

    The bounding set first (dropping from it needs CAP_SETPCAP, which the next steps take),
    then the secure bits, the ambient set, and last effective, permitted and inheritable.
    What the thread does not have it cannot keep: in a container the result may be smaller.
    `none` changes nothing and returns the permitted set. Raises OSError when the kernel
    refuses, PermissionError when a set is not what it must be, KeyError for another backend.
    """
    _, permitted, _ = get_capabilities()
    if backend == "none":
        return permitted
    keep = KEPT[backend] & permitted
    may_cut = bool(get_capabilities()[0] >> CAP_SETPCAP & 1)
    if may_cut:
        for number in range(64):
            if not keep >> number & 1 and not _drop_from_bounding(number):
                break
        if keep == 0:
            linux.prctl(_PR_SET_SECUREBITS, _NOTHING_FROM_IDS)
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    linux.set_capabilities(keep, keep, 0)
    _check(keep, bounded=may_cut)
    return keep


def _drop_from_bounding(number: int) -> bool:
    """False for one that this kernel does not have."""
    try:
        linux.prctl(linux.PR_CAPBSET_DROP, number)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _check(keep: int, *, bounded: bool) -> None:
    """`bounded` is False for an ordinary user without a namespace of his own (`guard`): his
    bounding set stays, and it is no_new_privs that makes it worth nothing."""
    sets = get_capabilities()
    if sets != (keep, keep, 0):
        raise PermissionError(errno.EPERM, f"capabilities are {sets}, not {keep:#x}")
    left = sum(1 << number for number in _bounding_numbers())
    if bounded and left & ~keep:
        raise PermissionError(errno.EPERM, f"the bounding set is still {left:#x}")


def _bounding_numbers() -> list[int]:
    """The capabilities in the bounding set, by the kernel's own count."""
    found = []
    for number in range(64):
        try:
            if linux.prctl(_PR_CAPBSET_READ, number):
                found.append(number)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # one past the last that this kernel has
    return found


def get_capabilities() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of the calling thread as masks: capget(2)."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    linux.syscall("capget", ctypes.byref(header), ctypes.byref(data))
    low, high = data[:3], data[3:]
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable
