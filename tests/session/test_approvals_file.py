"""`approvals.json` of a session: exactly what was written, or an error."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import StateError, TraceVersionError
from substrate.session.approvals_file import NAME, load_kept, parse_kept, render_kept, save_kept
from substrate.session.approvals_values import Approval, Kept
from tests.session.approvals_scene import Place

ONE = Approval(
    number=1, key="ab" * 32, allowed=True, scope="session", shown="git push", by="x", at_us=7
)
KEPT = Kept(next_number=4, approvals=(ONE,))


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


def test_nothing_is_kept_where_there_is_no_file(place):
    assert load_kept(place.files) == Kept()


def test_what_was_saved_is_loaded(place):
    save_kept(place.files, KEPT, sync=True)
    assert load_kept(place.files) == KEPT
    status = os.stat(NAME, dir_fd=place.files.fd)
    assert status.st_mode & 0o777 == 0o600


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_approvals = st.builds(
    Approval,
    number=st.integers(1, 99),
    key=st.binary(min_size=32, max_size=32).map(bytes.hex),
    allowed=st.booleans(),
    scope=st.sampled_from(["session", "always"]),
    shown=_text,
    by=_text,
    at_us=st.integers(1, 1 << 50),
)


@settings(deadline=None)
@given(st.lists(_approvals, max_size=5, unique_by=lambda a: a.number))
def test_it_comes_back_as_it_was(approvals):
    kept = Kept(next_number=100, approvals=tuple(approvals))
    assert parse_kept(render_kept(kept), PLACELESS) == kept


class PLACELESS:
    path = b"/somewhere"


@settings(deadline=None)
@given(st.data())
def test_any_changed_byte_is_an_error(data):
    content = bytearray(render_kept(KEPT))
    at = data.draw(st.integers(0, len(content) - 2))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError):
        parse_kept(bytes(content), PLACELESS)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=200), _text.map(str.encode)))
def test_what_is_no_such_file_is_an_error(content):
    with pytest.raises(StateError) as caught:
        parse_kept(content, PLACELESS)
    assert "remove it" in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        Kept(next_number=1, approvals=(ONE,)),
        Kept(next_number=4, approvals=(ONE, ONE)),
        Kept(next_number=0),
    ],
)
def test_numbers_that_cannot_be_are_an_error(wrong):
    with pytest.raises(StateError):
        parse_kept(render_kept(wrong), PLACELESS)


def test_a_newer_one_is_told_as_such():
    with pytest.raises(TraceVersionError, match="newer"):
        parse_kept(b'{"approvals":[],"digest":"","format":2,"next_number":1}', PLACELESS)


def test_a_link_or_a_directory_in_its_place_is_an_error(place):
    path = place.files.path + b"/" + NAME
    os.symlink("/dev/zero", path)
    with pytest.raises(StateError):
        load_kept(place.files)
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(StateError):
        load_kept(place.files)
