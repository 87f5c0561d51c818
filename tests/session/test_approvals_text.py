"""A question in words: hostile bytes in, printable lines out."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.session.approvals_text import (
    cut_middle,
    render_question,
    show_argv,
    show_redacted,
    show_word,
    width_of,
)
from substrate.session.approvals_values import Question
from tests.session.approvals_scene import asked, held, with_read_as


def question(*argv, **more):
    return Question(number=3, asked=asked("t", *argv, **more), put_at=0.0, deadline=60.0)


def render(what, columns=80, rows=30, **more):
    return render_question(what, columns=columns, rows=rows, until="19:05:00", **more)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_nothing_that_is_not_printable_gets_through(word):
    shown = show_word(word)
    assert shown.isprintable()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=20).filter(lambda w: b"\0" not in w), min_size=1, max_size=4))
def test_a_shell_reads_back_the_same_bytes(words):
    done = subprocess.run(
        ["/bin/bash", "-c", f"printf '%s\\0' {show_argv(words)}"],
        capture_output=True,
        env={"LC_ALL": "C"},
        check=True,
    )
    assert done.stdout == b"".join(word + b"\0" for word in words)


@pytest.mark.parametrize(
    "hidden", ["\u202e", "\u200b", "\u2066", "\ufeff", "\u0301", "\u3164", "\x1b[2J", "\r", "\x9b"]
)
def test_what_hides_or_moves_text_is_escaped(hidden):
    assert hidden not in show_word(f"a{hidden}b".encode())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=20),
    st.integers(24, 200),
    st.integers(8, 60),
    st.integers(0, 9),
)
def test_it_fits_on_the_screen(words, columns, rows, page):
    what = question(given=held(*words), chain=(b"bash -c x", b"\x1b]0;evil\x07"), touches=("h:1",))
    lines = render(what, columns, rows, page=page).lines
    assert all(line.isprintable() for line in lines)
    assert all(width_of(line) <= columns for line in lines)
    assert len(lines) <= rows


def test_all_that_is_known_is_on_it():
    what = question(
        "git",
        "push",
        verdict=with_read_as("env git push", "git push"),
        chain=(b"bash deploy.sh", b"make release"),
        touches=("git.example.org:22",),
    )
    text = "\n".join(render(what, others=2).lines)
    for part in (
        *("git push", "/work", "/usr/bin/git", "bash deploy.sh ← make release"),
        *("builtin command[1]: publishing (builtin:test, line 3)", "high: changes a remote"),
        *("git.example.org:22", "3, denied at 19:05:00; 2 more", "read as"),
    ):
        assert part in text, part


def test_variables_that_change_what_it_does_are_on_it_and_counted():
    some = (b"GIT_DIR=/other", b"PATH=/bin", b"HOME=/root")
    text = "\n".join(render(question(given=held("git", "push", variables=some))).lines)
    assert "with      GIT_DIR=/other" in text and "PATH=" not in text
    many = tuple(b"GIT_%d=\x1b[2J" % number for number in range(50))
    lines = render(question(given=held("git", "push", variables=many)), rows=60).lines
    assert all(line.isprintable() for line in lines)
    assert any("44 more variables" in line for line in lines)


def test_a_long_command_is_cut_in_the_middle_and_can_be_read_page_by_page():
    words = [f"word{number}" for number in range(2000)]
    what = question(*words)
    first = render(what)
    text = "\n".join(first.lines)
    assert "word0 " in text and "word1999" in text and "lines left out: w shows all" in text
    assert first.pages > 2
    whole = ""
    for page in range(1, first.pages):
        lines = render(what, page=page).lines
        assert f"page {page} of {first.pages - 1} of it" in lines[0]
        whole += "".join(line[2:] for line in lines[2 : lines.index("", 2)])
    assert whole == " ".join(words)


def test_letters_that_look_like_others_are_named():
    text = "\n".join(render(question("git", "pu\u0455h")).lines)
    assert "U+0455" in text


def test_the_short_form_has_no_secrets():
    what = asked("t", "curl", "-u", "me:hunter2secret", "https://example.com")
    assert "hunter2secret" not in show_redacted(what)


@given(st.text(max_size=300), st.integers(30, 100))
def test_what_is_cut_says_so(text, most):
    cut = cut_middle(text, most)
    assert cut == text if len(text) <= most else f"[{len(text) - most} more]" in cut
