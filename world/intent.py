"""What an apply is about to do, written down before the host is touched.

Not the doing. For each operation the journal gets what it will displace, exactly, so that a
crash can be undone; nothing is changed here. Spec: world.md §5.
"""

from __future__ import annotations

import os

from substrate.world.aside import by_type, displaced_aside, planned_tree
from substrate.world.attributes import Saved, save
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.identity import (
    Identity,
    before_matches,
    content_digest,
    fingerprint,
    identity_of,
    names_in,
)
from substrate.world.job import Job, path_in_mount
from substrate.world.journal import Journal, text
from substrate.world.parents import Place
from substrate.world.plan import Operation, OperationKind
from substrate.world.refusal import host_changed
from substrate.world.view import MountView
from substrate.world.widen import Widened


class Before:
    """What is known of the host's entries before the apply, by number of the operation."""

    def __init__(self) -> None:
        self.displaced: dict[int, Identity] = {}
        self.saved: dict[int, Saved] = {}
        #: content digests of files, fingerprints of trees
        self.digests: dict[int, str | None] = {}
        self.trees: dict[int, str] = {}


def intend(job: Job, journal: Journal, found: Before, more: dict[int, dict[str, object]]) -> None:
    """Adds every operation to the journal, and the directories that must be opened up for
    their owner; `more`: fields of an operation that only its apply knows.

    Raises ApplyConflict when the host is not as the plan saw it, OSError."""
    opened: set[Place] = set()
    for operation in job.plan.operations:
        view = job.views[operation.change.mount]
        parent_fd = job.parents.fd(operation)
        fields = dict(more.get(operation.number, ()))
        if operation.change.before is not None:
            fields |= _before(job, operation, parent_fd, found)
        if operation.kind is not OperationKind.META and job.parents.needs_private(operation):
            fields["private"] = True
        journal.add(
            "intent",
            n=operation.number,
            operation=operation.kind.value,
            mount=operation.change.mount,
            target=text(view.mount.target),
            parent=text(operation.parent),
            name=text(operation.name),
            **fields,
        )
        place = (operation.change.mount, operation.parent)
        if place not in opened and operation.kind is not OperationKind.META:
            opened.add(place)
            identity = job.widened.need(place, parent_fd)
            if identity is not None:
                journal.add("widen", **_directory(view, operation.parent, identity))


def _before(job: Job, operation: Operation, parent_fd: int, found: Before) -> dict[str, object]:
    number = operation.number
    status = os.stat(operation.name or b".", dir_fd=parent_fd, follow_symlinks=False)
    if not before_matches(status, operation.before):
        raise host_changed(operation, "after the diff")
    found.displaced[number] = identity_of(status)
    job.ctimes[number] = status.st_ctime_ns
    fields: dict[str, object] = {
        "before": list(identity_of(status)),
        "ctime_ns": status.st_ctime_ns,
    }
    if operation.kind is OperationKind.META:
        saved = save(parent_fd, operation.name, operation.change)
        found.saved[number] = saved
        fields["saved"] = saved.to_json()
        if operation.before.type == "directory":
            fields["names"] = _names_in(parent_fd, operation.name)
    elif operation.before.type == "directory":
        found.trees[number] = fields["tree"] = fingerprint(planned_tree(operation))
        below = displaced_aside(operation, found.displaced[number]).below
        fields["below"] = None if below is None else by_type(below)
    elif operation.before.type == "file":
        digest = _host_digest(job.views[operation.change.mount], operation)
        found.digests[number] = fields["digest"] = digest
    return fields


def _names_in(parent_fd: int, name: bytes) -> str | None:
    fd = open_beneath(parent_fd, name, LOOKUP)
    try:
        return names_in(fd)
    finally:
        os.close(fd)


def _host_digest(view: MountView, operation: Operation) -> str | None:
    """None for a file that we may replace but not read."""
    try:
        fd = view.open_state(path_in_mount(operation), operation.before)
    except PermissionError:
        return None
    try:
        return content_digest(fd)
    finally:
        os.close(fd)


def _directory(view: MountView, path: bytes, identity: Identity) -> dict[str, object]:
    return {"target": text(view.mount.target), "parent": text(path), "before": list(identity)}


def intend_reopening(job: Job, journal: Journal, found: Before) -> Widened:
    """Adds the directories that the apply leaves closed to us, and that must be opened once
    more to take away what was displaced in them."""
    final = {
        (o.change.mount, path_in_mount(o)): _with_mode(found.displaced[o.number], o.after.mode)
        for o in job.plan.operations
        if o.kind is OperationKind.META and o.before.type == "directory"
    }
    wanted: set[Place] = set()
    for mount, parent in {(o.change.mount, o.parent) for o in job.displacing()}:
        while True:
            wanted.add((mount, parent))
            if not parent:
                break
            parent = parent.rpartition(b"/")[0]
    again = job.widened.reopened(wanted, final)
    for (mount, path), identity in again.items():
        journal.add("open", **_directory(job.views[mount], path, identity))
    return again


def _with_mode(identity: Identity, mode: int) -> Identity:
    return (*identity[:5], mode, *identity[6:])
