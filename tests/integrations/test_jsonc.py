"""Edits of JSON text: what is not edited keeps its bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.integrations.jsonc import BadJson, insert, parse, remove, replace

SCALARS = st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
LAYOUTS = [
    {"indent": 2},
    {"indent": 4},
    {"indent": "\t"},
    {},
    {"separators": (",", ":")},
    {"ensure_ascii": False, "indent": 1},
]


@given(VALUES, st.sampled_from(LAYOUTS))
def test_reads_what_json_writes(value, layout):
    assert parse(json.dumps(value, **layout)).plain() == value


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.sampled_from(LAYOUTS), VALUES)
def test_insert_adds_and_remove_takes_away(value, layout, new):
    text = json.dumps(value, **layout) + "\n"
    value.pop("added", None)
    text = json.dumps(value, **layout) + "\n"
    longer = insert(text, parse(text), new, "added")
    assert json.loads(longer) == {**value, "added": new}
    node = parse(longer)
    assert remove(longer, node, len(node.members) - 1) == text


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from(LAYOUTS), st.data())
def test_remove_of_any_element(value, layout, data):
    text = json.dumps(value, **layout)
    index = data.draw(st.integers(0, len(value) - 1))
    assert json.loads(remove(text, parse(text), index)) == value[:index] + value[index + 1 :]


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse(text)
    except BadJson as error:
        assert "line " in str(error)
    else:
        found.plain()


@given(st.text(alphabet='{}[],:"/* \n\\a1', max_size=24))
def test_what_strict_json_takes_is_taken_alike(text):
    try:
        wanted = json.loads(text)
    except ValueError:
        return
    assert parse(text).plain() == wanted


COMMENTED = """\
// my settings
{
  "theme": "dark", // as it should be
  /* hooks */
  "hooks": {
    "Stop": [ {"x": 1} ], // the last one
  },
  "list": [
    1, // one
    2 // two
  ]
}
"""


def test_comments_and_last_commas_stay():
    node = parse(COMMENTED)
    hooks, numbers = node.get("hooks"), node.get("list")
    longer = insert(COMMENTED, hooks, [{"a": "b"}], "Pre")
    assert '"Stop": [ {"x": 1} ], // the last one\n    "Pre": [\n      {' in longer
    assert parse(longer).get("hooks").plain() == {"Stop": [{"x": 1}], "Pre": [{"a": "b"}]}
    assert remove(longer, parse(longer).get("hooks"), 1) == COMMENTED
    longer = insert(COMMENTED, numbers, 3)
    assert "2, // two\n    3\n  ]" in longer
    assert remove(longer, parse(longer).get("list"), 2) == COMMENTED


def test_an_element_in_the_middle_goes_with_its_line():
    text = COMMENTED
    assert remove(text, parse(text), 0) == text.replace(
        '  "theme": "dark", // as it should be\n', "  // as it should be\n"
    )
    plain = '{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}\n'
    assert remove(plain, parse(plain), 1) == '{\n  "a": 1,\n  "c": 3\n}\n'


def test_line_ends_and_a_mark_at_the_beginning_are_kept():
    text = '\ufeff{\r\n  "a": 1\r\n}\r\n'
    longer = insert(text, parse(text), {"x": [1]}, "b")
    assert longer.startswith("\ufeff") and longer.count("\n") == longer.count("\r\n")
    node = parse(longer)
    assert remove(longer, node, 1) == text


def test_of_two_members_of_a_name_the_last_counts():
    node = parse('{"a": 1, "a": 2}')
    assert node.get("a").value == 2
    assert node.plain() == {"a": 2}


def test_replace():
    text = '{ "a" : "x" }'
    assert replace(text, parse(text).get("a"), 'y"') == '{ "a" : "y\\"" }'


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a"}', '{"a":}', "[1 2]", "{} {}", "nope", '"open', "/* open", "[" * 70, "NaN",
     "{'a': 1}", '{"a": 01}', "[,]"],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_place(text):
    with pytest.raises(BadJson, match=r"line 1, column \d+: expected"):
        parse(text)
