"""`@pip`, `@npm`, …: whom the host's own tools are configured to ask, as rules of the network.

No list of hosts is shipped: what a tool's configuration names counts, and where it names nothing, what the
tool itself would ask (docs/adr/0023). Nothing is run, no path of a tree is followed: configuration is read as
data. Invariants: only what the user or the system wrote counts, of a project only what is trusted
(trust.py), but for the remotes of its repository, which are told as such; a rule names one host and one port.
Hot path: the readers are loaded only where nothing was kept. Spec: policy.md §1.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

GROUPS: Final = ("@pip", "@npm", "@cargo", "@go", "@apt", "@git-remotes")
_SHAPE: Final = ("groups", 1)


@value
class Member:
    """A rule that a group came to, and what said so."""

    rule: str
    source: str


@value
class Expansion:
    """What groups came to. `notes`: what was left out, and why."""

    members: dict[str, tuple[Member, ...]]
    notes: tuple[str, ...]

    def rules(self, written: Iterable[str], *, whole_hosts: bool = False) -> tuple[str, ...]:
        """Rules as they were written, each group replaced by its members. `whole_hosts`: without their
        ports, as one means it who denies a group."""
        found: list[str] = []
        for text in written:
            if text.startswith("@"):
                for member in self.members.get(text, ()):
                    host = member.rule.rpartition(":")[0]
                    found.append(host if whole_hosts else member.rule)
            else:
                found.append(text)
        return tuple(dict.fromkeys(found))


@value
class Around:
    """What the tools would see. `home`: $SUBSTRATE_HOME. `repository`: where git keeps the workspace's
    configuration, None where that is not believed (session/repository.py). `root`: in front of the
    system's paths."""

    environ: Mapping[bytes, bytes]
    home: bytes
    user_home: bytes
    workspace: bytes
    repository: bytes | None
    root: bytes = b""


def groups_in(written: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in GROUPS if name in set(written))


def expand(names: Iterable[str], around: Around, now_ns: int) -> Expansion:
    """What the groups come to here and now. Never raises for what it finds: that is a note."""
    names = tuple(names)
    if not names:
        return Expansion(members={}, notes=())
    from marshal import dumps

    from substrate.policy.kept import fetch, keep

    # only these variables are looked at (group_look.py): others do not make another entry
    seen = sorted((k, v) for k, v in around.environ.items() if k.upper().startswith(_LOOKED_AT))
    key = b"groups\0" + dumps(
        (names, seen, around.user_home, around.workspace, around.repository, around.root), 2
    )
    plain = fetch(around.home, key, _SHAPE)
    if plain is None:
        from substrate.policy.group_look import look_up

        plain, stamps = look_up(names, around)
        keep(around.home, key, _SHAPE, stamps, plain, now_ns)
    members, notes = plain
    return Expansion(
        members={
            name: tuple(Member(rule=rule, source=source) for rule, source in rows)
            for name, rows in members
        },
        notes=notes,
    )


#: the beginnings of the names of the variables that tools' configuration is looked for in
_LOOKED_AT: Final = (
    *(b"PIP_", b"UV_", b"NPM_CONFIG_", b"YARN_", b"CARGO_", b"GO", b"GIT_CONFIG_", b"XDG_CONFIG_"),
    *(b"PREFIX",),
)
