"""`fs.write` of a policy: which changes an apply may bring to the host.

Decides before anything is touched; nothing passes it, no answer and no flag. The policy is that of the world's
workspace as it is now, and each file that was given to one of its commands (`--policy`), which the session
remembers. Invariant: what cannot be read lets nothing be applied. Spec: policy.md §1 ("elsewhere: copy-on-write only, never
applied"), world.md §5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from substrate.errors import ConfigError, StateError
from substrate.home_path import user_home
from substrate.policy import broker
from substrate.session.fs_scopes import write_rule, writes_of
from substrate.session.given_policies import given_in
from substrate.world.danger import Danger, DangerReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from substrate.policy.fs_paths import FsPaths
    from substrate.session.pending import Held
    from substrate.session.store import SessionFiles
    from substrate.world.change import Change
    from substrate.world.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbidden:
    """A path that may not be applied, and by which rule; the digest of its policy."""

    path: bytes
    rule: str
    policy_digest: str


class WriteDenied(StateError):
    """Nothing was applied: the policy has some of it stay in the world."""

    def __init__(self, forbidden: Sequence[Forbidden]) -> None:
        first = forbidden[0]
        more = f" and {len(forbidden) - 1} more" if len(forbidden) > 1 else ""
        super().__init__(
            f"nothing was applied: {os.fsdecode(first.path)!r} may not be applied ({first.rule}){more}",
            hint="apply other paths (`substrate apply PATH`), or change the rule: `substrate policy show`",
            code="E-APPLY-POLICY",
        )
        self.forbidden = tuple(forbidden)


def forbidden(held: Held, changes: Iterable[Change]) -> tuple[Forbidden, ...]:
    """Those of the changes that stay in the world. Raises ConfigError, StateError."""
    return by_files(held.opened.files, held.world.workspace, held.world.name, changes)


def by_files(
    files: SessionFiles, workspace: bytes, world: str, changes: Iterable[Change]
) -> tuple[Forbidden, ...]:
    rows = list(_rows(files, workspace, world))
    if not rows:
        return ()
    found = []
    for change in changes:
        for path in (change.path, change.old_path):
            if path is None:
                continue
            for paths, rule, digest in rows:
                if not any(each.may_apply(path) for each in paths):
                    found.append(Forbidden(path=path, rule=rule, policy_digest=digest))
                    break
    return tuple(found)


def with_given(held: Held, plan: Plan) -> Plan:
    """The plan, with its changes of policy files that were given to the world's commands (`--policy`) among its
    dangers: they have no name by which world/danger.py would know them."""
    given = set(given_in(held.opened.files))
    given |= set(map(os.path.realpath, given))
    known = {danger.path for danger in plan.dangers if danger.reason is DangerReason.POLICY}
    found = [
        Danger(path=change.path, reason=DangerReason.POLICY)
        for change in plan.changes
        if change.path in given and change.path not in known
    ]
    return replace(plan, dangers=(*plan.dangers, *found)) if found else plan


def may_write(files: SessionFiles, workspace: bytes, world: str) -> Callable[[bytes], bool]:
    """Whether a path may be written on the host."""
    rows = list(_rows(files, workspace, world))
    return lambda path: all(any(each.may_apply(path) for each in paths) for paths, _, _ in rows)


def _rows(
    files: SessionFiles, workspace: bytes, world: str
) -> Iterable[tuple[tuple[FsPaths, ...], str, str]]:
    """Each policy that says something of it."""
    home = user_home(os.environb)
    for given in (None, *given_in(files)):
        try:
            found = broker.load(os.environb, workspace, workspace, given)
        except ConfigError as wrong:
            if given is None or os.path.lexists(given):
                raise
            raise StateError(
                f"{os.fsdecode(given)}, a policy by which commands of world {world} ran, is gone: what may be "
                f"applied is not known ({wrong})",
                hint="put it back; or take what you need by `substrate diff --patch`",
            ) from None
        if found.policy.fs.write is not None:
            rule = write_rule(found.policy)
            yield writes_of(found.policy, workspace, home), rule, found.digest
