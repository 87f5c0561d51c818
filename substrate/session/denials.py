"""What a world denied a command, told in a line that names the setting which changes it.

Pure: how a command ended and the ends of what it wrote go in, at most three lines come out. There
is no capture of system calls, so it goes by what programs say when they are denied something, in
English, and by what the supervisor knows: settings, hidden paths, withheld variables, counters of
the control groups. Loaded only after a command that failed or wrote to standard error.

Invariants: nothing that a command wrote stands in a line, only our own words, settings and paths
from the host's side; a rule tells only what is so in this world (no word about the network where
the world has one). What a program prints can make a rule speak without reason: the lines are help,
not evidence. Spec: world.md §2 "is detected, and the denial line names the setting".

A pattern is found in one line of output, case-insensitively: its parts, separated by ` .. `, in
this order; with `^` in front at the line's beginning.
"""

from __future__ import annotations

import os

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

    from substrate.session.settings import Settings

MOST: Final = 3
#: bytes of each stream, and lines of them, that are looked at
TAIL_BYTES: Final = 16384
_TAIL_LINES: Final = 200
_SIGSYS, _SIGXFSZ, _SIGKILL = 31, 25, 9


@value
class Denial:
    """One thing that was denied. `code`: stable, for programs; `text`: for people."""

    code: str
    text: str


@value
class Seen:
    """What is known of a command that ended. Paths are the host's, absolute and without links."""

    backend: str
    settings: Settings
    output: bytes  # the end of what it wrote: standard error, and standard output where that tells
    signal: int | None  # that ended it; of a shell's 128 + n too
    uid: int  # in the world
    cwd: bytes
    home: bytes
    hidden: tuple[bytes, ...] = ()
    read_only: tuple[bytes, ...] = ()  # mounts shown read-only
    asked: tuple[bytes, ...] = ()  # of these two, what `hide` and `ro` name
    unreadable: tuple[bytes, ...] = ()  # of the first, what a policy says
    state: bytes = b""  # where substrate keeps its own
    withheld: tuple[bytes, ...] = ()  # names of variables that did not go in
    memory_kills: int = 0  # counters of the world's control groups
    pids_refused: int = 0


def denials(seen: Seen) -> tuple[Denial, ...]:
    """What was denied, the most telling first."""
    if seen.backend == "none":
        return ()
    lines = [line.strip() for line in seen.output.lower().split(b"\n")[-_TAIL_LINES:]]
    whole = b"\n".join(lines)
    found: dict[str, Denial] = {}
    for code, text in _counted(seen):
        found[code] = Denial(code=code, text=text)
    for rule in _RULES:
        if rule.code not in found and _any_line(lines, whole, rule):
            text = rule.tell(seen)
            if text:
                found[rule.code] = Denial(code=rule.code, text=text)
    for code, text in _placed(seen, lines):
        found.setdefault(code, Denial(code=code, text=text))
    return tuple(found.values())[:MOST]


# --- what the supervisor knows without a word of the command's


def _counted(seen: Seen) -> Iterable[tuple[str, str]]:
    limits = seen.settings.limits
    if seen.memory_kills and limits.memory_bytes is not None:
        yield (
            "memory_limit",
            f"the world's memory limit of {size(limits.memory_bytes)} was reached, and the kernel "
            "ended a process: --limit memory=SIZE raises it",
        )
    if seen.pids_refused and limits.pids is not None:
        yield "pids_limit", _pids(limits.pids)
    if seen.signal == _SIGSYS:
        yield (
            "system_call",
            "a program was ended for a call of 32-bit programs, which a world does not have; "
            "no setting changes that",
        )
    if seen.signal == _SIGXFSZ and limits.file_size_bytes is not None:
        yield "file_size_limit", _filesize(limits.file_size_bytes)


