"""Which keys count, and a line that is edited."""

from hypothesis import given
from hypothesis import strategies as st

from substrate.session.approvals_keys import ALONE_S, FIRST_S, QUIET_S, Keys
from substrate.session.approvals_line import DONE, GIVEN_UP, Line


def opened(now=0.0):
    keys = Keys(now)
    assert keys.is_open(now + FIRST_S + 0.01)
    return keys, now + 1.0


def test_a_key_alone_counts_a_moment_later():
    keys, now = opened()
    keys.feed(b"y", now)
    assert keys.take(now) == b""
    assert keys.next_look() == now + ALONE_S
    assert keys.take(now + ALONE_S) == b"y"
    assert keys.take(now + 1) == b""


def test_nothing_counts_in_the_first_moment():
    keys = Keys(0.0)
    keys.feed(b"y", FIRST_S - 0.01)
    assert keys.take(FIRST_S + 1) == b""
    assert not keys.is_open(FIRST_S + 0.01)  # and until it has been quiet
    assert keys.is_open(FIRST_S + QUIET_S)


def test_keys_that_come_together_do_not_count():
    keys, now = opened()
    for data in (b"yy", b"\x1b[y", b"\x1bOy", b"y\r", b"\x1b[M yy"):
        now += 1
        keys.feed(data, now)
        assert keys.take(now + 1) == b""


def test_a_key_right_behind_another_takes_it_back():
    keys, now = opened()
    keys.feed(b"y", now)
    keys.feed(b"n", now + ALONE_S / 2)
    assert keys.take(now + 1) == b""
    keys.feed(b"n", now + 2)
    assert keys.take(now + 3) == b"n"


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=3), st.floats(0.0, QUIET_S * 0.99))),
)
def test_a_stream_without_a_pause_never_answers(pieces):
    """Pasted text, a mouse, the terminal's own answers."""
    keys = Keys(0.0)
    now = 0.0
    for data, pause in pieces:
        now += min(pause, ALONE_S * 0.99)
        assert keys.take(now) == b""
        keys.feed(data, now)


def typed(line, *pieces):
    return [line.feed(piece) for piece in pieces][-1]


def test_a_line_is_edited_at_its_end():
    line = Line("git push main")
    typed(line, b"\x17", b"*")
    assert line.text == "git push *"
    typed(line, b"\x7f", b"x")
    assert line.text == "git push x"
    typed(line, b"\x15", b"a\xc3", b"\xa4", b"b", b"\x7f", b"\x7f")
    assert line.text == "a"


def test_how_a_line_ends():
    assert Line("a").feed(b"\r") == DONE
    for key in (b"\x1b", b"\x03", b"\x04"):
        assert Line("a").feed(key) == GIVEN_UP


def test_what_is_pasted_with_its_end_is_text():
    line = Line("")
    assert line.feed(b"rm -rf\r") == ""
    assert line.text == "rm -rf"
    assert line.feed(b"\x1b[200~y\r") == ""
    assert line.text == "rm -rf"


@given(st.lists(st.binary(max_size=8)))
def test_no_bytes_break_it(pieces):
    line = Line("x")
    for piece in pieces:
        line.feed(piece)
        assert "\x1b" not in line.text and "\r" not in line.text
