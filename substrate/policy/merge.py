"""All layers together: what is in force.

Command rules stay in their layers (decide.py orders them); this is about all else. Pure. Invariants: a
later layer's word counts, but an untrusted project's, and any behind a final layer, only where it is
stricter, key by key; what does not count is told in `ignored`, never dropped in silence. Lists of the
network and of what may not be read add up over the layers; an allow in a later layer lifts a deny that an
earlier one wrote with the same text. Spec: policy.md §1.
"""

from __future__ import annotations

from substrate.policy.rules import (
    ACTIONS,
    ALLOW,
    ASK,
    AUDIT,
    DENY,
    PROJECT,
    WAIT,
    ApprovalRules,
    FsRules,
    Layer,
    LimitRules,
    NetRules,
    Policy,
)
from substrate.sha256 import sha256
from substrate.values import as_dict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Final

#: of `without_terminal`, from the laxest to the strictest
_STRICT: Final = (ALLOW, WAIT, DENY)
TRUST_HINT = "until it is trusted (`substrate policy trust`)"


def merge(layers: Sequence[Layer], warnings: Iterable[str] = ()) -> Policy:
    """The policy of these layers, in their order. `warnings`: of reading them."""
    force = _Force()
    for layer in layers:
        force.take(layer)
    return Policy(
        layers=tuple(layers),
        digest=digest_of(layers),
        default_action=force.default_action,
        net=force.net,
        fs=force.fs,
        limits=force.limits,
        allow_operators=force.allow_operators,
        approval=force.approval,
        require=force.require,
        ignored=(*warnings, *force.ignored),
    )


def digest_of(layers: Iterable[Layer]) -> str:
    lines = [
        f"{layer.kind} {'trusted ' if layer.trusted else ''}{layer.digest}\n" for layer in layers
    ]
    return sha256("".join(lines).encode()).hexdigest()


class _Force:
    """What is in force of the layers so far."""

    def __init__(self) -> None:
        self.default_action = ASK
        self.net = NetRules()
        self.fs = FsRules()
        self.limits = LimitRules()
        self.allow_operators = True
        self.approval = ApprovalRules()
        self.require: tuple[str, ...] = ()
        self.ignored: list[str] = []
        self._locked_by = ""

    def take(self, layer: Layer) -> None:
        why = ""
        if layer.kind == PROJECT and not layer.trusted:
            why = f"a project's file may only tighten {TRUST_HINT}"
        elif self._locked_by:
            why = f"{self._locked_by} is final: what comes behind it may only tighten"
        if why:
            self._tighten(layer, why)
        else:
            self._replace(layer)
        self.require = tuple(dict.fromkeys((*self.require, *layer.require)))
        self.fs = replace(self.fs, read_deny=_joined(self.fs.read_deny, layer.fs.read_deny))
        if layer.final and not why:
            self._locked_by = layer.name

    def _replace(self, layer: Layer) -> None:
        self.default_action = layer.default_action or self.default_action
        lifted = set(layer.net.allow)
        kept = tuple(rule for rule in self.net.deny if rule not in lifted)
        self.net = NetRules(
            allow=_joined(self.net.allow, layer.net.allow), deny=_joined(kept, layer.net.deny)
        )
        if layer.fs.write is not None:
            self.fs = replace(self.fs, write=layer.fs.write)
        self.limits = LimitRules(**{**as_dict(self.limits), **_said(layer.limits)})
        if layer.allow_operators is not None:
            self.allow_operators = layer.allow_operators
        self.approval = ApprovalRules(**{**as_dict(self.approval), **_said(layer.approval)})

    def _tighten(self, layer: Layer, why: str) -> None:
        def leave_out(key: str) -> None:
            self.ignored.append(f"{layer.name}: {key} is left out: {why}")

        given = layer.default_action
        if given is not None:
            if ACTIONS.index(given) >= ACTIONS.index(self.default_action):
                self.default_action = given
            else:
                leave_out(f"default_action = {given!r}")
        if any(rule not in self.net.allow for rule in layer.net.allow):
            leave_out("net.allow")
        self.net = replace(self.net, deny=_joined(self.net.deny, layer.net.deny))
        if layer.fs.write is not None:
            self._narrow(layer.fs.write, leave_out)
        for key, least in _said(layer.limits).items():
            now = getattr(self.limits, key)
            if now is None or least <= now:
                self.limits = replace(self.limits, **{key: least})
            else:
                leave_out(f"limits.{key.partition('_')[0]}")
        if layer.allow_operators is False:
            self.allow_operators = False
        elif layer.allow_operators and not self.allow_operators:
            leave_out("shell.allow_operators")
        self._tighten_approval(layer.approval, leave_out)
        lax = [r for r in layer.commands if r.action in (ALLOW, AUDIT)]
        if lax:
            leave_out(f"{len(lax)} rule{'s' * (len(lax) > 1)} that allow{'s' * (len(lax) == 1)}")

    def _narrow(self, write: tuple[bytes, ...], leave_out: Any) -> None:
        now = self.fs.write
        inside = tuple(w for w in write if now is None or any(is_within(w, n) for n in now))
        if len(inside) < len(write):
            leave_out("fs.write beyond what may be written anyway")
        self.fs = replace(self.fs, write=inside)

    def _tighten_approval(self, given: ApprovalRules, leave_out: Any) -> None:
        now = self.approval
        if given.timeout_s is not None:
            if now.timeout_s is None or given.timeout_s <= now.timeout_s:
                self.approval = replace(self.approval, timeout_s=given.timeout_s)
            else:
                leave_out("approval.timeout")
        if given.without_terminal is not None:
            if _STRICT.index(given.without_terminal) >= _STRICT.index(now.without_terminal or DENY):
                self.approval = replace(self.approval, without_terminal=given.without_terminal)
            else:
                leave_out("approval.without_terminal")
        if given.webhook is not None and given.webhook != now.webhook:
            leave_out("approval.webhook")


def _said(rules: Any) -> dict[str, Any]:
    return {key: inside for key, inside in as_dict(rules).items() if inside is not None}


def _joined(first: tuple[Any, ...], then: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys((*first, *then)))


def is_within(inner: bytes, outer: bytes) -> bool:
    """Whether all that a pattern means is surely meant by another one: the same pattern, or one whose
    part before any wildcard lies below `outer`, which is `DIRECTORY/**`."""
    if inner == outer or outer == b"**":
        return True
    if not outer.endswith(b"/**") or set(outer[:-3]) & set(b"*?["):
        return False
    literal = inner
    for sign in b"*?[":
        literal = literal.partition(bytes((sign,)))[0]
    return literal.startswith(outer[:-2]) and literal != b""
