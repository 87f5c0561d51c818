"""Patterns of paths: where changes may be applied to, and what shall not be read."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.policy.fs_paths import FsPaths
from substrate.policy.rules import FsRules


def paths(write=None, read_deny=(), workspace=b"/w"):
    return FsPaths(FsRules(write=write, read_deny=read_deny), workspace, b"/home/me")


def test_where_nothing_is_said_everything_may_be_applied():
    assert paths().may_apply(b"/etc/passwd")
    assert not paths(write=()).may_apply(b"/w/x")


def test_where_changes_may_be_applied():
    found = paths(write=(b"$PWD/**", b"/tmp/*.log", b"~/.cache/[ab]/**"))
    for path in (
        b"/w",
        b"/w/x",
        b"/w/a/b/c",
        b"/tmp/x.log",
        b"/home/me/.cache/a",
        b"/home/me/.cache/b/c/d",
    ):
        assert found.may_apply(path), path
    for path in (
        b"/wx",
        b"/",
        b"/tmp/a/x.log",
        b"/tmp/x.logs",
        b"/home/me/.cache/c/x",
        b"/home/mex",
    ):
        assert not found.may_apply(path), path


def test_what_shall_not_be_read(tmp_path):
    work = os.fsencode(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/.env").write_text("x")
    (tmp_path / ".env").write_text("x")
    (tmp_path / "secrets.d").mkdir()
    (tmp_path / "secrets.d/.env").write_text("x")
    (tmp_path / "loop").symlink_to(".")
    found = paths(
        read_deny=(b"~/.ssh/**", b"/etc/shadow", b"**/.env", b"$PWD/*.d/**"), workspace=work
    )
    looked = found.look()
    assert looked.paths == (b"/home/me/.ssh", b"/etc/shadow")
    assert looked.found == (work + b"/.env", work + b"/a/b/.env", work + b"/secrets.d")
    assert looked.complete
    for path in (b"/home/me/.ssh/id", b"/etc/shadow", work + b"/new/.env", work + b"/x.d/y"):
        assert found.is_unreadable(path), path
    for path in (b"/home/me/.sshx", b"/etc/shadow-", b"/elsewhere/.env", work + b"/.envx"):
        assert not found.is_unreadable(path), path


def test_the_walk_is_bounded(tmp_path):
    for number in range(30):
        (tmp_path / f"d{number}/e").mkdir(parents=True)
    found = paths(read_deny=(b"**/.env",), workspace=os.fsencode(tmp_path))
    assert found.look().complete
    assert not found.look(most=10).complete


def test_a_place_with_signs_in_it_is_no_pattern():
    found = paths(write=(b"$PWD/**",), workspace=b"/w/[x]*")
    assert found.may_apply(b"/w/[x]*/y")
    assert not found.may_apply(b"/w/xx/y")


PART = st.sampled_from([b"a", b"b*", b"*", b"**", b"?", b"[a-b]"])
NAME = st.sampled_from([b"a", b"b", b"bc", b"x"])


@settings(deadline=None)
@given(st.lists(PART, min_size=1, max_size=4), st.lists(NAME, min_size=1, max_size=5))
def test_against_a_model(pattern, names):
    import fnmatch

    def model(pattern, names):
        if not pattern:
            return not names
        if pattern[0] == b"**":
            return any(model(pattern[1:], names[n:]) for n in range(len(names) + 1))
        return (
            bool(names)
            and fnmatch.fnmatchcase(names[0], pattern[0])
            and model(pattern[1:], names[1:])
        )

    found = paths(write=(b"/" + b"/".join(pattern),))
    assert found.may_apply(b"/" + b"/".join(names)) == model(pattern, names)
