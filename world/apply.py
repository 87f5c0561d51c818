"""Applying pending changes to the host: all of them, or none.

Not the plan (plan.py), the conflicts (conflict.py), the window (window.py) or the recovery
after a crash (recover.py). Order: journal the intent → open up directories that need it →
make what the pre-images need → stage every new entry beside its target → sync → journal what
was staged → compare every target once more → change the names → sync → journal `committed` →
move what was displaced to the reverse layer, or remove it → remove the journal.

Invariant: until `committed`, any error puts every name, mode and time back and leaves nothing
staged and no reverse layer behind; only directories' own times may differ. Never more rights
than the caller's. Spec: world.md §4, §5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from substrate.errors import StateError
from substrate.world.aside import by_type
from substrate.world.busy import in_the_way, refuse_mount_points
from substrate.world.conflict import check
from substrate.world.denied import ApplyDenied, find_denied
from substrate.world.displacing import Removing
from substrate.world.identity import fingerprint, identity_of, inode_of, list_tree
from substrate.world.intent import Before, intend, intend_reopening
from substrate.world.job import Job, join, path_in_mount
from substrate.world.journal import NAME, Journal, text
from substrate.world.layers import LayerStack, is_frozen
from substrate.world.parents import staged_name
from substrate.world.plan import Operation, OperationKind, Plan
from substrate.world.refusal import ApplyConflict, DangerRefused
from substrate.world.removal import Stranger
from substrate.world.restored import add_restored, load_restored
from substrate.world.reverse_make import ReverseMaker
from substrate.world.source import LayerSource
from substrate.world.stage import replaced
from substrate.world.widen import Widened
from substrate.world.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an apply did. `reverse`: number of the layer that holds what it displaced.
    `kept_owner`: paths that stayed the caller's because it may not give them away. `left`:
    names of what could not be taken away afterwards (the journal stays, and `recover` tries
    again), or is not what the apply put there (it is a stranger's and stays for good).
    `lost`: paths of which the reverse layer has no old version, as somebody took it away."""

    identifier: str
    operations: int
    changes: int
    reverse: int | None = None
    kept_owner: tuple[bytes, ...] = ()
    left: tuple[bytes, ...] = ()
    lost: tuple[bytes, ...] = ()


def apply(
    plan: Plan,
    stack: LayerStack,
    world_directory: bytes,
    *,
    allow_special: bool = False,
    keep_reverse: bool = True,
    keep_journal: bool = False,
) -> Applied:
    """Applies a plan to the host; `keep_reverse`: so that it can be undone (reverse_undo.py).
    `keep_journal`: the caller removes the journal, when it has written down that it was applied;
    until then `recover` finds a finished apply.

    Raises DangerRefused, ApplyConflict, ApplyDenied, StateError (a layer is not frozen, an
    earlier apply is unfinished) and OSError (the host refused a step); after each of them the
    host is as it was."""
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
    keeper = ReverseMaker() if keep_reverse and plan.operations else Removing()
    return run(plan, stack, world_directory, LayerSource(), keeper, keep_journal=keep_journal)


def run(
    plan: Plan,
    stack: LayerStack,
    world_directory: bytes,
    source: LayerSource,
    keeper: Removing,
    *,
    keep_journal: bool = False,
) -> Applied:
    """Carries a plan out that was checked; for an undo, too. Raises as `apply`."""
    job = Job(plan, stack, world_directory)
    source.start(job)
    keeper.start(job)
    try:
        return _Apply(job, source, keeper, keep_journal).run()
    finally:
        keeper.close()
        job.close()


