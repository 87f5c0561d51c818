"""What a terminal showed, as asciicast v2 (session/casting.py)."""

import json

from hypothesis import given
from hypothesis import strategies as st

from substrate.session.casting import Cast


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(*parts: bytes, limit: int = 1 << 20) -> tuple[Cast, list[list[object]]]:
    clock = Clock()
    cast = Cast(limit, (80, 24), "title", clock)
    for part in parts:
        clock.now += 1.0
        cast.show(part)
    head, *events = map(json.loads, cast.render().splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, 80, 24)
    return cast, events


def text_of(events: list[list[object]]) -> str:
    return "".join(str(text) for _, kind, text in events if kind == "o")


def test_each_moment_is_an_event():
    _, events = shown(b"one\r\n", b"\x1b[31mtwo", b"\r\n")
    assert events == [[1.0, "o", "one\r\n"], [2.0, "o", "\x1b[31mtwo"], [3.0, "o", "\r\n"]]


def test_a_character_may_be_cut():
    whole = "ü日".encode()
    _, events = shown(*(whole[at : at + 1] for at in range(len(whole))), b"\n")
    assert text_of(events) == "ü日\n"


def test_secrets_are_covered_also_where_they_are_typed_letter_by_letter():
    secret = b"TOKEN=ghp_abcdefghijklmnopqrstuvwxyz0123456789\r\n"
    cast, events = shown(b"before\r\n", *(bytes((byte,)) for byte in secret), b"behind\r\n")
    assert cast.covered == 1
    assert "ghp_" not in json.dumps(events)
    assert text_of(events).startswith("before\r\nTOKEN=[redacted")
    assert text_of(events).endswith("behind\r\n")


def test_it_is_bounded_and_says_so():
    cast, events = shown(*[b"x" * 1000] * 100, limit=10_000)
    assert not cast.complete
    assert cast.size == 100_000
    assert len(text_of(events)) <= 10_000


def test_another_size_is_an_event():
    clock = Clock()
    cast = Cast(1000, (80, 24), "", clock)
    cast.show(b"a")
    cast.resize((100, 30))
    cast.show(b"b")
    assert [json.loads(line)[1:] for line in cast.render().splitlines()[1:]] == [
        ["o", "a"],
        ["r", "100x30"],
        ["o", "b"],
    ]


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_nothing_is_lost_or_added(parts):
    _, events = shown(*parts)
    assert text_of(events) == b"".join(parts).decode("utf-8", "replace")