def size(size: int) -> str:
    for unit, letter in ((1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k")):
        if size % unit == 0 and size >= unit:
            return f"{size // unit}{letter}"
    return f"{size} bytes"


def _pids(most: int) -> str:
    return f"the world's limit of {most} processes was reached: --limit pids=N raises it"


def _filesize(most: int) -> str:
    return f"a file reached the limit of {size(most)}: --limit file_size=SIZE raises it"


# --- what the command's own words tell


@value
class _Rule:
    """`tell` gives the text, or "" where this world does not deny it. A line with one of `unless`
    in it is passed over."""

    code: str
    patterns: tuple[bytes, ...]
    tell: Callable[[Seen], str]
    unless: tuple[bytes, ...] = ()


def _always(text: str) -> Callable[[Seen], str]:
    return lambda seen: text


def _no_sudoers(seen: Seen) -> str:
    if seen.uid != 0:
        return ""
    return "the sudoers file is hidden from worlds, and you are root in this one: leave sudo out"


def _no_rights(seen: Seen) -> str:
    if seen.uid == 0:
        return ""
    return (
        "sudo, su and the like cannot gain rights in a world (no_new_privs); run it outside, or as "
        "root in a root world"
    )


def _agent(seen: Seen) -> str:
    if b"SSH_AUTH_SOCK" not in seen.withheld:
        return ""
    return (
        "the host's ssh-agent does not reach into a world; no setting changes that: use the key "
        "outside"
    )


def _keys(seen: Seen) -> str:
    if not any(path.endswith(b"/.gnupg") for path in seen.hidden):
        return ""
    return (
        "~/.gnupg is hidden from worlds and the host's gpg-agent does not reach into them: sign "
        "outside, or show the keys (--show ~/.gnupg)"
    )


def _network(seen: Seen) -> str:
    if seen.settings.net != "none":
        return ""  # of a filtered one net_denials.py tells, which knows
    return (
        "this world has no network (net.mode = none): with --net filtered --allow HOST it reaches "
        "what you name"
    )


def _raw_sockets(seen: Seen) -> str:
    if seen.settings.net == "veth":
        return "raw sockets (tcpdump) are refused in a world; ping reaches what the network's rules allow"
    return (
        "raw sockets (ping, tcpdump) are refused in a world; with --net veth, as root, ping works"
    )


def _localhost(seen: Seen) -> str:
    if seen.settings.net == "host":
        return ""
    if seen.settings.net == "veth":
        return (
            "localhost in this world is its own, services of the host are not behind it: --host-port of a "
            "filtered network leads to one"
        )
    return (
        "localhost in this world is its own, services of the host are not behind it: --host-port "
        "PORT leads one port to the host's"
    )


def _display(seen: Seen) -> str:
    if not {b"DISPLAY", b"WAYLAND_DISPLAY"} & set(seen.withheld):
        return ""
    return "the host's display does not reach into a world; no setting changes that"


def _namespaces(seen: Seen) -> str:
    if not seen.settings.userns:
        return (
            "programs cannot make namespaces of their own in a world: --userns lets them "
            "(userns = true)"
        )
    if seen.uid != 0:
        return ""
    beside = (
        "; a cgroup namespace is refused with ns-root (bwrap --unshare-all asks for one)"
        if seen.backend == "ns-root"
        else ""
    )
    return (
        "root in a world needs a user namespace for the other ones (unshare --user, "
        f"bwrap --unshare-user){beside}"
    )


def _new_proc(seen: Seen) -> str:
    if not seen.settings.userns:
        return ""
    return (
        "a new /proc cannot be mounted where the world's is partly covered; no setting changes "
        "that: bind the world's (bwrap --bind /proc /proc)"
    )


def _mounts(seen: Seen) -> str:
    if seen.settings.userns:
        return (
            "mounts need a user and mount namespace of one's own in a world: unshare "
            "--map-root-user --mount"
        )
    return (
        "mounts are refused in a world: --userns allows them in a namespace of one's own "
        "(userns = true)"
    )


def _chroot(seen: Seen) -> str:
    return "chroot needs a user namespace of one's own in a world: --userns, then unshare -r"


def _debuggers(seen: Seen) -> str:
    if seen.settings.ptrace:
        return ""
    return "debuggers are refused in a world: --ptrace lets them work (ptrace = true)"


def _fork_refused(seen: Seen) -> str:
    most = seen.settings.limits.pids
    return "" if most is None else _pids(most)


def _too_many_files(seen: Seen) -> str:
    most = seen.settings.limits.open_files
    if most is None:
        return ""
    return f"a process reached the limit of {most} open files: --limit open_files=N raises it"


def _too_large(seen: Seen) -> str:
    most = seen.settings.limits.file_size_bytes
    return "" if most is None else _filesize(most)


def _foreign_directory(seen: Seen) -> str:
    if seen.backend != "ns-user":
        return ""
    return (
        "what lies in a directory of another user cannot be changed in this world, unless that "
        "directory is named: --fresh --rw PATH (rw = [...])"
    )


def _no_memory(seen: Seen) -> str:
    most = seen.settings.limits.memory_bytes
    if most is None:
        return ""
    return f"the world's memory limit of {size(most)} was reached: --limit memory=SIZE raises it"


def _patterns(text: bytes) -> tuple[bytes, ...]:
    return tuple(line.strip() for line in text.strip().split(b"\n"))


_HERE: Final = (b"localhost", b"127.0.0.1", b"::1")

_RULES: Final = (
    _Rule(
        code="no_new_privs",
        patterns=_patterns(b"""
            ^sudo: .. no new privileges
            ^sudo: .. must be owned by uid 0 and have the setuid bit set
            ^sudo: effective uid is not 0
            ^su: authentication failure
            ^password: su: authentication failure
            ^su: cannot set groups
            ^doas: not installed setuid
            ^doas: .. operation not permitted
            ^pkexec must be setuid root
            ^passwd: authentication token manipulation error
            ^chsh: .. authentication failure
            ^newgrp: .. operation not permitted
            """),
        tell=_no_rights,
    ),
    _Rule(code="sudoers", patterns=(b"is not in the sudoers file",), tell=_no_sudoers),
    _Rule(
        code="ssh_agent",
        patterns=_patterns(b"""
            could not open a connection to your authentication agent
            ^error connecting to agent
            ^error fetching identities
            error getting agent identities
            """),
        tell=_agent,
    ),
    _Rule(
        code="gpg_agent",
        patterns=_patterns(b"""
            ^gpg: .. no secret key
            ^gpg: .. no default secret key
            ^gpg: .. can't connect to the agent
            ^gpg: can't connect to the gpg-agent
            gpg failed to sign the data
            """),
        tell=_keys,
    ),
    _Rule(
        code="docker",
        patterns=_patterns(b"""
            cannot connect to the docker daemon
            error during connect: .. docker
            trying to connect to the docker
            cannot connect to podman
            connect to the containerd .. no such file
            """),
        tell=_always(
            "a container engine of the host does not reach into a world, since it is root outside; "
            "no setting changes that: run it outside"
        ),
    ),
    _Rule(
        code="host_services",
        patterns=_patterns(b"""
            failed to connect to bus:
            ^failed to open connection to "system" message bus
            ^failed to open connection to "session" message bus
            system has not been booted with systemd
            unable to autolaunch a dbus-daemon
            cannot autolaunch d-bus
            could not connect: no such file or directory .. dbus
            """),
        tell=_always(
            "services of the host (systemd, D-Bus) do not reach into a world; no setting changes that"
        ),
    ),
    _Rule(
        code="display",
        patterns=_patterns(b"""
            cannot open display
            can't open display
            could not open display
            unable to open display
            missing x server or $display
            unable to init server
            failed to connect to wayland display
            """),
        tell=_display,
    ),
    _Rule(
        code="new_proc",
        patterns=_patterns(b"""
            ^bwrap: can't mount proc on
            ^unshare: mount /proc failed
            mounting "proc" .. operation not permitted
            mount proc .. operation not permitted
            """),
        tell=_new_proc,
    ),
    _Rule(
        code="namespaces",
        patterns=_patterns(b"""
            ^unshare: unshare failed: operation not permitted
            ^bwrap: no permissions to create new namespace
            ^bwrap: no permissions to creating new namespace
            ^bwrap: creating new namespace failed
            ^bwrap: setting up uid map
            no usable sandbox!
            failed to move to new namespace
            the setuid sandbox is not running as root
            cannot clone: operation not permitted
            cannot create user namespace
            creating new user namespace .. operation not permitted
            cloning builder process: operation not permitted
            clone(clone_newuser) .. operation not permitted
            newuidmap .. operation not permitted
            unshare(clone_new .. operation not permitted
            """),
        tell=_namespaces,
    ),
    _Rule(
        code="ptrace",
        patterns=_patterns(b"""
            ^strace: .. ptrace .. operation not permitted
            ^strace: .. operation not permitted
            could not trace the inferior process
            ptrace: operation not permitted
            ^ltrace: .. operation not permitted
            ptrace(ptrace_ .. operation not permitted
            process launch failed .. operation not permitted
            could not attach to process
            """),
        tell=_debuggers,
    ),
    _Rule(
        code="performance_counters",
        patterns=_patterns(b"""
            ^no permission to enable .. event
            perf_event_open .. operation not permitted
            perf_event_paranoid
            """),
        tell=_always("performance counters are refused in a world; no setting changes that"),
    ),
    _Rule(
        code="mounts",
        patterns=_patterns(b"""
            ^mount: .. permission denied
            ^mount: .. must be superuser
            ^mount: only root can
            ^umount: .. must be superuser
            ^umount: .. operation not permitted
            ^fusermount .. operation not permitted
            fuse: device not found
            fuse: failed to open /dev/fuse
            """),
        tell=_mounts,
    ),
    _Rule(
        code="chroot",
        patterns=_patterns(b"""
            ^chroot: cannot change root directory .. operation not permitted
            """),
        tell=_chroot,
    ),
    _Rule(
        code="kernel_log",
        patterns=_patterns(b"""
            ^dmesg: read kernel buffer failed
            ^dmesg: klogctl: operation not permitted
            """),
        tell=_always("the kernel's log is closed to a world; no setting changes that"),
    ),
    _Rule(
        code="network_setup",
        patterns=_patterns(b"""
            ^rtnetlink answers: operation not permitted
            ^iptables: failed to initialize nft
            ^iptables .. permission denied (you must be root)
            ^netlink: error: operation not permitted
            ^error: .. netlink .. protocol not supported
            siocsif .. operation not permitted
            """),
        tell=_always("the network cannot be set up from inside a world; no setting changes that"),
    ),
    _Rule(
        code="raw_sockets",
        patterns=_patterns(b"""
            ^ping: .. operation not permitted
            ^ping: socktype: sock_raw
            ^tcpdump: .. operation not permitted
            you don't have permission to capture
            """),
        tell=_raw_sockets,
    ),
    _Rule(
        code="device_nodes",
        patterns=_patterns(b"""
            ^mknod: .. operation not permitted
            cannot mknod .. operation not permitted
            """),
        tell=_always("device nodes cannot be made in a world; no setting changes that"),
    ),
    _Rule(
        code="machine",
        patterns=_patterns(b"""
            ^date: cannot set date
            ^hwclock: cannot access the hardware clock
            could not insert module
            ^modprobe: error: could not insert .. operation not permitted
            ^insmod: error: .. operation not permitted
            ^swapon: .. operation not permitted
            ^hostname: you must be root to change the host name
            ^sethostname: operation not permitted
            failed to talk to init daemon
            """),
        tell=_always(
            "the clock, modules, swap and name of the machine cannot be changed from a world; "
            "no setting changes that"
        ),
    ),
    _Rule(
        code="sysctl",
        patterns=_patterns(b"""
            ^sysctl: permission denied on key
            ^sysctl: setting key .. read-only file system
            /proc/sys/ .. read-only file system
            /sys/ .. read-only file system
            """),
        tell=_always("settings of the kernel are read-only in a world; no setting changes that"),
    ),
    _Rule(
        code="network",
        patterns=_patterns(b"""
            could not resolve host
            temporary failure in name resolution
            temporary failure resolving
            unable to resolve host address
            getaddrinfo eai_again
            failed to lookup address information
            dial tcp: lookup .. connection refused
            dial tcp: lookup .. network is unreachable
            network is unreachable
            connect enetunreach
            curl: (7) failed to connect to .. couldn't connect to server
            """),
        tell=_network,
        unless=_HERE,
    ),
    _Rule(
        code="localhost",
        patterns=_patterns(b"""
            localhost .. connection refused
            127.0.0.1 .. connection refused
            [::1] .. connection refused
            econnrefused 127.0.0.1
            econnrefused ::1
            curl: (7) failed to connect to localhost
            curl: (7) failed to connect to 127.0.0.1
            the connection to the server localhost .. was refused
            """),
        tell=_localhost,
    ),
    _Rule(
        code="pids_limit",
        patterns=_patterns(b"""
            fork: retry: resource temporarily unavailable
            fork: resource temporarily unavailable
            cannot fork
            can't fork
            unable to fork
            can't start new thread
            fork/exec .. resource temporarily unavailable
            blockingioerror: [errno 11] resource temporarily unavailable
            """),
        tell=_fork_refused,
    ),
    _Rule(
        code="open_files_limit",
        patterns=(b"too many open files", b"emfile"),
        tell=_too_many_files,
    ),
    _Rule(
        code="file_size_limit",
        patterns=(b"file size limit exceeded", b"file too large"),
        tell=_too_large,
    ),
    _Rule(
        code="foreign_directory",
        patterns=(b"value too large for defined data type",),
        tell=_foreign_directory,
    ),
    _Rule(
        code="descriptors",
        patterns=_patterns(b"""
            /dev/fd/ .. no such file or directory
            /proc/self/fd/ .. no such file or directory
            """),
        tell=_always(
            "only the standard streams reach a command, no other descriptor of its caller: "
            "open it in the command itself (<( ), 9>file), or hand the bytes over on standard input"
        ),
    ),
    _Rule(
        code="git_hard_links",
        patterns=(b"fatal: hardlink different from source at",),
        tell=_always(
            "files that another command or the host made get new inode numbers when they are "
            "linked: git clone --no-hardlinks, or file:// and the path"
        ),
    ),
    _Rule(
        code="memory_limit",
        patterns=_patterns(b"""
            memoryerror
            cannot allocate memory
            out of memory
            virtual memory exhausted
            """),
        tell=_no_memory,
    ),
)


def _any_line(lines: list[bytes], whole: bytes, rule: _Rule) -> bool:
    """Whether a line has one of the patterns; `whole` is all of them, for a quick first look."""
    for pattern in rule.patterns:
        parts = pattern.lstrip(b"^").split(b" .. ")
        if all(part in whole for part in parts) and any(
            _matches(line, parts, anchored=pattern.startswith(b"^"))
            and not any(word in line for word in rule.unless)
            for line in lines
        ):
            return True
    return False


def _matches(line: bytes, parts: list[bytes], *, anchored: bool) -> bool:
    if anchored and not line.startswith(parts[0]):
        return False
    at = 0
    for part in parts:
        found = line.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


# --- lines that name a place

_FAILED: Final = (
    b"permission denied",
    b"no such file or directory",
    b"cannot open",
    b"operation not permitted",
    b"eacces",
    b"enoent",
)
_READ_ONLY: Final = (b"read-only file system", b"erofs")
_PART_OF_NAME: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-.")


def _placed(seen: Seen, lines: list[bytes]) -> Iterable[tuple[str, str]]:
    """A hidden path that was looked for, a read-only place that was written to."""
    for line in lines:
        if any(word in line for word in _READ_ONLY):
            if any(tree in line for tree in (b"/proc/", b"/sys/")):
                continue  # a rule has told it
            text = _read_only(seen, line)
            if text:
                yield "read_only", text
        elif any(word in line for word in _FAILED):
            if seen.backend == "guard":
                yield from _guarded(seen, line)
                continue
            for path in seen.hidden:
                if any(_names(line, written.lower()) for written in _written(path, seen)):
                    yield "hidden", _hidden(seen, path)
                    break


_REFUSED: Final = (b"permission denied", b"eacces", b"errno 13")


def _guarded(seen: Seen, line: bytes) -> Iterable[tuple[str, str]]:
    """The same without namespaces, where a refusal to read and one to write look alike. The command's
    own place lies in substrate's state."""
    if not any(word in line for word in _REFUSED):
        return
    for path in seen.hidden:
        if path != seen.state and any(_names(line, w.lower()) for w in _written(path, seen)):
            yield "hidden", _hidden(seen, path)
            return
    if line.startswith(b"/") or any(before in line for before in (b" /", b"'/", b'"/')):
        yield (
            "guard",
            "without namespaces (backend guard) a world writes to its copy of the workspace and to $TMPDIR, "
            "and reads what was there when it began; no setting changes that",
        )


def _written(path: bytes, seen: Seen) -> Iterable[bytes]:
    """How a program may write a path."""
    yield path
    for base, short in ((seen.home, b"~/"), (seen.cwd, b"")):
        if base != b"/" and path.startswith(base + b"/"):
            yield short + path[len(base) + 1 :]


def _names(line: bytes, path: bytes) -> bool:
    """Whether a line names this path, or one below it, and not a longer name."""
    at = line.find(path)
    while at >= 0:
        before, after = line[at - 1 : at], line[at + len(path) : at + len(path) + 1]
        begins = not before or (before[0] not in _PART_OF_NAME and before != b"/")
        begins = begins or line[max(0, at - 3) : at] in (b" ./", b"'./", b'"./')
        if begins and (not after or after[0] not in _PART_OF_NAME):
            return True
        at = line.find(path, at + 1)
    return False


def _hidden(seen: Seen, path: bytes) -> str:
    if path in seen.unreadable:
        return f"{os.fsdecode(path)} is hidden from worlds by fs.read_deny of the policy"
    if path in seen.asked:
        return f"{os.fsdecode(path)} is hidden from worlds by the setting `hide`"
    if path == seen.state:
        return f"{os.fsdecode(path)} is what substrate keeps; no setting shows it to a world"
    return f"{os.fsdecode(path)} is hidden from worlds: --show PATH shows it (show = [...])"


def _read_only(seen: Seen, line: bytes) -> str:
    for path in sorted(seen.read_only, key=len, reverse=True):
        if _names(line, path.lower()):
            if path in seen.asked:
                return f"{os.fsdecode(path)} is read-only in worlds by the setting `ro`"
            return f"{os.fsdecode(path)} is a mount that worlds show read-only; no setting changes that"
    if b"/dev/" in line:
        return "the devices of a world cannot be changed; no setting changes that"
    if seen.backend == "ns-user":
        return (
            "only home, workspace, /tmp and /var/tmp can be changed in this world: --rw PATH adds a "
            "place (rw = [...])"
        )
    return ""
