"""The broker: what holds here, and what it decides of a command.

It decides; the world and the gate enforce, the trace records. Hot path: where there is no policy file the
default profile is taken as it was shipped, else what was kept of the last reading (kept.py); only a changed
file is read and parsed. Invariants: a policy that cannot be read is an error, never another policy; what was
kept counts only while every file, and what is trusted, is as it was. Spec: policy.md §1, §5.
"""

from __future__ import annotations

import os
import time

from substrate.policy import kept
from substrate.policy.built_gates import CODE, GATES
from substrate.policy.merge import merge
from substrate.policy.places import SYSTEM_FILE, find_files, find_places
from substrate.policy.plain import SHAPE, plain_of, policy_from
from substrate.policy.profiles import DEFAULT, load_profile
from substrate.policy.rules import PROJECT, NetRules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

    from substrate.policy.armed import Armed
    from substrate.policy.decide import Compiled, Digest
    from substrate.policy.groups import Expansion
    from substrate.policy.places import Found, Places
    from substrate.policy.rules import Policy, Subject, Verdict


#: what is kept was made by this code, of values of this shape
_SHAPE: Final = (SHAPE, CODE)


class Broker:
    """A policy that is in force, compiled when it is first asked. `stamps`: of its files, from before they
    were read; `armed`: the gate's table, where somebody has made it."""

    __slots__ = (
        *("_armed", "_compiled", "_environ", "_places", "_profile", "digest", "policy", "stamps"),
    )

    def __init__(
        self,
        policy: Policy,
        environ: Mapping[bytes, bytes],
        places: Places,
        stamps: kept.Stamps,
        profile: str | None = None,
        armed: Armed | None = None,
    ) -> None:
        self.policy = policy
        self.digest = policy.digest
        self._environ = environ
        self._places = places
        self.stamps = stamps
        self._profile = profile
        self._compiled: Compiled | None = None
        self._armed = armed

    @property
    def compiled(self) -> Compiled:
        if self._compiled is None:
            from substrate.policy.decide import compile_policy

            self._compiled = compile_policy(self.policy)
        return self._compiled

    def decide(
        self, subject: Subject, digest: Digest | None = None, *, whole: bool = True
    ) -> Verdict:
        """As Compiled.decide: `digest` is asked only where a rule needs it."""
        return self.compiled.decide(subject, digest, whole=whole)

    def gate_table(self) -> tuple[dict[bytes, int], int]:
        """For the exec gate: a path or last name to ALLOW, DENY or ASK; and the answer for all else."""
        return self.compiled.gate_table()

    @property
    def armed(self) -> Armed:
        """That table, packed, as a session arms it."""
        if self._armed is None:
            from substrate.policy.armed import armed_of

            self._armed = armed_of(*self.gate_table())
        return self._armed

    def expand(
        self, repository: bytes | None = None, names: Sequence[str] | None = None
    ) -> Expansion:
        """What the groups of the network (or `names`) come to here and now. `repository`: where the
        workspace's git configuration is, if that is not its `.git` (session/repository.py)."""
        from substrate.policy.groups import Around, expand, groups_in

        workspace = self._places.workspace
        if repository is None and os.path.isdir(workspace + b"/.git"):
            repository = workspace + b"/.git"
        around = Around(
            environ=self._environ,
            home=self._places.home,
            user_home=self._places.user_home,
            workspace=workspace,
            repository=repository,
        )
        if names is None:
            names = groups_in((*self.policy.net.allow, *self.policy.net.deny))
        return expand(names, around, time.time_ns())

    def net(self, repository: bytes | None = None) -> NetRules:
        """The rules of the network without groups, as the egress takes them."""
        rules, expansion = self.policy.net, self.expand(repository)
        return NetRules(
            allow=expansion.rules(rules.allow), deny=expansion.rules(rules.deny, whole_hosts=True)
        )

    def directories_in(self, workspace: bytes) -> tuple[bytes, ...]:
        """Of projects' policy files in a workspace, where there are such."""
        below = workspace.rstrip(b"/") + b"/"
        return tuple(
            os.path.dirname(path)
            for kind, path in self._places.candidates
            if kind == PROJECT and path.startswith(below) and os.path.lexists(path)
        )

    def is_current(self) -> bool:
        """Whether every file is as it was, and no further one is there: for the reload on a change.
        Raises ConfigError where that cannot be told."""
        return _stamps_of(find_files(self._places), self._places) == self.stamps

    def reload(self) -> Broker:
        """The same, read again. Raises ConfigError: then this one stays in force."""
        return _load(self._environ, self._places, self._profile)


def load(
    environ: Mapping[bytes, bytes],
    cwd: bytes,
    workspace: bytes,
    given: bytes | None = None,
    *,
    profile: str | None = None,
    system_file: bytes = SYSTEM_FILE,
) -> Broker:
    """The policy of a directory. `given`: a file of the call's own, over all others (`--policy`, else
    SUBSTRATE_POLICY); `profile`: in place of what the files extend. Raises ConfigError, StateError."""
    given = given or environ.get(b"SUBSTRATE_POLICY") or None
    return _load(environ, find_places(environ, cwd, workspace, given, system_file), profile)


def _load(environ: Mapping[bytes, bytes], places: Places, profile: str | None) -> Broker:
    found = find_files(places)
    stamps = _stamps_of(found, places)
    if not found:
        name = profile or DEFAULT
        policy = merge([load_profile(name)])
        return Broker(policy, environ, places, stamps, profile, GATES[name])
    key = _key(found, places, profile)
    row = kept.fetch(places.home, key, _SHAPE)
    if row is not None:
        plain, armed = row
        return Broker(policy_from(plain), environ, places, stamps, profile, armed)
    from substrate.policy.load_policy import load_policy

    policy = load_policy(found, places, profile)
    made = Broker(policy, environ, places, stamps, profile)
    now_ns = time.time_ns()
    if not kept.is_young(stamps, now_ns):
        kept.keep(places.home, key, _SHAPE, stamps, (plain_of(policy), made.armed), now_ns)
    return made


def _stamps_of(found: Sequence[Found], places: Places) -> kept.Stamps:
    stamps = tuple((file.path, file.stamp) for file in found)
    projects = [file.path for file in found if file.kind == PROJECT]
    if not projects:
        return stamps
    from substrate.policy.trust import stamp_path

    return (*stamps, *kept.stamps_of(stamp_path(places.home, path) for path in projects))


def _key(found: Sequence[Found], places: Places, profile: str | None) -> bytes:
    """What the result depends on besides the files' contents."""
    parts: list[Any] = [os.geteuid(), places.owner, places.user_home, profile]
    return b"policy\0" + repr([*parts, [(file.kind, file.path) for file in found]]).encode()
