"""`@value`: frozen, slotted, keyword-only values for the modules that `-c` loads.

What `@dataclass(frozen=True, slots=True, kw_only=True)` gives, without importing
`dataclasses` (which pulls in `inspect` and `re` and costs more than a whole cold start of
ours; docs/adr/0002). Modules that `-c` never loads use the real dataclass.

Not supported, on purpose: inheritance between values, positional arguments, default
factories (use an immutable default such as `()`), `ClassVar` other than by a bare,
unannotated class attribute.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")

    @dataclass_transform(frozen_default=True, kw_only_default=True)
    def value(cls: type[T]) -> type[T]: ...

else:

    def value(cls):
        names = tuple(cls.__annotations__)
        defaults = {n: cls.__dict__[n] for n in names if n in cls.__dict__}
        wanted = frozenset(names)
        required = wanted - defaults.keys()
        put = object.__setattr__
        post = cls.__dict__.get("__post_init__")

        def __init__(self, **given):
            if not (given.keys() <= wanted and required <= given.keys()):
                unknown, missing = sorted(given.keys() - wanted), sorted(required - given.keys())
                raise TypeError(f"{cls.__name__}: unknown {unknown}, missing {missing}")
            for name in names:
                put(self, name, given[name] if name in given else defaults[name])
            if post is not None:
                post(self)

        def __setattr__(self, name, _value):
            raise AttributeError(f"{cls.__name__} is frozen: cannot set {name!r}")

        def __delattr__(self, name):
            raise AttributeError(f"{cls.__name__} is frozen: cannot delete {name!r}")

        def __eq__(self, other):
            if type(other) is not type(self):
                return NotImplemented
            return all(getattr(self, n) == getattr(other, n) for n in names)

        def __hash__(self):
            return hash(tuple(getattr(self, n) for n in names))

        def __repr__(self):
            return f"{cls.__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

        body = {
            k: v
            for k, v in cls.__dict__.items()
            if k not in ("__dict__", "__weakref__", "__slots__", *names)
        }
        for made in (__eq__, __hash__, __repr__):
            if made.__name__ not in cls.__dict__ or cls.__dict__[made.__name__] is None:
                body[made.__name__] = made
        for made in (__init__, __setattr__, __delattr__):
            body[made.__name__] = made
        body["__slots__"] = names
        body["__match_args__"] = ()
        return type(cls)(cls.__name__, cls.__bases__, body)


def replace(instance: T, **changes: Any) -> T:
    """A copy of a value with some fields changed (as `dataclasses.replace`)."""
    names = type(instance).__slots__  # type: ignore[attr-defined]
    return type(instance)(**{**{n: getattr(instance, n) for n in names}, **changes})


def as_dict(instance: object) -> dict[str, Any]:
    """The fields of a value by name, in the order of their definition (not recursive)."""
    return {n: getattr(instance, n) for n in type(instance).__slots__}  # type: ignore[attr-defined]
