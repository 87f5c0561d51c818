"""What agents put around a command is told from it, and nothing can hide in what looks like it."""

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.session.scaffolding import CLAUDE, GEMINI, find_scaffolding

SNAPSHOT = b"/home/u/.claude/shell-snapshots/snapshot-bash-1787645352430-itq4da.sh"
NOTE = b"/tmp/claude-93e6-cwd"
UNSET = b"{ \\builtin unalias -- 'unsetenv'; \\builtin unset -f -- 'unsetenv'; } >/dev/null 2>&1 || true && "


def quoted(command: bytes) -> bytes:
    """As Claude Code 2 does it."""
    return b"'" + command.replace(b"'", b"'\"'\"'") + b"'"


def claude(command: bytes, *, word: bytes | None = None) -> bytes:
    """As ps shows it (Claude Code 2.1)."""
    return (
        b"source " + SNAPSHOT + b" 2>/dev/null || true && shopt -u extglob 2>/dev/null || true && "
        + UNSET + b"eval " + (quoted(command) if word is None else word)
        + b" < /dev/null && pwd -P >| " + NOTE
    )  # fmt: skip


# forms that were seen, by version
SEEN = [
    claude(b"ls"),
    b"source " + SNAPSHOT + b" && eval 'ls' \\< /dev/null && pwd -P >| " + NOTE,
    b"source " + SNAPSHOT + b" 2>/dev/null || true && eval ls \\< /dev/null && pwd -P >| " + NOTE,
    b"eval 'ls' < /dev/null && pwd -P >| " + NOTE,
    b"shopt -u extglob 2>/dev/null || true && eval 'ls' && pwd -P >| /tmp/claude-1aad-cwd",
    b"source " + SNAPSHOT.replace(b"bash", b"zsh") + b" 2>/dev/null || true && "
    b"setopt NO_EXTENDED_GLOB NO_BARE_GLOB_QUAL 2>/dev/null || true && eval 'ls' < /dev/null && "
    b"pwd -P >| /var/folders/x/T/claude-e0c2-cwd",
    b"{ shopt -u extglob || setopt NO_EXTENDED_GLOB; } >/dev/null 2>&1 || true && eval \"ls\" && "
    b"pwd -P >| " + NOTE,
]  # fmt: skip


@pytest.mark.parametrize("text", SEEN)
def test_the_forms_of_claude_code(text):
    found = find_scaffolding(text)
    assert found is not None
    assert (found.by, found.command) == (CLAUDE, b"ls")
    assert found.snapshot in (None, SNAPSHOT, SNAPSHOT.replace(b"bash", b"zsh"))
    assert text.endswith(found.note)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (b"{ ls -l; }; __code=$?; pgrep -g 0 >/tmp/shell_pgrep_94c442b09777.tmp 2>&1; exit $__code;", b"ls -l"),
        (b"shopt -u promptvars nullglob extglob nocaseglob dotglob; { a | b; }; __code=$?; pgrep -g 0 "
         b">/tmp/shell_pgrep_0.tmp 2>&1; exit $__code;", b"a | b"),
        (b"{ a & }; __code=$?; pgrep -g 0 >/tmp/shell_pgrep_0.tmp 2>&1; exit $__code;", b"a &"),
    ],
)  # fmt: skip
def test_the_forms_of_gemini(text, command):
    found = find_scaffolding(text)
    assert found is not None
    assert (found.by, found.command) == (GEMINI, command)


@given(st.binary(max_size=60).filter(lambda command: b"\0" not in command))
def test_what_is_put_in_is_found(command):
    found = find_scaffolding(claude(command))
    assert found is not None
    assert found.command == command


#: pieces from which look-alikes are made
PIECES = [
    b"source ", SNAPSHOT, b" 2>/dev/null || true && ", b" && ", b"eval ", b"'ls'", b"'a'\"'\"'b'", b"ls",
    b'"x"', b'"$(id)"', b'"a\\$b"', b"\\ ", b"$HOME", b"`id`", b"'", b'"', b";", b"\n", b" ", b"#",
    b" < /dev/null && ", b" \\< /dev/null && ", b"pwd -P >| ", NOTE, b"/tmp/claude-zz-cwd",
    b"shopt -u extglob 2>/dev/null || true && ", UNSET, b"rm -rf x", b"{ ", b"; ",
    b" }; __code=$?; pgrep -g 0 >", b"/tmp/shell_pgrep_ab.tmp", b" 2>&1; exit $__code;",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join))
