"""The hardening filter: which system calls a world answers with an error (world.md §7).

Not the capture filter (that one only observes) and not a sandbox by itself: namespaces,
mounts and capabilities do the isolating, this takes away what would act beside them and the
parts of the kernel that a developer's command has no use for. `sethostname`, `chroot` and
raising of limits are left to the dropped capabilities (world.capabilities); device nodes are
denied here too, because device 0:0, an overlay's whiteout, needs no capability.

Invariants:
- The architecture is checked first. A call by another one (i386 by `int 0x80`) kills the
  process with SIGSYS: nothing of a 32-bit program could go on, and a death is seen and
  recorded where an error number would not be. x32 calls get ENOSYS, like on a kernel without.
- Numbers that nobody has looked at (gaps and calls newer than this table) get ENOSYS: a new
  kernel never adds a way out by itself, and programs fall back as on an older kernel.
- Every comparison of an `int` argument takes the low word only, as the kernel truncates it.
- Calls that always pass are decided without looking at arguments, so that the kernel
  (>= 5.11) keeps them in its per-filter bitmap and does not run the program for them at all.

Errors: EPERM by default; ENOSYS where libc or the program has a fallback (clone3, io_uring);
the socket errors of a kernel without the family, type or protocol. One call is answered as done
and is not: to set RLIMIT_CORE, whose value 1 keeps the kernel from starting the host's program for
core dumps (world.limits). Many programs lower it to 0 (ulimit -c 0, gpg, ssh-agent), some of which
end when they cannot; a dump there is none either way.

How it is built: a chunk is a tuple of instructions in which every path ends in a return, so
chunks nest without labels. Source: <linux/filter.h>, <linux/seccomp.h>, seccomp(2).
"""

from __future__ import annotations

import errno
import struct

from substrate.world.syscall_numbers import MACHINES, NUMBERS, UNASSIGNED, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    Instruction = tuple[int, int, int, int]
    Chunk = tuple[Instruction, ...]

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000

# BPF operations: class | size or source | mode or condition
_LOAD: Final = 0x20  # LD W ABS
_JUMP: Final = 0x05  # JA
_JUMP_EQUAL: Final = 0x15
_JUMP_NOT_BELOW: Final = 0x35  # JGE, unsigned
_JUMP_ANY_BIT: Final = 0x45  # JSET
_AND: Final = 0x54
RETURN: Final = 0x06

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6] (little-endian)
_NR: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16

#: NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET. In clone(2) the low byte is the exit
#: signal, so NEWTIME (0x80) exists for unshare only.
CLONE_NEW_FLAGS: Final = 0x7E020000
UNSHARE_NEW_FLAGS: Final = CLONE_NEW_FLAGS | 0x80
CLONE_NEWCGROUP: Final = 0x02000000

TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
TIOCCONS: Final = 0x541D
TIOCSETD: Final = 0x5423
PR_SET_MM: Final = 35
PERSONALITY_QUERY: Final = 0xFFFFFFFF
#: PER_LINUX32 (uname says i686), UNAME26, ADDR_NO_RANDOMIZE (debuggers, repeatable runs)
PERSONALITY_ALLOWED: Final = 0x00000008 | 0x00020000 | 0x00040000
MSG_FASTOPEN: Final = 0x20000000
RLIMIT_CORE: Final = 4

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_TYPE_MASK = 1, 2, 3, 0xF
_IPPROTO_ICMP, _IPPROTO_TCP, _IPPROTO_UDP, _IPPROTO_ICMPV6 = 1, 6, 17, 58
_NETLINK_ROUTE: Final = 0
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000

_MOUNTS: Final = [
    "mount",
    "umount2",
    "pivot_root",
    "open_tree",
    "open_tree_attr",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
]
_DEBUGGING: Final = ["ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"]
_RINGS: Final = ["io_uring_setup", "io_uring_enter", "io_uring_register"]

