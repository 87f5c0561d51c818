"""What the tracer knows of each task, and of tasks that it has not been told of yet.

No I/O. A task is known once it was seized or its maker's fork event came. A child's first stop, or
even its end, may come before that: it is kept in `early`, stopped, until it is known whose it is.
Invariant: each task that was ever known leaves by `forget` once.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage
    from typing import Final

    from substrate.telemetry.capture.reference.approval import Approval
    from substrate.telemetry.capture.reference.arguments import Call

#: A maker that was killed between the making and its event never tells.
EARLY_S: Final = 0.2


class Task:
    """`call`: between its entry and its exit. `approval`: of the exec that is under way."""

    __slots__ = ("approval", "call", "hold", "is_thread", "made", "tgid", "tid")

    def __init__(self, tid: int, tgid: int) -> None:
        self.tid, self.tgid = tid, tgid
        self.is_thread = tid != tgid
        self.call: Call | None = None
        self.approval: Approval | None = None
        #: number of the hold in which its exec waits; 0 for none
        self.hold = 0
        #: tasks that it made since the entry of its call
        self.made = 0


class Early:
    """Statuses of a task whose maker is not known, in their order."""

    __slots__ = ("since_s", "statuses")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.statuses: list[tuple[int, struct_rusage]] = []


class Tasks:
    def __init__(self) -> None:
        self.known: dict[int, Task] = {}
        self.early: dict[int, Early] = {}

    def get(self, tid: int) -> Task | None:
        return self.known.get(tid)

    def add(self, tid: int, tgid: int) -> Task:
        task = self.known[tid] = Task(tid, tgid)
        return task

    def forget(self, tid: int) -> Task | None:
        return self.known.pop(tid, None)

    def keep_early(self, tid: int, status: int, usage: struct_rusage, now_s: float) -> None:
        early = self.early.get(tid)
        if early is None:
            early = self.early[tid] = Early(now_s)
        early.statuses.append((status, usage))

    def take_early(self, tid: int) -> list[tuple[int, struct_rusage]]:
        early = self.early.pop(tid, None)
        return [] if early is None else early.statuses

    def overdue(self, now_s: float) -> list[int]:
        """Those whose maker has not told of them for EARLY_S."""
        return [tid for tid, early in self.early.items() if now_s - early.since_s >= EARLY_S]

    def replace_by_exec(self, tgid: int, former: int) -> tuple[Task | None, Task | None]:
        """An exec by a thread that was no leader: it goes on under the number of the leader, which
        is gone without a word. (the task as it is now, the leader that was)."""
        leader = self.known.get(tgid)
        if former == tgid:
            return leader, None
        caller = self.known.pop(former, None)
        if caller is not None:
            caller.tid, caller.is_thread = tgid, False
            self.known[tgid] = caller
        return caller, leader
