"""The common form of event bodies: typed frozen values to and from the `body` of a line.

What it is: the base class `Body` and the decorator `body`, which do for every event type of
trace.md §4 what would else be written fifty times.
What it is not: it knows no event type (the modules beside it do), and redacts nothing: what
goes into a line passes the writer's redactor.

How the annotations of a class are read:
- a field without a default is always in the body; `X | None` there is written as null;
- a field with the default None is left out when it is None, and is never null;
- `Text` is text or bytes of the kernel, in the form of `octets`;
- `tuple[X, ...]` is an array, `dict[str, X]` an object, another class its own object;
- a name that Python or a builtin has taken ends in `_` here, and not in the body;
- `extra` holds the fields that this version does not know, so that they are kept.

Invariant: `from_body(b).to_body() == b` for every `b` that `from_body` takes, and
`from_body(e.to_body())` equals `e`, if text that is not UTF-8 is given as bytes.
Spec: trace.md §2 (unknown fields, bytes), §4.
"""

from __future__ import annotations

import sys

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.octets import bytes_of, text_or_b64
from substrate.telemetry.trace.pack import BlobRef
from substrate.telemetry.trace.rfc8785 import CanonicalError
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

    T = TypeVar("T")

    #: text, surrogate-escaped text, or bytes of the kernel
    Text = str | bytes
    #: takes a JSON value and where it stands
    Reader = Callable[[Any, str], Any]
    #: the fields that this version does not know, by name
    Extra = tuple[tuple[str, Any], ...]


class Body:
    """Base of event bodies and of the objects inside them. No fields of its own."""

    __slots__ = ()

    if TYPE_CHECKING:
        #: set by `body`: the fields that are left out when they are None
        optional_fields: ClassVar[frozenset[str]]
        #: §4; empty for objects that only stand inside others
        event_type: ClassVar[str]

    def to_body(self) -> dict[str, Any]:
        """The JSON object: exact JSON types only, ready for `encode_line`."""
        out: dict[str, Any] = {}
        name: str
        for name in self.__slots__:
            item = getattr(self, name)
            if name == "extra":
                out.update((key, plain(kept)) for key, kept in item)
            elif item is not None or name not in self.optional_fields:
                out[name.rstrip("_")] = plain(item)
        return out

    @classmethod
    def from_body(cls, obj: dict[str, Any]) -> Self:
        """The value of a JSON object. Raises TraceCorrupt (code `body`) naming the field."""
        return _read(cls, obj, cls.event_type or cls.__name__)

    def event(self, component: str, **envelope: Any) -> Event:
        """This body as an Event for the writer; `envelope`: the other fields of Event."""
        return Event(
            event_type=self.event_type, component=component, body=self.to_body(), **envelope
        )


if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, kw_only_default=True)
    def body(cls: type[T]) -> type[T]: ...

else:

    def body(cls):
        """`@value`, and the knowledge of which fields may be left out."""
        names = cls.__annotations__
        optional = frozenset(n for n in names if n in cls.__dict__ and cls.__dict__[n] is None)
        if "event_type" not in cls.__dict__:
            cls.event_type = ""
        made = value(cls)
        made.optional_fields = optional
        return made


def plain(item: Any) -> Any:
    """A field as JSON: values as objects, tuples as arrays, bytes and escaped text by octets."""
    kind = type(item)
    if kind is str:
        return item if item.isascii() else text_or_b64(item)
    if kind is int or kind is bool or item is None:
        return item
    if kind is tuple or kind is list:
        return [plain(one) for one in item]
    if kind is dict:
        return {key: plain(one) for key, one in item.items()}
    if kind is bytes:
        return text_or_b64(item)
    if isinstance(item, Body):
        return item.to_body()
    if isinstance(item, BlobRef):
        return item.as_json()
    raise TypeError(f"{kind.__name__} has no place in an event")


# --- reading back ---------------------------------------------------------------------------


def _read(cls: type[T], obj: Any, where: str) -> T:
    if type(obj) is not dict:
        raise _wrong(where, "an object", obj)
    readers = _readers_of(cls)
    optional: frozenset[str] = getattr(cls, "optional_fields", frozenset())
    given: dict[str, Any] = {}
    for key, (name, reader) in readers.items():
        if key in obj:
            given[name] = reader(obj[key], f"{where}.{key}")
        elif name not in optional:
            raise TraceCorrupt(f"{where} lacks the field {key!r}", code="body")
    unknown = sorted(obj.keys() - readers.keys())
    if unknown:
        if cls is BlobRef:  # trace.md §6 gives it exactly four fields
            raise TraceCorrupt(f"{where}: a blob reference has no {unknown!r:.80}", code="body")
        given["extra"] = tuple((key, obj[key]) for key in unknown)
    return cls(**given)


_known_readers: dict[type, dict[str, tuple[str, Reader]]] = {}


def _readers_of(cls: type) -> dict[str, tuple[str, Reader]]:
    """By key of the object: the name of the field, and what reads it."""
    readers = _known_readers.get(cls)
    if readers is None:
        optional: frozenset[str] = getattr(cls, "optional_fields", frozenset())
        readers = _known_readers[cls] = {}
        for name, annotation in cls.__annotations__.items():
            if name != "extra":
                form = annotation.removesuffix(" | None") if name in optional else annotation
                readers[name.rstrip("_")] = (name, _reader(form, cls.__module__))
    return readers


def _reader(annotation: str, module: str) -> Reader:
    """What turns JSON into a field. Annotations are text here, for the hot path's sake."""
    if annotation.endswith(" | None"):
        inner = _reader(annotation.removesuffix(" | None"), module)
        return lambda item, where: None if item is None else inner(item, where)
    if annotation in _EXACT:
        kind = _EXACT[annotation]

        def exact(item: Any, where: str) -> Any:
            if type(item) is not kind:
                raise _wrong(where, annotation, item)
            return item

        return exact
    if annotation == "Text":
        return _text
    if annotation == "Any":
        return lambda item, where: item
    if annotation.startswith("tuple["):
        one = _reader(annotation[len("tuple[") : -len(", ...]")], module)
        return lambda item, where: tuple(
            one(each, f"{where}[{n}]") for n, each in enumerate(_exactly(list, item, where))
        )
    if annotation.startswith("dict[str, "):
        one = _reader(annotation[len("dict[str, ") : -1], module)
        return lambda item, where: {
            key: one(each, f"{where}.{key}") for key, each in _exactly(dict, item, where).items()
        }
    cls = getattr(sys.modules[module], annotation)
    return lambda item, where: _read(cls, item, where)


_EXACT: dict[str, type] = {"str": str, "int": int, "bool": bool}


def _exactly(kind: type[T], item: Any, where: str) -> T:
    if type(item) is not kind:
        raise _wrong(where, kind.__name__, item)
    return item


def _text(item: Any, where: str) -> str | bytes:
    if type(item) is str:
        return item
    try:
        return bytes_of(item)
    except CanonicalError as problem:
        raise TraceCorrupt(f"{where}: {problem}", code="body") from problem


def _wrong(where: str, expected: str, got: object) -> TraceCorrupt:
    return TraceCorrupt(f"{where}: expected {expected}, got {got!r:.80}", code="body")
