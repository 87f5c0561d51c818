"""Applying pending changes to the host: all of them, or none.

Not the plan (plan.py), the conflicts (conflict.py) or the recovery after a crash
(recover.py). Order: journal the intent → open up directories that need it → stage every new
entry beside its target → sync → journal what was staged → compare every target once more →
change the names → sync → journal `committed` → remove what was displaced → remove the
journal. Names are changed by renameat2(2) only: EXCHANGE for an entry that is replaced (what
was displaced is compared afterwards and exchanged back if it is not what was checked),
NOREPLACE for a new one, and for a deleted one a NOREPLACE rename to a staged name.

Invariant: until `committed`, any error puts every name, mode and time back and leaves nothing
staged behind; only directories' own times may differ. Never more rights than the caller's.
Spec: world.md §5.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from substrate.errors import StateError
from substrate.world import linux, names
from substrate.world.aside import (
    Aside,
    by_type,
    displaced_aside,
    planned_tree,
    remove_aside,
    staged_aside,
)
from substrate.world.attributes import Saved, restore, save, set_meta
from substrate.world.beneath import LOOKUP, open_beneath
from substrate.world.busy import in_the_way, refuse_mount_points
from substrate.world.change import Change, FileState
from substrate.world.conflict import check
from substrate.world.denied import ApplyDenied, find_denied
from substrate.world.identity import (
    Identity,
    before_matches,
    content_digest,
    fingerprint,
    identity_of,
    inode_at,
    inode_of,
    list_tree,
)
from substrate.world.journal import NAME, Journal, text
from substrate.world.layers import LayerStack, is_frozen
from substrate.world.parents import Parents
from substrate.world.plan import Operation, OperationKind, Plan
from substrate.world.refusal import ApplyConflict, DangerRefused, host_changed
from substrate.world.restored import add_restored, load_restored
from substrate.world.stage import Stager
from substrate.world.view import HOST, MountView
from substrate.world.widen import Widened


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply did. `kept_owner`: paths that stayed the caller's because it may not give
    them away. `left`: staged names of what could not be removed afterwards, or is not what the
    apply put there (the journal stays, and `recover` tries again)."""

    identifier: str
    operations: int
    changes: int
    kept_owner: tuple[bytes, ...] = ()
    left: tuple[bytes, ...] = ()


def apply(
    plan: Plan, stack: LayerStack, world_directory: bytes, *, allow_special: bool = False
) -> Applied:
    """Applies a plan to the host.

    Raises DangerRefused, ApplyConflict, ApplyDenied, StateError (a layer is not frozen, an earlier apply
    is unfinished) and OSError (the host refused a step); after each of them the host is as
    it was."""
    if plan.dangers and not allow_special:
        raise DangerRefused(plan.dangers)
    for layer in stack.layers:
        if not is_frozen(stack, layer.number):
            raise StateError(
                f"layer {layer.number} is still open: only frozen layers are applied",
                hint="wait until the world's processes have ended",
                code="E-LAYER-OPEN",
            )
    refuse_mount_points(plan)
    conflicts = check(plan, stack, load_restored(world_directory))
    conflicts = [c for c in conflicts if c.path not in plan.resolved]
    if conflicts:
        raise ApplyConflict(conflicts)
    denied = find_denied(plan, stack)
    if denied:
        raise ApplyDenied(denied)
    run = _Apply(plan, stack, world_directory)
    try:
        return run.run()
    finally:
        run.close()


