"""The memo before the redactor: what it lets pass is what the redactor lets pass."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.telemetry.trace import cleared
from substrate.telemetry.trace.known_keys import KEYS, NAMING
from substrate.telemetry.trace.line import MAX_DEPTH
from substrate.telemetry.trace.redact import redact_body

words = st.sampled_from(
    [
        "python3", "-m", "--password", "hunter2", "password=hunter2", "-u", "user:pass", "curl",
        "mysql", "-psecret", "https://u:p@host/x", "Authorization: Bearer abcdefgh", "x", "",
        "/usr/lib/python3", "ghp_" + "a" * 36, "--token=abcdef", "TOKEN", "package_1/module.py",
    ]
)  # fmt: skip
keys = st.sampled_from(["argv", "cwd", "password", "credentials", "b64", "api_key", "token=x", "n"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.dictionaries(keys, values, max_size=5), min_size=1, max_size=4))
def test_it_gives_what_the_redactor_gives(bodies) -> None:
    for body in [*bodies, *bodies]:
        assert cleared.redacted(body) == redact_body(body)


def test_a_body_without_secrets_is_the_same_object() -> None:
    body = {"argv": ["ls", "-l"], "credentials": None, "fds": [{"fd": 1}], "cwd": "/tmp"}
    assert cleared.redacted(body) is body
    assert cleared.redacted(body) is body


@pytest.mark.parametrize("seen", ["x", None, 1, ["x"], {"x": "y"}])
def test_a_text_below_a_name_is_a_secret_whatever_was_seen_there_before(seen) -> None:
    cleared.redacted({"password": seen})
    assert cleared.redacted({"password": "hunter2"}) != {"password": "hunter2"}


def test_the_memory_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(cleared, "_MOST", 4)
    monkeypatch.setattr(cleared, "_MOST_PLANS", 4)
    for known in ("_keys", "_naming", "_texts", "_arrays"):
        monkeypatch.setattr(cleared, known, set())
    monkeypatch.setattr(cleared, "_plans", {})
    for number in range(50):
        body = {f"password{number}": "x", f"k{number}": f"t{number}", "argv": [str(number), "a"]}
        assert cleared.redacted(body) == redact_body(body)
    many = {"password": "hunter2", **{f"password{n}": None for n in range(9)}}
    for _ in range(3):
        assert cleared.redacted(many) == redact_body(many) != many
    for known in (cleared._keys, cleared._naming, cleared._texts, cleared._arrays):
        assert len(known) <= 4
    assert len(cleared._plans) <= 4


class Word(str):
    """What the redactor takes for text and no line holds."""


@pytest.mark.parametrize(
    "odd", [1.5, Word("x"), b"x", {1}, [1.5], [[1.5]], {"a": 1.5}, [{"a": (1.5,)}], ["x", 1.5]]
)
def test_a_value_that_no_line_holds_is_never_clear(odd) -> None:
    for _ in range(2):
        assert not cleared.is_clear({"n": 1, "value": odd})


@pytest.mark.parametrize("of", ["lists", "objects"])
def test_what_is_deeper_than_a_line_is_never_clear(of) -> None:
    wrap = (lambda inner: [inner]) if of == "lists" else (lambda inner: {"a": inner})
    value = 1
    for _ in range(MAX_DEPTH - 1):
        value = wrap(value)
    assert cleared.is_clear({"a": value})
    assert not cleared.is_clear({"a": wrap(value)})


def test_one_shape_with_other_texts_is_looked_at_again() -> None:
    assert cleared.is_clear({"cmd": "ls", "n": 1})
    assert not cleared.is_clear({"cmd": "mysql --password=hunter2", "n": 1})
    assert cleared.is_clear({"cmd": None, "password": None})
    assert not cleared.is_clear({"cmd": None, "password": "hunter2"})


rows = st.lists(st.lists(st.integers(0, 3) | st.none() | words, max_size=6), max_size=80)


@settings(max_examples=600, deadline=None)
@given(rows, st.integers(0, 80), words)
def test_rows_are_what_the_redactor_gives(made, place, word) -> None:
    """Many rows without a secret, and one with something in it: as a batch has them."""
    batch = [[0, "/usr/lib/x", None], *made]
    batch.insert(min(place, len(batch)), [1, word, word])
    body = {"columns": ["n", "path"], "rows": batch}
    assert cleared.redacted(body) == redact_body(body)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.text(max_size=30) | words, min_size=1, max_size=40))
def test_a_look_at_all_texts_finds_what_a_look_at_each_does(texts) -> None:
    from substrate.telemetry.trace.redact import may_hold_secret

    if not may_hold_secret("\n".join(texts)):
        assert not any(map(may_hold_secret, texts))


def test_the_keys_that_are_known_are_what_the_redactor_says_of_them(monkeypatch) -> None:
    for known in ("_keys", "_naming"):
        monkeypatch.setattr(cleared, known, set())
    assert all(map(cleared._key_is_clear, KEYS))
    assert cleared._naming == NAMING
    for key in KEYS:
        assert (redact_body({key: "x"}) == {key: "x"}) is (key not in NAMING)
