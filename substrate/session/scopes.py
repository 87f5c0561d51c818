"""What a policy's `[net]`, `[fs]` and `[limits]` come to for a run: the settings that it obeys then, and what of that
is on the record.

The policy is joined with the settings here and nowhere else; whatever holds a world (its network, mounts, control
groups, clocks) goes by settings alone and knows of no policy. Invariants: a deny of the policy is lifted by no flag, and
the smaller of two limits counts; flags allow more than the policy unless one of its layers is `final`, then they are left out and told,
or refused where they would take the network away from it; what cannot be held to is never told as held. Hot path:
without such rules, and with names alone, nothing is parsed here. Spec: policy.md §1; docs/adr/0028.
"""

from __future__ import annotations

import os

from substrate.errors import ConfigError, PolicyDenied
from substrate.policy.groups import groups_in
from substrate.policy.rules import PROJECT
from substrate.telemetry.trace.octets import text_or_b64
from substrate.values import replace, value
from substrate.world.limits import Enforcement, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Final

    from substrate.policy.broker import Broker
    from substrate.policy.groups import Expansion
    from substrate.policy.rules import Layer, Policy
    from substrate.session.settings import Settings
    from substrate.session.workspace import Workspace

#: of `[limits]`: as it is written, its field in the policy, and in `Limits`
_LIMITS: Final = (
    *(("memory", "memory_bytes", "memory_bytes"), ("pids", "pids", "pids")),
    *(("disk", "disk_bytes", "disk_bytes"), ("runtime", "runtime_s", "wall_s")),
)
_MOST_NOTES: Final = 20
_REMOTES: Final = "@git-remotes"


@value
class Scopes:
    """`settings`: those of the run, as the policy leaves them. `digest`: of the policy. `locked`: the layer behind
    which nothing opens more, "" for none. `eager`: somebody serves the
    network from the start, and not only from its first packet on. `execs`: how many programs a command may run.
    `unheld`: limits that nothing here holds, and why. `hidden`: paths that its `read_deny`
    covers. `told`: what `world_start` says of it. `notes`: for people; `left_out`: of these, what
    of a call does not count."""

    settings: Settings
    policy: Policy
    digest: str
    locked: str = ""
    eager: bool = True
    execs: int | None = None
    unheld: tuple[tuple[str, str], ...] = ()
    hidden: tuple[bytes, ...] = ()
    told: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def holds(self, gate: str, *, in_world: bool) -> tuple[Enforcement, ...]:
        """How the limits are held that no control group and no clock holds. `gate`: what the exec gate is."""
        found = [
            Enforcement(limit=name, by="none", soft=True, why=why) for name, why in self.unheld
        ]
        counted = in_world and self.settings.net in ("filtered", "none")
        if self.settings.egress_bytes is not None and counted:
            found.append(Enforcement(limit="egress_bytes", by="supervisor"))
        if self.execs is not None:
            found.append(execs_by(gate))
        return tuple(found)


def execs_by(gate: str) -> Enforcement:
    """How a count of programs is held by a gate: strict, racy, off."""
    if gate == "off":
        why = "nothing here can hold an exec, so none is counted"
        return Enforcement(limit="execs", by="none", soft=True, why=why)
    return Enforcement(limit="execs", by="gate")


def scopes_of(
    broker: Broker, settings: Settings, workspace: Workspace, *, in_world: bool, walk: bool = True
) -> Scopes:
    """What holds here and now. `in_world`: there is one. `walk`: look in the workspace for what is not to be read.
    Raises ConfigError, PolicyDenied."""
    policy = broker.policy
    joined = _Joined(broker, settings, workspace, in_world=in_world)
    joined.lock()
    joined.limits()
    joined.net()
    hidden: tuple[bytes, ...] = ()
    if in_world and policy.fs.read_deny:
        from substrate.session import fs_scopes

        found = fs_scopes.unreadable(policy, workspace.path, walk=walk)
        hidden = tuple(map(os.path.realpath, found.hidden))
        joined.put(hide=tuple(dict.fromkeys((*joined.settings.hide, *found.hidden))))
        joined.notes += found.notes
        joined.told.append(("read_deny", found.told))
    if policy.fs.write is not None:
        said = _last(policy, lambda layer: layer.fs.write)
        told = {"allow": [text_or_b64(pattern) for pattern in policy.fs.write], "layer": said}
        joined.told.append(("write", told))
    return Scopes(
        settings=joined.settings,
        policy=policy,
        digest=broker.digest,
        locked=joined.locked,
        eager=joined.eager,
        execs=policy.limits.execs,
        unheld=tuple(joined.unheld),
        hidden=hidden,
        told=tuple(joined.told),
        notes=tuple(joined.notes[:_MOST_NOTES]),
        left_out=tuple(joined.left_out),
    )


def key_of(settings: Settings) -> Settings:
    """What a world is begun with, before its files are known: two are equal where one will do for the other."""
    return replace(
        settings,
        hide=(),
        timeout_s=None,
        limits=replace(settings.limits, wall_s=None, disk_bytes=None),
    )


