"""What the steps of one apply have in common: the plan, its mounts, its directories.

Values and open fds, no steps (apply.py, window.py, source.py). Spec: world.md §5.
"""

from __future__ import annotations

import os

from substrate.world import linux
from substrate.world.layers import LayerStack
from substrate.world.parents import Parents
from substrate.world.plan import Operation, OperationKind, Plan
from substrate.world.view import MountView
from substrate.world.widen import Widened


class Job:
    def __init__(self, plan: Plan, stack: LayerStack, world_directory: bytes) -> None:
        self.identifier = os.urandom(6).hex()
        self.plan = plan
        self.stack = stack
        self.world_directory = world_directory
        mounts = {o.change.mount for o in plan.operations}
        self.views = {m.index: MountView(stack, m) for m in stack.mounts if m.index in mounts}
        self.parents = Parents(self.views, self.identifier)
        self.widened = Widened(self.views)
        #: what each operation's target had as its change time when the apply first saw it
        self.ctimes: dict[int, int] = {}
        #: change times that we have set meanwhile, by device and inode (of any of its names)
        self.touched: dict[tuple[int, int], int] = {}

    def displacing(self) -> list[Operation]:
        """The operations that take something of the host away."""
        kinds = (OperationKind.REPLACE, OperationKind.DELETE)
        return [o for o in self.plan.operations if o.kind in kinds]

    def sync_filesystems(self) -> None:
        """One syncfs(2) for each filesystem that something is changed on; sync(2) where the plan has
        closed a directory on the way already. Raises OSError."""
        seen: set[int] = set()
        for operation in self.plan.operations:
            try:
                parent_fd = self.parents.fd(operation)
            except PermissionError:
                os.sync()
                return
            device = self.parents.device
            if device in seen:
                continue
            seen.add(device)
            linux.sync_around(parent_fd)

    def close(self) -> None:
        self.parents.close()
        for view in self.views.values():
            view.close()


def join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def path_in_mount(operation: Operation) -> bytes:
    return join(operation.parent, operation.name)
