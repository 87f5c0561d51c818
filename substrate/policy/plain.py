"""A policy as plain data and back: what the cache holds, and the built-in profiles as they are shipped.

Not a format for others: it changes with the values (rules.py), whose shape `SHAPE` is. Hot path. Invariant:
`policy_from(plain_of(policy)) == policy` but for the rules' tests, which are left out: who runs these reads
the files (inline_tests.py). What comes back was checked when it was parsed, so nothing is checked again, and a
thousand rules take a millisecond.
"""

from __future__ import annotations

from substrate.policy.rules import (
    ApprovalRules,
    CommandRule,
    FsRules,
    Layer,
    LimitRules,
    NetRules,
    Policy,
    Test,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

_CLASSES: Final[tuple[type[Any], ...]] = (
    *(Policy, Layer, CommandRule, Test),
    *(NetRules, FsRules, LimitRules, ApprovalRules),
)
#: of each class its fields: data of another shape is of another version
SHAPE: Final = tuple((cls.__name__, cls.__slots__) for cls in _CLASSES)
_NO_TEST: Final = Test()
_INNER: Final = {"net": NetRules, "fs": FsRules, "limits": LimitRules, "approval": ApprovalRules}


def plain_of(policy: Policy) -> tuple[Any, ...]:
    """Tuples, texts, bytes and numbers."""
    fields = _fields(policy)
    fields["layers"] = tuple(layer_plain(layer) for layer in policy.layers)
    return _row(fields)


def layer_plain(layer: Layer) -> tuple[Any, ...]:
    fields = _fields(layer)
    fields["commands"] = tuple(_rule_plain(rule) for rule in layer.commands)
    return _row(fields)


def _rule_plain(rule: CommandRule) -> tuple[Any, ...]:
    return tuple(inside for name, inside in _fields(rule).items() if name != "test")


def _fields(instance: object) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in type(instance).__slots__}  # type: ignore[attr-defined]


def _row(fields: dict[str, Any]) -> tuple[Any, ...]:
    for name in _INNER:
        fields[name] = tuple(_fields(fields[name]).values())
    return tuple(fields.values())


# --- and back


def _putters(cls: type[Any]) -> tuple[Callable[[Any, Any], None], ...]:
    """What sets each field, past `__init__`, which would look at every name again."""
    return tuple(cls.__dict__[name].__set__ for name in cls.__slots__)


def _maker(cls: type[Any]) -> Callable[[tuple[Any, ...]], Any]:
    putters = _putters(cls)
    new: Any = cls.__new__

    def make(row: tuple[Any, ...]) -> Any:
        made = new(cls)
        for put, inside in zip(putters, row, strict=True):
            put(made, inside)
        return made

    return make


_MAKERS: Final = {name: _maker(cls) for name, cls in _INNER.items()}
assert CommandRule.__slots__[-1] == "test"  # type: ignore[attr-defined]
_make_rule: Final = _maker(CommandRule)
_make_layer: Final = _maker(Layer)
_make_policy: Final = _maker(Policy)


def policy_from(row: tuple[Any, ...]) -> Policy:
    fields = list(row)
    at = Policy.__slots__.index("layers")  # type: ignore[attr-defined]
    fields[at] = tuple(layer_from(layer) for layer in fields[at])
    made: Policy = _make_policy(_inner(Policy, fields))
    return made


def layer_from(row: tuple[Any, ...]) -> Layer:
    fields = list(row)
    at = Layer.__slots__.index("commands")  # type: ignore[attr-defined]
    fields[at] = tuple(map(_rule_from, fields[at]))
    made: Layer = _make_layer(_inner(Layer, fields))
    return made


def _rule_from(row: tuple[Any, ...]) -> CommandRule:
    made: CommandRule = _make_rule((*row, _NO_TEST))
    return made


def _inner(cls: type[Any], fields: list[Any]) -> tuple[Any, ...]:
    for name, make in _MAKERS.items():
        at = cls.__slots__.index(name)
        fields[at] = make(fields[at])
    return tuple(fields)