def what_differs(held: Policy, now: Policy) -> tuple[str, ...]:
    """The tables of a policy that a world in which processes live cannot be given anew."""
    by_command = {"runtime_s": None, "execs": None}
    limits = (replace(each.limits, **by_command) for each in (held, now))
    tables = (("[net]", held.net != now.net), ("[fs]", held.fs.read_deny != now.fs.read_deny))
    found = [name for name, differs in tables if differs]
    return (*found, "[limits]") if next(limits) != next(limits) else tuple(found)


def locked_by(policy: Policy) -> str:
    """The name of the layer behind which only tightening counts; "" where there is none."""
    for layer in policy.layers:
        if layer.final and not _only_tightens(layer):
            return layer.name
    return ""


class _Joined:
    """Settings under construction."""

    def __init__(
        self, broker: Broker, settings: Settings, workspace: Workspace, *, in_world: bool
    ) -> None:
        self.broker, self.policy, self.workspace = broker, broker.policy, workspace
        self.settings, self.in_world = settings, in_world
        self.locked = locked_by(self.policy)
        self.eager = True
        self.notes: list[str] = []
        self.left_out: list[str] = []
        self.told: list[tuple[str, Any]] = []
        self.unheld: list[tuple[str, str]] = []

    def put(self, **fields: Any) -> None:
        self.settings = replace(self.settings, **fields)

    # --- what a final layer does not let anybody open

    def lock(self) -> None:
        """Refuses what takes away from a final layer what holds its rules: the gate, the world's own workspace; leaves
        out what uncovers, or has a larger surface."""
        settings = self.settings
        if self.settings.shell_only and not self.locked and self.policy.fs.write is not None:
            self.notes.append(
                "fs.write of the policy does not hold in the workspace: it is the host's own (--shell-only)"
            )
        if settings.shell_only and self.in_world:  # else it would take away what holds the next one
            own = self.broker.directories_in(self.workspace.path)
            self.put(ro=tuple(dict.fromkeys((*settings.ro, *own))))
        if not self.locked:
            return
        if settings.capture == "off" and (self.policy.limits.execs or self.broker.armed[2]):
            self._beyond("--capture off")
        if settings.shell_only and self.in_world:
            self._beyond("--shell-only")
        shown = b", ".join(settings.show)
        self._leave(f"--show {os.fsdecode(shown)}" if shown else "", show=())
        self._leave("--userns" if settings.userns else "", userns=False)
        self._leave("--ptrace" if settings.ptrace else "", ptrace=False)

    def _beyond(self, given: str) -> None:
        raise PolicyDenied(
            f"{given} goes beyond the policy: {self.locked} is final, and what comes behind it may "
            "only tighten",
            hint="leave it out; `substrate policy show` says what holds here",
        )

    def _leave(self, what: str, **fields: Any) -> None:
        if what:
            self.put(**fields)
            self.left_out.append(f"{what} is left out: {self.locked} of the policy is final")
            self.notes.append(self.left_out[-1])

    # --- limits

    def limits(self) -> None:
        """The smaller of each wins."""
        wanted, told = self.policy.limits, {}
        for name, field, ours in _LIMITS:
            least = getattr(wanted, field)
            if least is None:
                continue
            layer = self._said_limit(field)
            if name == "runtime":
                told["runtime_us"] = {"value": int(least * 1_000_000), "layer": layer}
            else:
                told[field] = {"value": least, "layer": layer}
            limits = self.settings.limits
            now = self.settings.timeout_s if name == "runtime" else getattr(limits, ours)
            if now is not None and now <= least:
                continue
            self._put_limit(name, ours, least)
        if wanted.egress_bytes is not None:
            told["egress_bytes"] = {
                "value": wanted.egress_bytes,
                "layer": self._said_limit("egress_bytes"),
            }
            self._limit_egress(wanted.egress_bytes)
        if wanted.execs is not None:
            told["execs"] = {"value": wanted.execs, "layer": self._said_limit("execs")}
        if told:
            self.told.append(("limits", told))

    def _put_limit(self, name: str, field: str, least: Any) -> None:
        try:
            limits = Limits(**{**_fields(self.settings.limits), field: least})
        except ConfigError as wrong:
            layer = self._said_limit("runtime_s" if name == "runtime" else field)
            raise ConfigError(f"{layer}: limits.{name}: {wrong}", hint="correct it there") from None
        self.put(limits=limits)
        if name == "runtime":
            self.put(timeout_s=least)
        if name == "disk" and not self.in_world:
            self.unheld.append(("disk_bytes", "there is no world, and so no layer that is watched"))

    def _limit_egress(self, least: int) -> None:
        now, net = self.settings.egress_bytes, self.settings.net
        if not self.in_world or net == "host":
            self.unheld.append(("egress_bytes", "the network is the host's, which nobody counts"))
        elif net == "veth":
            self.unheld.append(("egress_bytes", "a routed network is not counted"))
        elif now is None or least < now:
            self.put(egress_bytes=least)

    def _said_limit(self, field: str) -> str:
        inside = getattr(self.policy.limits, field)
        return _last(self.policy, lambda layer: getattr(layer.limits, field) == inside or None)

    # --- network

    def net(self) -> None:
        settings, rules = self.settings, self.policy.net
        is_open = not self.in_world or settings.net in ("host", "veth")
        if self.locked and is_open:
            self._beyond("--no-world" if settings.world == "disabled" else f"--net {settings.net}")
        if settings.net == "none":
            return
        if not self.in_world or settings.net == "host":
            if any(layer.net.allow or layer.net.deny for layer in self.policy.layers[1:]):
                self.notes.append(f"[net] of the policy does not hold here: {_why_open(settings)}")
            return
        own = settings.net_allow
        if self.locked:
            self._leave_out()
        if not (rules.allow or rules.deny):
            return
        expansion = self._expand()
        deny = expansion.rules(rules.deny, whole_hosts=True)
        allow = expansion.rules(self._counting()) if settings.net == "filtered" else ()
        self.told.append(("net", _told_net(self.policy, expansion)))
        if settings.net == "veth" and rules.allow and own == ():
            self.notes.append("--net veth reaches more than [net] allow of the policy names")
        self.eager = bool(self.settings.net_allow) or not are_plain(allow)
        self.put(
            net_allow=tuple(dict.fromkeys((*self.settings.net_allow, *allow))),
            net_deny=tuple(dict.fromkeys((*self.settings.net_deny, *deny))),
        )

    def _leave_out(self) -> None:
        """What settings would open behind a final layer."""
        beyond = [rule for rule in self.settings.net_allow if rule not in self.policy.net.allow]
        self.put(net_allow=())
        self._leave(f"--allow {', '.join(beyond)}" if beyond else "")
        self._leave("--host-port" if self.settings.host_ports else "", host_ports=())
        self._leave("--private" if self.settings.net_private else "", net_private=())

    def _counting(self) -> tuple[str, ...]:
        """Of `allow`, without what a world that writes the workspace's own git configuration would say itself."""
        allow = self.policy.net.allow
        if not (self.in_world and self.settings.shell_only) or _REMOTES not in allow:
            return allow
        if os.path.lexists(self.workspace.path + b"/.git"):
            note = f"{_REMOTES} of the policy is left out, since a world can write .git/config (--shell-only)"
            note += ": name the hosts by --allow"
            if note not in self.notes:
                self.notes.append(note)
        return tuple(rule for rule in allow if rule != _REMOTES)

    def _expand(self) -> Expansion:
        names = groups_in((*self._counting(), *self.policy.net.deny))
        repository = None
        if _REMOTES in names and os.path.isfile(self.workspace.path + b"/.git"):
            from substrate.session.repository import repository_elsewhere

            repository = repository_elsewhere(self.workspace.path)
        return self.broker.expand(repository, names)