#: call -> errno, whatever its arguments. statmount, listmount (read-only), landlock_*, seccomp
#: and the memory policy calls that only touch the caller (mbind, set_mempolicy) stay allowed.
DENIED: Final[dict[str, int]] = {
    **dict.fromkeys(_MOUNTS, errno.EPERM),
    **dict.fromkeys(_DEBUGGING, errno.EPERM),
    **dict.fromkeys(_RINGS, errno.ENOSYS),
    **dict.fromkeys(
        [
            "setns",
            "open_by_handle_at",
            "fanotify_init",
            "process_madvise",
            "move_pages",
            "migrate_pages",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "add_key",
            "request_key",
            "keyctl",
            "kexec_load",
            "kexec_file_load",
            "init_module",
            "finit_module",
            "delete_module",
            "settimeofday",
            "adjtimex",
            "clock_settime",
            "clock_adjtime",
            "swapon",
            "swapoff",
            "quotactl",
            "quotactl_fd",
            "reboot",
            "acct",
            "syslog",
            "vhangup",
            "iopl",
            "ioperm",
        ],
        errno.EPERM,
    ),
    # "this filesystem has no handles", which every caller must expect
    "name_to_handle_at": errno.EOPNOTSUPP,
    # its flags are behind a pointer; libc falls back to clone
    "clone3": errno.ENOSYS,
    # hides memory from the tracer and so from the record; off in many kernels
    "memfd_secret": errno.ENOSYS,
    # off in many kernels; vm86, its sibling, has no 64-bit number
    "modify_ldt": errno.ENOSYS,
    **dict.fromkeys(
        [
            "uselib",
            "_sysctl",
            "create_module",
            "get_kernel_syms",
            "query_module",
            "nfsservctl",
            "lookup_dcookie",
        ],
        errno.ENOSYS,
    ),
}

#: Denials that are evidence of an attempt to get out (world.md §7): these may be left to a second
#: filter, which answers them by notification with the same error (`evidence`).
EVIDENCE: Final = frozenset(
    {
        *_MOUNTS,
        *_DEBUGGING,
        *[
            "setns",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "open_by_handle_at",
            "add_key",
            "request_key",
            "keyctl",
        ],
        *["init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"],
        # denied by their flags
        *["clone", "unshare"],
    }
)

_HOT: Final = [
    "read",
    "write",
    "close",
    "fstat",
    "mmap",
    "openat",
    "newfstatat",
    "futex",
    "epoll_wait",
    "epoll_pwait",
    "getdents64",
    "ioctl",
]
#: how much nearer to the root of the tree a hot call stands than another one
_HOT_WEIGHT: Final = 48


def build_filter(
    *,
    machine: str,
    allow_ptrace: bool = False,
    allow_perf: bool = False,
    allow_userns: bool = False,
    allow_cgroupns: bool = False,
    allow_io_uring: bool = False,
    tcp_only: bool = False,
    more: Mapping[str, Chunk] | None = None,
    observed: frozenset[str] = frozenset(),
) -> bytes:
    """The filter as classic BPF, 8 bytes an instruction, for `linux.install_filter`.

    `machine` is x86_64 or aarch64. `allow_ptrace` lets debuggers work (gdb, strace),
    `allow_perf` adds performance counters (rr needs both). `allow_userns` lets programs nest
    namespaces and mount in them (bubblewrap, Chromium); what they can reach is bounded by the
    kernel's locked mounts. `allow_cgroupns` adds cgroup namespaces to these, whose owner can mount
    the cgroup filesystems and is bounded by nothing but the owners of their files. `tcp_only` is for worlds without a network namespace (`guard`):
    no UDP, no ICMP, no TCP fast open, which Landlock's connect rules do not cover. `more`: chunks
    for further calls, or in place of those made here (guard_filter.py).
    `observed` names calls of EVIDENCE that pass here because the caller installs, before any
    foreign code runs, a second filter that denies them by notification.
    Raises ValueError for another machine or a name outside EVIDENCE."""
    if machine not in MACHINES:
        raise ValueError(f"the filter knows {', '.join(MACHINES)}, not {machine}")
    if not observed <= EVIDENCE:
        raise ValueError(f"not left to capture: {', '.join(sorted(observed - EVIDENCE))}")
    lifted = set(observed)
    lifted.update(_DEBUGGING if allow_ptrace else ())
    lifted.update(("perf_event_open",) if allow_perf else ())
    lifted.update((*_MOUNTS, "setns") if allow_userns else ())
    lifted.update(_RINGS if allow_io_uring else ())
    chunks = {name: error(code) for name, code in DENIED.items() if name not in lifted}
    chunks["ioctl"] = _ioctl()
    chunks["socket"] = _socket(tcp_only=tcp_only)
    chunks["socketpair"] = _socketpair()
    chunks["prctl"] = argument(0, when((PR_SET_MM,), error(errno.EPERM), allow()))
    chunks["personality"] = _personality()
    chunks["setrlimit"] = argument(0, when((RLIMIT_CORE,), error(0), allow()))
    chunks["prlimit64"] = argument(1, when((RLIMIT_CORE,), core_limit(), allow()))
    device = when((_S_IFCHR, _S_IFBLK), error(errno.EPERM), allow())
    chunks["mknod"] = argument(1, device, mask=_S_IFMT)
    chunks["mknodat"] = argument(2, device, mask=_S_IFMT)
    allowed = 0
    if allow_userns:
        allowed = UNSHARE_NEW_FLAGS & ~(0 if allow_cgroupns else CLONE_NEWCGROUP)
    if "clone" not in observed:
        chunks["clone"] = _clone(CLONE_NEW_FLAGS & ~allowed)
    # by its high word it is refused here in any case
    chunks["unshare"] = _unshare(0 if "unshare" in observed else UNSHARE_NEW_FLAGS & ~allowed)
    if tcp_only:
        fast_open = _when_any_bit(MSG_FASTOPEN, error(errno.EOPNOTSUPP), allow())
        chunks["sendto"] = chunks["sendmmsg"] = argument(3, fast_open)
        chunks["sendmsg"] = argument(2, fast_open)
    chunks.update(more or {})
    return assemble(chunks, machine)


