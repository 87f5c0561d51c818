"""The limits of a world as a value, and what of them a process' own rlimits can hold.

Not the cgroups (world.cgroup) and not the clock: the supervisor ends a command at `wall_s`
and watches `disk_bytes` of the layer. Invariant: a limit that nothing enforces is never
called enforced; one that only an rlimit stands in for is marked soft, with the reason.
Spec: world.md §7 "Limits"; getrlimit(2).

Stand-ins, and why they are only that:
- RLIMIT_NPROC for `pids` counts all tasks of the user, and root is exempt.
- RLIMIT_DATA for `memory_bytes` counts one process' private writable memory, not the sum, and
  no shared memory. RLIMIT_AS would also count what is only reserved, and node, go and java
  reserve tens of gigabytes at start.

Core dumps: there are none in a world. A limit of 0 does that for files only; where the host's
core_pattern is a pipe, the kernel starts its program as the host's root and ignores the limit,
except for the one value 1 (do_coredump in fs/coredump.c, which calls it special). So the limit is 1
byte, the world's first process and its seats set it for all, and the filter keeps it there (world.seccomp).
"""

from __future__ import annotations

from substrate.errors import ConfigError
from substrate.values import as_dict, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

#: limits that a cgroup controller enforces -> the controller
CONTROLLERS: Final = {"pids": "pids", "memory_bytes": "memory", "cpu_milli": "cpu"}


@value
class Limits:
    """What a world may use; None is no limit of ours."""

    pids: int | None = None  # tasks, the world's holder included
    memory_bytes: int | None = None
    cpu_milli: int | None = None  # thousandths of one CPU
    open_files: int | None = None  # a process
    file_size_bytes: int | None = None  # one file
    disk_bytes: int | None = None  # of a layer
    wall_s: float | None = None  # a command

    def __post_init__(self) -> None:
        for name, given in as_dict(self).items():
            least = _LEAST.get(name, 1)
            if given is not None and (given < least or given != given):
                raise ConfigError(
                    f"limit {name} is {given}, expected at least {least}",
                    hint="leave it out for no limit",
                )


#: below these a world cannot start: pid 1, the command and one child; a Python's own pages
_LEAST: Final = {"pids": 3, "memory_bytes": 1 << 20, "cpu_milli": 10, "open_files": 8, "wall_s": 0}


@value
class Enforcement:
    """How one limit is held, for `session_start`."""

    limit: str
    by: str  # cgroup2 | cgroup1 | rlimit | supervisor
    soft: bool = False  # a stand-in that a determined program gets around
    code: str = ""  # world.md §1
    why: str = ""


def enforcement(
    limits: Limits, cgroup_version: Mapping[str, int], missing: Mapping[str, str]
) -> tuple[Enforcement, ...]:
    """How each given limit is held. `cgroup_version` is controller -> 1 or 2 for those that a
    cgroup enforces; `missing` is controller -> why not, for the others."""
    found = []
    for name, given in as_dict(limits).items():
        if given is None:
            continue
        controller = CONTROLLERS.get(name)
        if name in ("wall_s", "disk_bytes"):
            found.append(Enforcement(limit=name, by="supervisor"))
        elif controller is None:
            found.append(Enforcement(limit=name, by="rlimit"))
        elif controller in cgroup_version:
            found.append(Enforcement(limit=name, by=f"cgroup{cgroup_version[controller]}"))
        else:
            found.append(
                Enforcement(
                    limit=name,
                    by="rlimit" if name in _STAND_INS else "none",
                    soft=True,
                    code="E-CGROUP-RO",
                    why=missing.get(controller, f"no cgroup with {controller}"),
                )
            )
    return tuple(found)


def core_leak(pattern: bytes, hard_limit: int) -> str:
    """Why a crash in a world is still told to the host, "" where it is not. `pattern` is the
    host's core_pattern (core(5)), `hard_limit` the caller's own for core files."""
    if pattern.startswith(b"|") and hard_limit == 0:
        return (
            "the hard limit for core files is 0, which does not stop the host's core_pattern pipe"
        )
    if pattern.startswith(b"@"):
        return "the host's core_pattern is a socket, which no limit stops"
    return ""


# numbers of resources (<asm-generic/resource.h>): RLIMIT_NPROC, _DATA, _NOFILE, _FSIZE, _CORE
_STAND_INS: Final = {"pids": 6, "memory_bytes": 2}
_ALWAYS: Final = {"open_files": 7, "file_size_bytes": 1}
_NO_CORE_DUMP: Final = (4, 1, 1)


def rlimits(
    limits: Limits, held: tuple[Enforcement, ...], *, user_tasks: int = 0
) -> tuple[tuple[int, int, int], ...]:
    """(resource, soft, hard) to set in the command, lowest resource number first.

    `user_tasks`: how many tasks the user has already, for RLIMIT_NPROC; 0 where the world has
    a user namespace of its own (the kernel counts per namespace since 5.14)."""
    stand_ins = {e.limit for e in held if e.soft}
    chosen = {}
    for name, given in as_dict(limits).items():
        if given is None:
            continue
        which = _ALWAYS.get(name)
        if which is None and name in stand_ins:
            which = _STAND_INS.get(name)
        if which is not None:
            chosen[which] = given + (user_tasks if name == "pids" else 0)
    return tuple((which, chosen[which], chosen[which]) for which in sorted(chosen))


def refuse_core_dumps() -> None:
    """For this process and all that come from it; before the filter, which freezes it."""
    apply_rlimits((_NO_CORE_DUMP,))


def apply_rlimits(wanted: tuple[tuple[int, int, int], ...]) -> None:
    """Sets them in this process. Raises OSError, ValueError."""
    import resource

    for which, soft, hard in within_own(wanted):
        resource.setrlimit(which, (soft, hard))


def within_own(wanted: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    """A hard limit is only ever lowered: where our own is lower already, that one stays."""
    if not wanted:
        return ()
    import resource

    found = []
    for which, soft, hard in wanted:
        _, current = resource.getrlimit(which)
        if current != resource.RLIM_INFINITY:
            hard = min(hard, current)
        found.append((which, min(soft, hard), hard))
    return tuple(found)