def _why_open(settings: Settings) -> str:
    return "--net host" if settings.world != "disabled" else "there is no world"


def _told_net(policy: Policy, expansion: Expansion) -> dict[str, Any]:
    """Rules as they were written, what groups came to, and whose they are."""
    found: dict[str, Any] = {}
    for side in ("allow", "deny"):
        rows = []
        for rule in getattr(policy.net, side):
            row: dict[str, Any] = {"rule": rule, "layer": layer_of(policy, side, rule)}
            if rule.startswith("@"):
                row["hosts"] = [member.rule for member in expansion.members.get(rule, ())]
            rows.append(row)
        if rows:
            found[side] = rows
    if expansion.notes:
        found["notes"] = list(expansion.notes[:_MOST_NOTES])
    return found


def layer_of(policy: Policy, side: str, rule: str) -> str:
    """Which layer says a rule of `[net]`: the first one whose word counts; "" for none."""
    is_locked = False
    for layer in policy.layers:
        counts = side == "deny" or not (is_locked or _only_tightens(layer))
        if counts and rule in getattr(layer.net, side):
            return layer.name
        is_locked = is_locked or (layer.final and not _only_tightens(layer))
    return ""


def _last(policy: Policy, says: Callable[[Layer], object]) -> str:
    """The last layer that says something."""
    return next((layer.name for layer in reversed(policy.layers) if says(layer) is not None), "")


def _only_tightens(layer: Layer) -> bool:
    return layer.kind == PROJECT and not layer.trusted


def _fields(limits: Limits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in limits.__slots__}  # type: ignore[attr-defined]


def are_plain(rules: Iterable[str]) -> bool:
    """Whether all are of names, by which a world's kernel has to know nothing: else, or in doubt, not."""
    return all(plain_port(rule) is not None for rule in rules)


def plain_port(rule: str) -> int | None:
    """The port of a rule that is a name's, without a protocol: 0 where it names none, None where it is another
    kind of rule, or may be one."""
    host, colon, port = rule.partition(":")
    last = host.rpartition(".")[2]
    if colon and not (port.isascii() and port.isdecimal()):
        return None
    if not last or last[0].isdecimal() or not last.isascii() or set(host) & set("/[]"):
        return None
    return int(port) if colon else 0