def assemble(chunks: dict[str, Chunk], machine: str) -> bytes:
    """A program that decides calls by name, allows all others that are known, and ends what makes calls
    of another architecture."""
    program = (
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, RET_KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        *_search(machine, chunks),
    )
    return b"".join([struct.pack("=HBBI", *instruction) for instruction in program])


def evidence(
    *,
    machine: str,
    allow_ptrace: bool = False,
    allow_userns: bool = False,
    allow_cgroupns: bool = False,
) -> tuple[tuple[int, int, int, int], ...]:
    """What `build_filter` of the same permissions leaves to another filter when it is given
    `observed=EVIDENCE`: (number, errno to answer, argument, mask); denied where a bit of the mask
    is set in the low word of the argument, and always where the mask is 0."""
    lifted = set(_DEBUGGING) if allow_ptrace else set()
    lifted.update((*_MOUNTS, "setns") if allow_userns else ())
    allowed = 0
    if allow_userns:
        allowed = UNSHARE_NEW_FLAGS & ~(0 if allow_cgroupns else CLONE_NEWCGROUP)
    masks = {"clone": CLONE_NEW_FLAGS & ~allowed, "unshare": UNSHARE_NEW_FLAGS & ~allowed}
    found = []
    for name in sorted(EVIDENCE - lifted):
        call = number(name, machine)
        mask = masks.get(name, 0)
        if call is not None and (mask or name not in masks):
            found.append((call, DENIED.get(name, errno.EPERM), 0, mask))
    return tuple(found)


# --- chunks: every path through one ends in a return


def allow() -> Chunk:
    return ((RETURN, 0, 0, RET_ALLOW),)


def error(code: int) -> Chunk:
    return ((RETURN, 0, 0, RET_ERRNO | code),)


def argument(index: int, rest: Chunk, *, high: bool = False, mask: int = 0) -> Chunk:
    """Loads a word of an argument (the low one), masks it where asked, and goes on."""
    masked = ((_AND, 0, 0, mask),) if mask else ()
    return ((_LOAD, 0, 0, _ARGUMENTS + 8 * index + 4 * high), *masked, *rest)


def when(values: Sequence[int], then: Chunk, otherwise: Chunk) -> Chunk:
    """`then` if the loaded word is one of `values`."""
    last = len(values) - 1
    tests = [
        (_JUMP_EQUAL, last - i, 0 if i < last else len(then), value)
        for i, value in enumerate(values)
    ]
    return (*tests, *then, *otherwise)


def _when_any_bit(mask: int, then: Chunk, otherwise: Chunk) -> Chunk:
    return ((_JUMP_ANY_BIT, 0, len(then), mask), *then, *otherwise)


def _ioctl() -> Chunk:
    """Refuses to type into a terminal (TIOCSTI, TIOCLINUX' paste), to take over the console,
    and to load line disciplines. The kernel's request is an `unsigned int`."""
    return argument(1, when((TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD), error(errno.EPERM), allow()))


def _clone(refused: int) -> Chunk:
    return argument(0, _when_any_bit(refused, error(errno.EPERM), allow()))


def _unshare(refused: int) -> Chunk:
    """No new namespace; an unknown flag in the high word is taken for one."""
    low = argument(0, _when_any_bit(refused, error(errno.EPERM), allow()))
    return argument(0, when((0,), low, error(errno.EPERM)), high=True)


def _personality() -> Chunk:
    refused = 0xFFFFFFFF & ~PERSONALITY_ALLOWED
    return argument(
        0,
        when((PERSONALITY_QUERY,), allow(), _when_any_bit(refused, error(errno.EPERM), allow())),
    )


