"""The `bpf` backend: a tree of processes watched by eBPF programs (bpf_program.py).

This module has the programs loaded (bpf_loading.py), attaches them, reads the ring that they write, and answers whether
the kernel lets us at all (`probe`). It stops no process: nothing that is watched waits for us, so
what is not read in time is lost, and told as LOST records. Invariants:
  - everything is a descriptor of ours; when the supervisor ends, in whatever way, it is all gone;
  - `finished` is not told before all that was written has been drained;

Being current: the programs call a waiting reader after a quiet time (5 ticks), when a quarter of
the ring is full, and when the last task has ended; what came soon after a call is looked for by
time (bpf_bell.py).

Policies of overflow: nothing that is watched waits for us, so `block` is kept no better than
`drop`; who chose the backend says so. `halt` is told by `halted`.

Needed: CAP_BPF and CAP_PERFMON in the initial user namespace, the initial pid namespace (the
programs know tasks by their numbers there), and /sys/kernel/btf/vmlinux.

Sources: bpf(2).
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from _signal import SIGKILL, pidfd_send_signal

from substrate.telemetry.capture import (
    bpf_layout,
    bpf_program,
    bpf_system,
    bpf_tables,
    bpf_types,
    calls,
    records,
)
from substrate.telemetry.capture.backend import CaptureError
from substrate.telemetry.capture.bpf_bell import LOOK_AFTER_S, Bell
from substrate.telemetry.capture.bpf_layout import Limits, Offsets
from substrate.telemetry.capture.bpf_loading import Loading
from substrate.telemetry.capture.bpf_ring import Ring
from substrate.telemetry.capture.bpf_system import attach_program, missed, update_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.telemetry.capture.bpf_program import Programs

#: the initial pid namespace (PROC_PID_INIT_INO)
_FIRST_PIDS: Final = 0xEFFFFFFC

_PAGE: Final = mmap.PAGESIZE
#: one drain hands out about this much at most
_MOST_DRAINED: Final = 4 << 20

ALL_LEVELS: Final = (calls.EXEC, calls.FILES, calls.LOOK, calls.FDS)


class BpfBackend:
    """backend.Backend. Making it begins to load everything; `attach` waits for that, and names the
    tree's root."""

    name = "bpf"

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = ALL_LEVELS,
        limits: Limits | None = None,
        offsets: Offsets | None = None,
        everything: bool = False,
        denied: Iterable[int] = (),
        policy: str = "drop",
    ) -> None:
        """`offsets`: of this kernel, where they were found before. `everything`: calls without a shape
        are told too. `denied`: calls that are told of where a filter answers them."""
        self._limits = limits or Limits()
        self._links: list[int] = []
        self._ring: Ring | None = None
        self._state: mmap.mmap | None = None
        self._told = {"full": 0, "memory": 0}
        self._torn = 0
        self._halts = policy == "halt"
        self._bell: Bell | None = None
        self._attached = False
        self._closed = False
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PIDS:
            raise CaptureError(
                "pid namespace", errno.EPERM, "tasks are known by numbers of the first one only"
            )
        found = offsets or load_offsets()
        self._loading = Loading(
            self._limits,
            lambda: _tables(levels, everything, tuple(denied)),
            lambda: _programs(found, self._limits),
        )

    def ready(self) -> None:
        """Waits until all is loaded, and attaches it. Raises CaptureError."""
        if self._bell is not None or self._closed:
            return
        loading = self._loading
        try:
            loading.wait()
            self._state = mmap.mmap(loading.maps["state"], _PAGE, mmap.MAP_SHARED)
            self._identify(loading.maps["state"])  # and our root
            # Calls last: a task that is in the tree before its exit is seen would never leave it.
            for tracepoint in reversed(bpf_layout.PROGRAMS):
                self._links.append(attach_program(tracepoint, loading.programs[tracepoint]))
            self._bell = Bell(loading.maps["ring"])
        except BaseException:
            self.close()
            raise

    def attach(self, pid: int, listener: int | None) -> None:
        """backend.Backend. A listener is of no use here: it is closed, and that is an error."""
        if listener is not None:
            os.close(listener)
            raise CaptureError("attach", errno.EINVAL, "this backend installs no filter")
        if self._attached or self._closed:
            raise CaptureError("attach", errno.EBUSY, "a backend is for one command")
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError as error:
            raise CaptureError("attach", errno.ESRCH, f"no process {pid}") from error
        if len(threads) != 1:
            raise CaptureError("attach", errno.EINVAL, f"{pid} has {len(threads)} threads")
        self.ready()
        self._put_state(bpf_layout.LEVEL, _depth(pid))
        self._attached = True
        self._put_state(bpf_layout.STARTED, 1)
        update_map("attach", self._loading.maps["tree"], pid, bytes(bpf_layout.SLOT_SIZE))
        # It may have died in between: then nothing will ever take it out of the tree.
        if _is_dead(pid) and self._get_state(bpf_layout.ENDED) == 0:
            raise CaptureError("attach", errno.ESRCH, f"process {pid} has ended")

    def identity(self, fd: int) -> bytes:
        """Which file a descriptor of ours is, as an item FILE says it of a program. Raises
        CaptureError."""
        self.ready()
        return self._identify(fd)

    def _identify(self, fd: int) -> bytes:
        failed = bpf_system.run_program("identity", self._loading.programs["ours"], fd)
        if failed or self._state is None:
            raise CaptureError("identity", errno.EBADF, "a file of ours has none")
        at = bpf_layout.OURS
        return self._state[at : at + bpf_layout.IDENTITY]

    def fileno(self) -> int:
        self.ready()
        assert self._bell is not None
        return self._bell.urgent()

    def soft_fileno(self) -> int:
        self.ready()
        assert self._bell is not None
        return self._bell.later()

    def drain(self) -> bytes:
        if self._closed or self._bell is None:
            return b""
        self._bell.hush()
        try:
            out = self._mapped().take(_MOST_DRAINED)
        except CaptureError:
            self._torn += 1
            raise
        if self._has_losses():
            out += self._losses()
        self._bell.set(LOOK_AFTER_S if out else 0)
        return out

    def _mapped(self) -> Ring:
        # Not before it is needed: mapping costs a millisecond, which the command need not wait for.
        if self._ring is None:
            self._ring = Ring(self._loading.maps["ring"], self._limits.ring, self._limits.scratch)
        return self._ring

    def _has_losses(self) -> bool:
        told = self._told
        return (
            self._get_state(bpf_layout.FULL) != told["full"]
            or self._get_state(bpf_layout.MEMORY) != told["memory"]
        )

    def _losses(self) -> bytes:
        """LOST records of what was not told before."""
        out = []
        for why, place in (("full", bpf_layout.FULL), ("memory", bpf_layout.MEMORY)):
            count = self._get_state(place)
            new = count - self._told[why]
            self._told[why] = count
            if new:
                out.append(
                    records.make_record(
                        records.LOST, tid=0, nr=records.LOSSES.index(why), result=new
                    )
                )
        return b"".join(out)

    def finished(self) -> bool:
        if self._closed:
            return True
        ended = self._get_state(bpf_layout.ENDED)
        return (
            self._attached
            and self._get_state(bpf_layout.STARTED) == ended
            and self._mapped().empty()
            and not self._has_losses()
        )

    def lost(self) -> dict[str, int]:
        """`full`: records; `memory`: tasks, with all that these did and started; `torn`: of both."""
        found = {}
        if self._state is not None:
            found = {
                "full": self._get_state(bpf_layout.FULL),
                "memory": self._get_state(bpf_layout.MEMORY),
            }
        found["torn"] = self._torn + sum(missed(fd) for fd in self._loading.programs.values())
        return {why: count for why, count in found.items() if count}

    def halted(self) -> bool:
        return self._halts and bool(self.lost())

    def kill(self) -> None:
        """Ends what is left of the tree; it is still watched, so nothing that it starts is missed.

        A task that is forking while it is killed may leave one more, hence the rounds."""
        if self._closed or not self._attached:
            return
        for _ in range(64):
            left = self._tids()
            if not left:
                return
            for tid in left:
                self._kill(tid)

    def close(self) -> None:
        if self._closed:
            return
        self.kill()
        self._closed = True
        for fd in self._links:
            os.close(fd)
        if self._ring is not None:
            self._ring.close()
        if self._bell is not None:
            self._bell.close()
        if self._state is not None:
            self._state.close()
        self._loading.close()
        self._links = []
        self._ring = self._state = self._bell = None

    def _kill(self, tid: int) -> None:
        leader = _leader_of(tid)
        if leader is None:
            return
        try:
            process = os.pidfd_open(leader)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EINVAL):
                return
            raise
        try:
            # The number may be another's by now; one that is still in the tree is not.
            if tid in self._tids():
                pidfd_send_signal(process, SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(process)

    def _tids(self) -> set[int]:
        """The tasks of the tree."""
        found: set[int] = set()
        tree = self._loading.maps["tree"]
        tid = bpf_system.next_key("tree", tree, None)
        while tid is not None and len(found) <= self._limits.tasks:
            found.add(tid)
            tid = bpf_system.next_key("tree", tree, tid)
        return found

    def _get_state(self, place: int) -> int:
        if self._state is None:
            return 0
        return int(struct.unpack_from("=Q", self._state, place)[0])

    def _put_state(self, place: int, number: int) -> None:
        assert self._state is not None
        struct.pack_into("=Q", self._state, place, number)


def make(
    level: str,
    *,
    look: bool = False,
    policy: str = "block",
    denied: Iterable[int] = (),
    offsets: Offsets | None = None,
) -> BpfBackend:
    """A backend for one command at a level of capture: `exec`, `files` or `all`. `look`: lookups are
    captured. `denied`, `offsets`: see BpfBackend. Raises CaptureError."""
    levels: tuple[int, ...] = (calls.EXEC,)
    if level != "exec":
        levels = (calls.EXEC, calls.FILES, *((calls.LOOK,) if look else ()))
    return BpfBackend(
        levels=levels,
        everything=level == "all",
        policy=policy,
        denied=denied,
        offsets=offsets,
    )


#: what was assembled last, for the commands of one session
_assembled: tuple[Offsets, Limits, Programs] | None = None


def _programs(offsets: Offsets, limits: Limits) -> Programs:
    global _assembled
    if _assembled is None or _assembled[:2] != (offsets, limits):
        _assembled = offsets, limits, bpf_program.make_programs(offsets, limits)
    return _assembled[2]


#: the table that was made last, for them too
_made_tables: tuple[tuple[tuple[int, ...], bool, tuple[int, ...]], bytes] | None = None


def _tables(levels: tuple[int, ...], everything: bool, denied: tuple[int, ...]) -> bytes:
    global _made_tables
    key = levels, everything, denied
    if _made_tables is None or _made_tables[0] != key:
        made = bpf_tables.make_tables(levels, everything=everything, denied=denied)
        _made_tables = key, made
    return _made_tables[1]


_offsets: Offsets | None = None


def load_offsets() -> Offsets:
    """Those of the running kernel; the same until it is booted again. Raises CaptureError."""
    global _offsets
    try:
        _offsets = _offsets or bpf_layout.find_offsets(bpf_types.Types())
        return _offsets
    except bpf_types.TypesUnknown as error:
        raise CaptureError("kernel types", errno.ENOTSUP, str(error)) from error


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"Z", b"X", b"x")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _depth(pid: int) -> int:
    """How many pid namespaces lie above that of a process."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return len(line.split()) - 2
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise CaptureError("attach", errno.ESRCH, f"no process {pid}")


def _leader_of(tid: int) -> int | None:
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def probe(offsets: Offsets | None = None) -> str:
    """ "" where this backend works, else why it does not: loads, attaches, and watches a child."""
    try:
        backend = BpfBackend(limits=Limits(ring=1 << 16, tasks=64), offsets=offsets)
    except CaptureError as error:
        return str(error)
    try:
        backend.ready()  # before a fork: no thread of ours does anything then
    except CaptureError as error:
        backend.close()
        return str(error)
    ready, go = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.read(ready, 1)
            os.chdir(b"/")
        finally:
            os._exit(0)
    try:
        backend.attach(child, None)
        os.write(go, b"x")
        _, status = os.waitpid(child, 0)
        child = 0
        seen = {(head[1], head[5], head[7]) for head, _, _ in records.read_records(backend.drain())}
        if (records.CALL, calls.number("chdir"), 0) not in seen:
            return "a child's call was not seen"
        if (records.EXIT, 0, status) not in seen or not backend.finished():
            return "a child's end was not seen"
        return ""
    except (CaptureError, records.Torn) as error:
        return str(error)
    finally:
        os.close(ready)
        os.close(go)
        backend.close()
        if child:
            os.kill(child, SIGKILL)
            os.waitpid(child, 0)