class _Apply:
    def __init__(self, plan: Plan, stack: LayerStack, world_directory: bytes) -> None:
        self.identifier = os.urandom(6).hex()
        self.plan = plan
        self.world_directory = world_directory
        mounts = {o.change.mount for o in plan.operations}
        self.views = {m.index: MountView(stack, m) for m in stack.mounts if m.index in mounts}
        self.parents = Parents(self.views)
        self.stagers = {i: Stager(v, plan.contents) for i, v in self.views.items()}
        #: operations whose name was changed, in that order
        self.done: list[Operation] = []
        self.saved: dict[int, Saved] = {}
        self.widened = Widened(self.views)
        #: identity of each entry that was staged to the end
        self.staged: dict[int, Identity] = {}
        #: identity of each entry of the host that is to be displaced
        self.displaced: dict[int, Identity] = {}

    def close(self) -> None:
        self.parents.close()
        for view in self.views.values():
            view.close()

    def staged_name(self, operation: Operation) -> bytes:
        return f".substrate-{self.identifier}-{operation.number}".encode()

    def run(self) -> Applied:
        operations = self.plan.operations
        journal = Journal.create(self.world_directory, self.identifier)
        try:
            try:
                self._intend(journal)
                journal.sync()
                self.widened.widen()
                self._stage_all(journal)
                self._sync_filesystems()
                journal.add("ready")
                journal.sync()
                self._verify_all()
                self._exchange_all()
                self._set_all_meta()
                self._narrow()
                self._sync_filesystems()
                journal.add("committed")
                journal.sync()
            except BaseException as error:
                said = in_the_way(self.parents.operation, error)
                self._roll_back(error)
                try:
                    journal.remove()
                except OSError as second:
                    error.add_note(f"its journal could not be removed: {second}")
                if said is not None:
                    raise said from error
                raise
            left = self._remove_displaced()
            if not left:
                try:
                    self._note_restored()
                    journal.remove()
                except OSError:
                    left.append(self.world_directory + b"/" + NAME)
        finally:
            journal.close()
        kept = sorted(p for s in self.stagers.values() for p in s.kept_owner)
        return Applied(
            identifier=self.identifier,
            operations=len(operations),
            changes=len(self.plan.changes),
            kept_owner=tuple(kept),
            left=tuple(left),
        )

    # --- before any name changes

    def _intend(self, journal: Journal) -> None:
        """Writes down every operation and what it will displace; finds the directories that
        must be opened up for their owner."""
        opened: set[tuple[int, bytes]] = set()
        for operation in self.plan.operations:
            view = self.views[operation.change.mount]
            parent_fd = self.parents.fd(operation)
            fields: dict[str, object] = {}
            if operation.change.before is not None:
                status = os.stat(operation.name or b".", dir_fd=parent_fd, follow_symlinks=False)
                if not before_matches(status, operation.before):
                    raise host_changed(operation, "after the diff")
                self.displaced[operation.number] = identity_of(status)
                fields["before"] = list(identity_of(status))
                fields["ctime_ns"] = status.st_ctime_ns
                if operation.kind is OperationKind.META:
                    saved = save(parent_fd, operation.name, operation.change)
                    self.saved[operation.number] = saved
                    fields["saved"] = saved.to_json()
                elif operation.before.type == "directory":
                    tree = planned_tree(operation)
                    fields["tree"] = fingerprint(tree)
                    below = displaced_aside(operation, self.displaced[operation.number]).below
                    fields["below"] = None if below is None else by_type(below)
                elif operation.before.type == "file":
                    fields["digest"] = self._host_digest(view, operation)
            journal.add(
                "intent",
                n=operation.number,
                operation=operation.kind.value,
                target=text(view.mount.target),
                parent=text(operation.parent),
                name=text(operation.name),
                **fields,
            )
            place = (operation.change.mount, operation.parent)
            if place not in opened and operation.kind is not OperationKind.META:
                opened.add(place)
                identity = self.widened.need(place, parent_fd)
                if identity is not None:
                    journal.add(
                        "widen",
                        target=text(view.mount.target),
                        parent=text(operation.parent),
                        before=list(identity),
                    )

    def _host_digest(self, view: MountView, operation: Operation) -> str | None:
        """None for a file that we may replace but not read."""
        try:
            fd = view.open_state(_join(operation.parent, operation.name), operation.before)
        except PermissionError:
            return None
        try:
            return content_digest(fd)
        finally:
            os.close(fd)

    def _narrow(self) -> None:
        metas = (o for o in self.done if o.kind is OperationKind.META)
        self.widened.narrow({(o.change.mount, _join(o.parent, o.name)) for o in metas})

    def _stage_all(self, journal: Journal) -> None:
        for operation in self.plan.operations:
            if operation.kind in (OperationKind.META, OperationKind.DELETE):
                continue
            parent_fd = self.parents.fd(operation)
            name = self.staged_name(operation)
            digest = self._stage(operation, parent_fd, name, journal)
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            made = self._staged_aside(operation)
            if inode_of(status) != made.top:
                stager = self.stagers[operation.change.mount]
                raise stager.replaced(_join(operation.parent, operation.name))
            self.staged[operation.number] = identity_of(status)
            fields: dict[str, object] = {"after": list(identity_of(status))}
            if operation.after.type == "directory":
                fields["tree"] = fingerprint(list_tree(parent_fd, name))
                fields["below"] = by_type(made.below or ())
            elif operation.after.type == "file":
                fields["digest"] = digest
            journal.add("staged", n=operation.number, **fields)

    def _stage(
        self, operation: Operation, parent_fd: int, name: bytes, journal: Journal
    ) -> str | None:
        stager = self.stagers[operation.change.mount]
        relative = _join(operation.parent, operation.name)
        state = operation.after
        if operation.change.before is not None:
            stager.before[relative] = operation.change.before
        digest = stager.stage(
            relative, state, operation.parent, parent_fd, name, open_directory=True
        )
        if state.type != "directory":
            return digest
        journal.add("made", n=operation.number, inode=stager.made[relative][2])
        journal.write()
        root = stager.view.roots[HOST]
        staged_top = _join(operation.parent, name)
        directories: list[tuple[bytes, FileState, bytes]] = [(relative, state, staged_top)]
        start = len(operation.change.path)
        for change in operation.added:
            inner = change.path[start:]
            parent, _, child = (staged_top + inner).rpartition(b"/")
            entry = _after(change)
            fd = open_beneath(root, parent, LOOKUP)
            try:
                stager.stage(relative + inner, entry, parent, fd, child, open_directory=True)
            finally:
                os.close(fd)
            if entry.type == "directory":
                journal.add("made", n=operation.number, inode=stager.made[relative + inner][2])
                journal.write()
                directories.append((relative + inner, entry, staged_top + inner))
        for source, entry, staged in reversed(directories):  # children before their directory
            parent, _, child = staged.rpartition(b"/")
            fd = open_beneath(root, parent, LOOKUP)
            try:
                stager.finish_directory(source, entry, fd, child)
            finally:
                os.close(fd)
        return None

    def _sync_filesystems(self) -> None:
        """One syncfs(2) for each filesystem that something is changed on."""
        seen: set[int] = set()
        for operation in self.plan.operations:
            parent_fd = self.parents.fd(operation)
            device = self.parents.device
            if device in seen:
                continue
            seen.add(device)
            linux.sync_around(parent_fd)

    def _verify_all(self) -> None:
        """The last look before the window: each target as the plan saw it, change time
        included (a rename changes that one, so it cannot be compared afterwards)."""
        for operation in self.plan.operations:
            if operation.change.before is None:
                continue
            if (operation.change.mount, _join(operation.parent, operation.name)) in self.widened:
                continue  # its mode is ours now; `set_meta` looks at the inode
            parent_fd = self.parents.fd(operation)
            try:
                status = os.stat(operation.name or b".", dir_fd=parent_fd, follow_symlinks=False)
            except FileNotFoundError:
                raise host_changed(operation, "while it was staged") from None
            if not before_matches(status, operation.before):
                raise host_changed(operation, "while it was staged")

    # --- the window

    def _exchange_all(self) -> None:
        for operation in self.plan.operations:
            kind = operation.kind
            if kind is OperationKind.META:
                continue
            parent_fd = self.parents.fd(operation)
            name, staged = operation.name, self.staged_name(operation)
            self.done.append(operation)  # before: `_undo` looks whether it happened
            try:
                if kind is OperationKind.CREATE:
                    names.move(parent_fd, staged, name)
                elif kind is OperationKind.REPLACE:
                    names.exchange(parent_fd, staged, name)
                else:
                    names.move(parent_fd, name, staged)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOENT):
                    raise host_changed(operation, "during the apply") from error
                raise
            if kind is not OperationKind.CREATE:
                self._verify_displaced(operation, parent_fd, staged)

    def _verify_displaced(self, operation: Operation, parent_fd: int, staged: bytes) -> None:
        status = os.stat(staged, dir_fd=parent_fd, follow_symlinks=False)
        same = identity_of(status) == self.displaced[operation.number]
        if same and operation.before.type == "directory":
            try:
                same = list_tree(parent_fd, staged) == planned_tree(operation)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                same = False  # something is mounted inside
        if not same:
            self.displaced[operation.number] = identity_of(status)  # what `_undo` puts back
            raise host_changed(operation, "during the apply")

    def _set_all_meta(self) -> None:
        """Modes and the like, in place so that the inode stays; deepest first, because a
        directory may lose the permission to be searched."""
        metas = [o for o in self.plan.operations if o.kind is OperationKind.META]
        for operation in reversed(metas):
            parent_fd = self.parents.fd(operation)
            self.done.append(operation)
            view = self.views[operation.change.mount]
            kept = set_meta(
                view, _join(operation.parent, operation.name), parent_fd, operation.change
            )
            if kept:
                self.stagers[operation.change.mount].kept_owner.append(operation.change.path)

    # --- after

    def _roll_back(self, cause: BaseException) -> None:
        """Puts every name back, last first, and removes what was staged. What cannot be put
        back is left with the journal and said in a StateError."""
        stuck: list[str] = []
        for operation in reversed(self.done):
            try:
                self._undo(operation)
            except (OSError, StateError) as error:
                stuck.append(f"{os.fsdecode(operation.change.path)}: {error}")
        if not stuck:
            for operation in self.plan.operations:
                if operation.kind in (OperationKind.CREATE, OperationKind.REPLACE):
                    try:
                        remove_aside(
                            self.parents.fd(operation),
                            self.staged_name(operation),
                            self._staged_aside(operation),
                        )
                    except (OSError, StateError) as error:
                        stuck.append(f"{os.fsdecode(operation.change.path)}: {error}")
        try:
            self._narrow()
            self._note_restored()
        except OSError as error:
            stuck.append(str(error))
        if stuck:
            raise StateError(
                f"the apply failed ({cause}) and could not be undone at {'; '.join(stuck[:3])}"
                + (f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""),
                hint="the journal was kept; `recover` tries again",
                code="E-APPLY-STUCK",
            ) from cause

    def _note_restored(self) -> None:
        """The change times that we have left: of what went there and back, and of every
        directory in which names came and went."""
        entries = []
        for operation in self.done:
            before = operation.change.before
            if before is None:
                continue
            fd = self.parents.fd(operation)
            try:
                status = os.stat(operation.name or b".", dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_ino == before.inode and status.st_ctime_ns != before.ctime_ns:
                entries.append(
                    (operation.change.path, before.inode, status.st_ctime_ns, before.ctime_ns)
                )
        known = {path for path, *_ in entries}
        for mount, parent, inode, ctime_ns in self.parents.first_seen():
            view = self.views[mount]
            try:
                fd = open_beneath(view.roots[HOST], parent, LOOKUP)
            except FileNotFoundError:
                continue
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            path = view.path(parent)
            if status.st_ino == inode and status.st_ctime_ns != ctime_ns and path not in known:
                entries.append((path, inode, status.st_ctime_ns, ctime_ns))
        if entries:
            add_restored(self.world_directory, entries)

    def _undo(self, operation: Operation) -> None:
        parent_fd = self.parents.fd(operation)
        name, staged = operation.name, self.staged_name(operation)
        if operation.kind is OperationKind.META:
            restore(parent_fd, name, self.saved[operation.number])
            return
        here, aside = inode_at(parent_fd, name), inode_at(parent_fd, staged)
        displaced = self.displaced[operation.number][:3] if operation.change.before else None
        if operation.kind is OperationKind.DELETE:
            if aside is not None:
                if aside != displaced:
                    raise StateError("what it displaced was replaced")
                names.move(parent_fd, staged, name)
            return
        ours = self.staged[operation.number][:3]
        if aside == ours:
            return  # it did not happen
        if here != ours:
            raise StateError("the host replaced it after it was applied")
        if aside != displaced:
            raise StateError("what it displaced was replaced")
        if operation.kind is OperationKind.CREATE:
            names.move(parent_fd, name, staged)
        else:
            names.exchange(parent_fd, staged, name)

    def _remove_displaced(self) -> list[bytes]:
        left = []
        for operation in self.plan.operations:
            if operation.kind in (OperationKind.REPLACE, OperationKind.DELETE):
                try:
                    remove_aside(
                        self.parents.fd(operation),
                        self.staged_name(operation),
                        displaced_aside(operation, self.displaced[operation.number]),
                    )
                except (OSError, StateError):
                    path = operation.change.path.rpartition(b"/")[0]
                    left.append(path + b"/" + self.staged_name(operation))
        return left

    def _staged_aside(self, operation: Operation) -> Aside:
        made = self.stagers[operation.change.mount].made
        relative = _join(operation.parent, operation.name)
        return staged_aside(operation, relative, made, half=operation.number not in self.staged)


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _after(change: Change) -> FileState:
    assert change.after is not None
    return change.after