class _Apply:
    def __init__(self, job: Job, source: LayerSource, keeper: Removing, keep_journal: bool) -> None:
        self.keep_journal = keep_journal
        self.job = job
        self.source = source
        self.keeper = keeper
        self.before = Before()
        self.window = Window(job, self.before)
        #: names of what could not be taken away; of strangers; paths without an old version
        self.left: list[bytes] = []
        self.strangers: list[bytes] = []
        self.lost: list[bytes] = []

    def run(self) -> Applied:
        job = self.job
        journal = Journal.create(job.world_directory, job.identifier, **self.keeper.begin())
        try:
            try:
                intend(job, journal, self.before, self.source.intent())
                journal.sync()
                job.widened.widen()
                self._make_private(journal)
                self.keeper.prepare(self.before, journal)
                self._stage_all(journal)
                self.keeper.record(self.source, self.before)
                job.sync_filesystems()
                self.keeper.sync()
                journal.add("ready")
                journal.sync()
                self.window.verify_all()
                self.window.exchange_all()
                self.window.set_all_meta()
                self._narrow()
                job.sync_filesystems()
                again = intend_reopening(job, journal, self.before)
                journal.commit()
            except BaseException as error:
                said = in_the_way(job.parents.operation, error)
                try:
                    self._roll_back(error)
                    add_restored(job.world_directory, self.window.change_times())
                    journal.remove()
                except OSError as second:
                    # all is as it was; `recover` does the rest
                    error.add_note(f"its journal could not be removed: {second}")
                if self.strangers:
                    raise self._said_strangers(error) from error
                if said is not None:
                    raise said from error
                raise
            self._finish(journal, again)
        finally:
            journal.close()
        return Applied(
            identifier=job.identifier,
            operations=len(job.plan.operations),
            changes=len(job.plan.changes),
            reverse=self.keeper.number,
            kept_owner=tuple(sorted(self.source.kept_owner() + self.window.kept_owner)),
            left=tuple(self.left + self.strangers),
            lost=tuple(self.lost),
        )

    # --- before any name changes

    def _make_private(self, journal: Journal) -> None:
        for operation in self.job.plan.operations:
            if operation.kind is OperationKind.META:
                continue
            if self.job.parents.needs_private(operation):
                inode = self.job.parents.make_private(operation)
                if inode is not None:
                    target = self.job.views[operation.change.mount].mount.target
                    journal.add(
                        "private",
                        target=text(target),
                        parent=text(operation.parent),
                        inode=inode[2],
                    )
                    journal.write()

    def _stage_all(self, journal: Journal) -> None:
        for operation in self.job.plan.operations:
            if operation.kind in (OperationKind.META, OperationKind.DELETE):
                continue
            digest = self.source.stage(operation, journal)
            aside_fd, name = self.job.parents.aside(operation)
            status = os.stat(name, dir_fd=aside_fd, follow_symlinks=False)
            made = self.source.aside(operation, half=False)
            if inode_of(status) != made.top:
                raise replaced(operation.change.path)
            self.window.staged[operation.number] = identity_of(status)
            fields: dict[str, object] = {"after": list(identity_of(status))}
            if operation.after.type == "directory":
                fields["tree"] = fingerprint(list_tree(aside_fd, name))
                fields["below"] = by_type(made.below or ())
            elif operation.after.type == "file":
                fields["digest"] = digest
            journal.add("staged", n=operation.number, **fields)

    def _narrow(self) -> None:
        metas = (o for o in self.window.done if o.kind is OperationKind.META)
        self.job.widened.narrow({(o.change.mount, path_in_mount(o)) for o in metas})

    # --- when it failed

    def _roll_back(self, cause: BaseException) -> None:
        """Puts every name back, last first, and removes what was staged. Raises StateError where
        something cannot be put back: it is left, with the journal."""
        stuck: list[str] = []
        for operation in reversed(self.window.done):
            try:
                self.window.put_back(operation)
            except (OSError, StateError) as error:
                stuck.append(f"{os.fsdecode(operation.change.path)}: {error}")
        if not stuck:
            stuck += self._drop_staged()
        try:
            if not stuck:
                self.keeper.drop()
                self.strangers += self.job.parents.remove_private()
            self._narrow()
        except OSError as error:
            stuck.append(str(error))
        if stuck:
            raise StateError(
                f"the apply failed ({cause}) and could not be undone at {'; '.join(stuck[:3])}"
                + (f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""),
                hint="the journal was kept; `recover` tries again",
                code="E-APPLY-STUCK",
            ) from cause

    def _drop_staged(self) -> list[str]:
        stuck = []
        for operation in self.job.plan.operations:
            if operation.kind not in (OperationKind.CREATE, OperationKind.REPLACE):
                continue
            try:
                self.source.drop(operation, half=operation.number not in self.window.staged)
            except Stranger:
                self.strangers.append(self._aside_name(operation))
            except (OSError, StateError) as error:
                stuck.append(f"{os.fsdecode(operation.change.path)}: {error}")
        return stuck

    def _said_strangers(self, cause: BaseException) -> StateError:
        names = ", ".join(os.fsdecode(name) for name in self.strangers[:3])
        return StateError(
            f"nothing was applied ({cause}); {len(self.strangers)} names beside the targets hold "
            f"something else than the apply put there: {names}",
            hint="they were left as they are: somebody else writes to those directories",
            code="E-APPLY-STRANGER",
        )

    def _aside_name(self, operation: Operation) -> bytes:
        view = self.job.views[operation.change.mount]
        name = staged_name(self.job.identifier, operation.number)
        return view.path(join(self.job.parents.aside_path(operation), name))

    # --- when it is committed

    def _finish(self, journal: Journal, again: Widened) -> None:
        """Takes away what was displaced. Nothing that fails here makes the apply undone: it is
        in `left`, and the journal stays."""
        job = self.job
        try:
            again.widen()
            self._take_displaced()
            again.narrow(())
            if not self.left:
                self.strangers += job.parents.remove_private()
                # what the keeper knows reaches further back
                times = [*self.keeper.change_times(), *self.window.change_times()]
                add_restored(job.world_directory, times)
                self.keeper.finish()
                if not self.keep_journal:
                    journal.remove()
        except (OSError, StateError):
            self.left.append(job.world_directory + b"/" + NAME)

    def _take_displaced(self) -> None:
        for operation in self.job.displacing():
            try:
                kept = self.keeper.keep(operation, self.before.displaced[operation.number])
            except Stranger:
                kept = False
                self.strangers.append(self._aside_name(operation))
            except (OSError, StateError):
                kept = True
                self.left.append(self._aside_name(operation))
            if not kept:
                self.lost.append(operation.change.path)
