"""What a command has told the terminal to be, and how it is so again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.session.approvals_modes import give_back, modes_of, take_screen


def test_a_plain_command_gets_the_first_screen_back():
    modes = modes_of(b"hello\r\n")
    assert not modes.alternate
    taken, back = take_screen(modes), give_back(modes)
    assert taken.startswith(b"\x1b[?1049h")
    assert back.endswith(b"\x1b[?1049l")
    assert b"?1049" not in take_screen(modes, again=True)


def test_what_could_hide_a_question_is_undone_and_comes_back():
    modes = modes_of(b"\x1b[5;7r\x1b[?25l\x1b[?1003;1006h\x1b[?2004h\x1b[?7l\x1b]11;#000\x07\x1b=")
    taken = take_screen(modes)
    for part in (b"\x1b[r", b"\x1b[?25h", b"\x1b[?1003l", b"\x1b[?7h", b"\x1b]111\x1b\\", b"\x1b>"):
        assert part in taken, part
    back = give_back(modes)
    for part in (b"\x1b[5;7r", b"\x1b[?25l", b"\x1b[?1003h", b"\x1b[?2004h", b"\x1b[?7l", b"\x1b="):
        assert part in back, part


def test_what_was_undone_by_the_command_itself_stays_so():
    modes = modes_of(b"\x1b[?1049h\x1b[?25l\x1b[2;3r\x1b[?25h\x1b[r\x1b[?1049l")
    assert not modes.alternate
    assert b"?25l" not in give_back(modes) and b";3r" not in give_back(modes)
    assert modes_of(b"\x1b[?25l\x1bc").private == ()


def test_the_second_screen_of_a_command_stays_its_own():
    modes = modes_of(b"\x1b[?1049h\x1b[H")
    assert modes.alternate
    assert b"?1049" not in take_screen(modes) and b"?1049" not in give_back(modes)


@pytest.mark.parametrize(
    "begun",
    [b"\x1b", b"\x1b[", b"\x1b[3", b"\x1b[?25", b"\x1b]0;ti", b"\xc3", b"\xe2\x82", b"\x1b("],
)
def test_a_sequence_that_was_cut_is_ended_and_begun_again(begun):
    modes = modes_of(b"text" + begun)
    assert modes.begun == begun
    assert take_screen(modes).startswith(b"\x18\x1b\\")
    assert give_back(modes).endswith(begun)


@pytest.mark.parametrize(
    "whole", [b"\x1b[3m", b"\x1b]0;t\x07", b"\xc3\xa4", b"\x1b(B", b"\x1b[?25l"]
)
def test_a_whole_sequence_is_not_begun_again(whole):
    assert modes_of(b"text" + whole).begun == b""


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(written):
    modes = modes_of(written)
    take_screen(modes)
    assert len(give_back(modes)) < 5000