def core_limit() -> Chunk:
    """prlimit(2) of RLIMIT_CORE may ask; to set it does nothing (see the module)."""
    asks = _no_pointer(3, error(0), error(errno.EPERM))
    return _no_pointer(2, allow(), asks)


def _no_pointer(index: int, then: Chunk, otherwise: Chunk) -> Chunk:
    """`then` if the argument is a null pointer."""
    low = argument(index, when((0,), then, otherwise))
    return argument(index, when((0,), low, otherwise), high=True)


def _socket(*, tcp_only: bool) -> Chunk:
    """Families UNIX, INET, INET6 and NETLINK_ROUTE; of INET only TCP, UDP and the ping socket.

    By allow-list, because of AF_INET's side doors: SOCK_PACKET is AF_PACKET in disguise,
    protocol 256 is SMC, 262 is MPTCP (which neither Landlock nor the egress rules see as
    TCP), 132 loads SCTP. SOCK_RAW is EPERM, as without CAP_NET_RAW."""
    no_protocol = error(errno.EPROTONOSUPPORT)
    datagram = (
        error(errno.EPERM)
        if tcp_only
        else argument(
            2,
            when((0, _IPPROTO_UDP, _IPPROTO_ICMP, _IPPROTO_ICMPV6), allow(), no_protocol),
        )
    )
    stream = argument(2, when((0, _IPPROTO_TCP), allow(), no_protocol))
    other = when((_SOCK_RAW,), error(errno.EPERM), error(errno.ESOCKTNOSUPPORT))
    internet = argument(
        1,
        when((_SOCK_STREAM,), stream, when((_SOCK_DGRAM,), datagram, other)),
        mask=_SOCK_TYPE_MASK,
    )
    netlink = argument(2, when((_NETLINK_ROUTE,), allow(), no_protocol))
    return argument(
        0,
        when(
            (_AF_UNIX,),
            allow(),
            when(
                (_AF_INET, _AF_INET6),
                internet,
                when((_AF_NETLINK,), netlink, error(errno.EAFNOSUPPORT)),
            ),
        ),
    )


def _socketpair() -> Chunk:
    """The kernel itself has pairs of AF_UNIX and AF_TIPC only, and says so for the others."""
    return argument(0, when((_AF_UNIX, _AF_INET, _AF_INET6), allow(), error(errno.EAFNOSUPPORT)))


# --- the search over call numbers


def _search(machine: str, chunks: dict[str, Chunk]) -> Chunk:
    """A binary search over the loaded call number, hot calls nearer to the root."""
    decided: dict[int, Chunk] = {}
    for name, chunk in chunks.items():
        call = number(name, machine)
        if call is not None:
            decided[call] = chunk
    starts = [0]
    actions = [allow()]

    def extend(start: int, action: Chunk) -> None:
        if starts[-1] == start:
            del starts[-1], actions[-1]
        if not actions or actions[-1] != action:
            starts.append(start)
            actions.append(action)

    edges = sorted(
        [(call, call, chunk) for call, chunk in decided.items()]
        + [(first, last, error(errno.ENOSYS)) for first, last in UNASSIGNED[machine]],
        key=lambda edge: edge[0],
    )
    for first, last, chunk in edges:
        extend(first, chunk)
        if last < 0xFFFFFFFF:
            extend(last + 1, allow())
    return _tree(starts, actions, _weights(starts, machine))


def _weights(starts: list[int], machine: str) -> list[int]:
    """Sums of the weights of the intervals before each index, and of all at the end."""
    hot = [call for name in _HOT if (call := NUMBERS[name][MACHINES.index(machine)]) is not None]
    sums = [0]
    for i, start in enumerate(starts):
        end = starts[i + 1] if i + 1 < len(starts) else 1 << 32
        sums.append(sums[-1] + 1 + _HOT_WEIGHT * sum(start <= call < end for call in hot))
    return sums


def _tree(starts: list[int], actions: list[Chunk], sums: list[int]) -> Chunk:
    def build(low: int, high: int) -> Chunk:
        if high - low == 1:
            return actions[low]
        # the first cut at which the left side has half of the weight
        half = sums[low] + sums[high]
        cut = low + 1
        while cut + 1 < high and 2 * sums[cut] < half:
            cut += 1
        left, right = build(low, cut), build(cut, high)
        if len(left) <= 255:
            return ((_JUMP_NOT_BELOW, len(left), 0, starts[cut]), *left, *right)
        # a conditional jump reaches 255 instructions; JA reaches all
        return (
            (_JUMP_NOT_BELOW, 0, 1, starts[cut]),
            (_JUMP, 0, 0, len(left)),
            *left,
            *right,
        )

    return build(0, len(starts))