def test_nothing_hides_in_a_look_alike(text):
    """What is fixed is known; all else of the text is in the fields."""
    found = find_scaffolding(text)
    if found is None:
        return
    if found.by == GEMINI:
        assert any(
            text == head + b"{ " + found.command + end + b" }; __code=$?; pgrep -g 0 >" + found.note
            + b" 2>&1; exit $__code;"
            for head in (b"", b"shopt -u nullglob; ") for end in (b"", b";")
        )  # fmt: skip
        return
    head, _, rest = text.partition(b"eval ")
    assert head.replace(SNAPSHOT, b"") in {
        a + b + c
        for a in (b"", b"source  2>/dev/null || true && ", b"source  && ")
        for b in (b"", b"shopt -u extglob 2>/dev/null || true && ")
        for c in (b"", UNSET)
    }
    tail = next(
        end + b"pwd -P >| " + found.note
        for end in (b" < /dev/null && ", b" \\< /dev/null && ", b" && ")
        if rest.endswith(end + b"pwd -P >| " + found.note)
    )
    word = rest.removesuffix(tail)
    assert echoed(word) == found.command


WORDS = st.lists(
    st.sampled_from(
        [
            b"'",
            b'"',
            b"\\",
            b"$",
            b"`",
            b"a",
            b" ",
            b"!",
            b"\n",
            b"<",
            b"x=1",
            b"\\'",
            b"'\"'\"'",
            b"\xff",
        ]
    ),
    min_size=1,
    max_size=9,
).map(b"".join)


@settings(max_examples=150)
@given(WORDS)
def test_a_word_is_what_bash_makes_of_it(word):
    found = find_scaffolding(b"eval " + word + b" && pwd -P >| " + NOTE)
    if found is not None:
        assert echoed(word) == found.command


def echoed(word: bytes) -> bytes:
    """What bash hands on, with an end that shows how many words there were."""
    done = subprocess.run(
        ["/bin/bash", "-c", b"printf '%s|' " + word],
        capture_output=True,
        env={"LC_ALL": "C"},
        cwd="/",
    )
    return done.stdout.removesuffix(b"|")


@pytest.mark.parametrize(
    "text",
    [
        b"ls", b"", b" && pwd -P >| " + NOTE,
        claude(b"ls") + b"; rm -rf x",
        b"rm -rf x; " + claude(b"ls"),
        claude(b"ls").replace(b"shopt -u", b"shopt -s"),
        claude(b"ls").replace(SNAPSHOT, b"/tmp/evil.sh"),
        claude(b"ls").replace(SNAPSHOT, b"/tmp/shell-snapshots/../x/snapshot-bash-1-a.sh"),
        claude(b"ls").replace(SNAPSHOT, b"'/a b/shell-snapshots/snapshot-bash-1-a.sh'"),
        claude(b"ls").replace(SNAPSHOT, SNAPSHOT + b" $(id)"),
        claude(b"ls").replace(SNAPSHOT, b"$(id)/shell-snapshots/snapshot-bash-1-a.sh"),
        claude(b"ls").replace(NOTE, b"/home/u/.bashrc"),
        claude(b"ls").replace(NOTE, b"$(id)/claude-93e6-cwd"),
        claude(b"ls").replace(NOTE, b"/tmp/claude-93e6-cwd\nid"),
        claude(b"", word=b"'ls' $(id)"),
        claude(b"", word=b'"$(id)"'),
        claude(b"", word=b'"`id`"'),
        claude(b"", word=b"'ls' && id"),
        claude(b"", word=b"ls;id"),
        claude(b"", word=b"$'ls'"),
        claude(b"", word=b"{a,b}"),
        claude(b"", word=b"*"),
        claude(b"", word=b"~"),
        b"{ ls; }; __code=$?; pgrep -g 0 >/tmp/shell_pgrep_ab.tmp 2>&1; exit $__code; id",
        b"{ ls; }; __code=$?; pgrep -g 0 >/home/u/.bashrc 2>&1; exit $__code;",
        b"id; { ls; }; __code=$?; pgrep -g 0 >/tmp/shell_pgrep_ab.tmp 2>&1; exit $__code;",
    ],
)  # fmt: skip
def test_what_is_more_than_scaffolding_is_shown_whole(text):
    assert find_scaffolding(text) is None


def test_the_shell_agrees(tmp_path):
    """The real thing: what is found is what was run."""
    note = tmp_path / "claude-1a2b-cwd"
    command = b"echo 'it'\"s\" $((1+1)); cd /usr"
    text = claude(command).replace(SNAPSHOT, b"/nonexistent/shell-snapshots/snapshot-bash-1-a.sh")
    text = text.replace(NOTE, os.fsencode(note))
    done = subprocess.run(["/bin/bash", "-c", "-l", text], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"its 2\n")
    assert note.read_text() == "/usr\n"
    found = find_scaffolding(text)
    assert found is not None and found.command == command
