import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import TraceCorrupt
from substrate.telemetry.trace import events
from substrate.telemetry.trace.canonical import encode_line, parse_line
from substrate.telemetry.trace.envelope import EVENT_TYPES
from substrate.telemetry.trace.events.body import Body
from substrate.telemetry.trace.events.chain import DroppedRange, LogDrop
from substrate.telemetry.trace.events.changes import FsDiff, FsEntry
from substrate.telemetry.trace.events.command import CommandStart, Decision, Display
from substrate.telemetry.trace.pack import BlobRef

small = st.integers(0, 2**53 - 1)
words = st.text(max_size=8)
#: text, or bytes that are no text: bytes that are would read back as text
texts = words | st.binary(max_size=8).map(lambda raw: raw + b"\xff")
json_objects = st.dictionaries(words, small | words | st.none() | st.lists(words), max_size=3)
EXACT = {"str": words, "int": small, "bool": st.booleans(), "Text": texts, "Any": small}


def fields(annotation, module):
    """A strategy for what an annotation of an event's class allows."""
    if annotation.endswith(" | None"):
        return st.none() | fields(annotation.removesuffix(" | None"), module)
    if annotation in EXACT:
        return EXACT[annotation]
    if annotation.startswith("tuple["):
        inner = fields(annotation.removeprefix("tuple[").removesuffix(", ...]"), module)
        return st.lists(inner, max_size=3).map(tuple)
    if annotation.startswith("dict["):
        return st.dictionaries(words, fields(annotation[10:-1], module), max_size=3)
    return values(getattr(sys.modules[module], annotation))


def values(cls):
    wanted = {k: fields(a, cls.__module__) for k, a in cls.__annotations__.items() if k != "extra"}
    if issubclass(cls, Body):
        wanted["extra"] = json_objects.map(
            lambda obj: tuple(sorted((f"x_{key}", item) for key, item in obj.items()))
        )
    return st.fixed_dictionaries(wanted).map(lambda given: cls(**given))


def test_every_event_type_has_a_class_and_no_other():
    assert events.FAMILIES.keys() == EVENT_TYPES
    for event_type in EVENT_TYPES:
        assert events.class_of(event_type).event_type == event_type


def test_an_unknown_event_type_has_no_class():
    assert events.class_of("something_new") is None
    assert events.read_body("something_new", {"a": 1}) is None


@pytest.mark.parametrize("event_type", sorted(EVENT_TYPES))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_body_survives_a_line_with_the_fields_that_nobody_knows(event_type, data):
    made = data.draw(values(events.class_of(event_type)))
    body = made.to_body()
    again = events.read_body(event_type, parse_line(encode_line(body)))
    assert again == made
    assert again.to_body() == body


@pytest.mark.parametrize("event_type", sorted(EVENT_TYPES))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_missing_or_mistyped_field_is_named(event_type, data):
    cls = events.class_of(event_type)
    body = data.draw(values(cls)).to_body()
    name = data.draw(st.sampled_from(sorted(cls.__annotations__.keys() - {"extra"})))
    key = name.rstrip("_")
    if name not in cls.optional_fields:
        with pytest.raises(TraceCorrupt, match=key):
            cls.from_body({k: v for k, v in body.items() if k != key})
    if cls.__annotations__[name] != "dict[str, Any]":
        with pytest.raises(TraceCorrupt, match=key):
            cls.from_body({**body, key: {"": 1.5}})


def command(**changes):
    ref = BlobRef(commitment="ab" * 32, size=1, media_type="text/plain", encoding="identity")
    given = {
        "display": Display(argv=("ls",), cmd="ls"),
        "argv": ref,
        "env": ref,
        "cwd": "/",
        "umask": 0o22,
        "env_names": ("PATH",),
        "env_withheld": (),
        "terminal": None,
        "layer": 3,
        "replay_context": {},
        "policy_decision": Decision(action="allow", reason="default", restrictions=(), rule=None),
    }
    return CommandStart(**{**given, **changes})


def test_what_is_optional_is_left_out_and_what_is_null_is_written():
    body = command().to_body()
    assert "cmd" not in body
    assert body["terminal"] is None
    assert body["argv"] == {
        "commitment": "ab" * 32,
        "size": 1,
        "media_type": "text/plain",
        "encoding": "identity",
    }


def test_null_for_what_may_only_be_left_out_is_refused():
    with pytest.raises(TraceCorrupt, match=r"command_start\.cmd"):
        CommandStart.from_body({**command().to_body(), "cmd": None})


def test_a_blob_reference_has_exactly_its_four_fields():
    body = command().to_body()
    body["env"] = {**body["env"], "salt": "00"}
    with pytest.raises(TraceCorrupt, match=r"command_start\.env"):
        CommandStart.from_body(body)


@pytest.mark.parametrize(
    ("cwd", "written"),
    [
        ("/tmp/\udcff", {"b64": "L3RtcC//"}),
        (b"/tmp/\xff", {"b64": "L3RtcC//"}),
        (b"/tmp/\xc3\xa9", "/tmp/é"),
    ],
)
def test_paths_that_are_not_text_are_written_as_their_bytes(cwd, written):
    body = command(cwd=cwd).to_body()
    assert body["cwd"] == written
    back = CommandStart.from_body(body).cwd
    assert back == (b"/tmp/\xff" if type(written) is dict else written)


def test_names_that_python_has_taken_are_written_without_the_underscore():
    drop = LogDrop(
        count=2,
        bytes_=10,
        reason="buffer_full",
        per_producer=(DroppedRange(producer="capture", from_=3, to=4),),
        cumulative=2,
    )
    assert drop.to_body() == {
        "count": 2,
        "bytes": 10,
        "reason": "buffer_full",
        "per_producer": [{"producer": "capture", "from": 3, "to": 4}],
        "cumulative": 2,
    }


def test_a_body_becomes_an_event():
    diff = FsDiff(layer=1, counts={"added": 1}, entries=(FsEntry(path="a", kind="added"),))
    event = diff.event("world", span_id="spn_x")
    assert (event.event_type, event.component, event.span_id) == ("fs_diff", "world", "spn_x")
    assert event.body["entries"] == [{"path": "a", "kind": "added"}]


def test_what_is_no_json_is_a_bug_and_says_so():
    with pytest.raises(TypeError, match="float"):
        command(replay_context={"a": 1.5}).to_body()
