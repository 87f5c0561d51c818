"""Paths and patterns as a person writes them: pure but for the current directory."""

import os

import pytest

from substrate.cli.diff import reads_as_span, split_spans
from substrate.cli.paths import absolute, pattern, selector
from substrate.errors import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return os.fsencode(tmp_path)


@pytest.mark.parametrize(
    ("text", "matched", "unmatched"),
    [
        ("*.py", ["a.py", "src/deep/a.py", "a.py/in it"], ["a.pyc", "a.py~", "py"]),
        ("src", ["src", "src/a", "lib/src/a"], ["srcs", "a.src"]),
        ("src/", ["src/a"], ["srcs/a"]),
        ("src/*.py", ["src/a.py", "src/a.py/b"], ["src/b/a.py", "lib/src/a.py", "src/.."]),
        ("./src/*.py", ["src/a.py"], ["lib/src/a.py"]),
        ("./a.py", ["a.py"], ["src/a.py"]),
        ("lib/../src/*", ["src/a"], ["lib/a"]),
        ("src//a", ["src/a"], ["src"]),
        (".", ["a", "src/a"], ["../beside"]),
        ("..", ["../beside", "a"], []),
        ("../beside*", ["../beside", "../besides/a"], ["beside"]),
        ("**/a", ["a", "src/a", "src/deep/a"], ["src/aa"]),
        ("src/**", ["src/a", "src/deep/a"], ["src", "a"]),
        ("src/**/a", ["src/a", "src/deep/er/a"], ["src/deep/b"]),
        ("s?c", ["src"], ["sc", "s/c"]),
        ("s*c", ["src", "sc"], ["s/c"]),
        ("[ab]", ["a", "b/x"], ["c", "ab"]),
        ("x[!ab]", ["xc", "x!"], ["xa", "xab"]),
        ("x[]a]", ["x]", "xa"], ["x"]),
        ("x[^a]", ["xb"], ["xa"]),
        ("x[a-c]", ["xb"], ["xd", "x-"]),
        ("x[[:]", ["x[", "x:"], ["xa"]),
        ("x[a", ["x[a"], ["xa"]),
        (r"x\*", ["x*"], ["xa"]),
        ("x.", ["x."], ["xa"]),
        ("new\nline", ["new\nline"], ["new"]),
        ("*", ["a", "new\nline", "\udcff"], []),
    ],
)
def test_what_a_pattern_matches(here, text, matched, unmatched):
    match = pattern(text)
    for names, expected in ((matched, True), (unmatched, False)):
        for name in names:
            path = os.path.normpath(here + b"/" + os.fsencode(name))
            assert match(path) is expected, name


def test_a_name_does_not_match_the_way_to_the_current_directory(tmp_path, monkeypatch):
    place = tmp_path / "src" / "project"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    match = pattern("src")
    here = os.fsencode(place)
    for name in ("src", "src/a", "lib/src/a", "../src/a", "../../src2/src/a"):
        assert match(os.path.normpath(here + b"/" + os.fsencode(name))), name
    for name in ("a", "lib/a", ".", "../other/a", "../../src2/a"):
        assert not match(os.path.normpath(here + b"/" + os.fsencode(name))), name


def test_a_pattern_from_the_root_matches_there(here):
    match = pattern("/etc/*.conf")
    assert match(b"/etc/a.conf")
    assert not match(here + b"/etc/a.conf")
    assert pattern("/../etc")(b"/etc/x")


def test_a_directory_with_odd_letters_is_taken_as_it_is(tmp_path, monkeypatch):
    odd = tmp_path / "a*[b]\n.c"
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert pattern("./x*")(os.fsencode(odd) + b"/xy")
    assert not pattern("./x*")(os.fsencode(tmp_path) + b"/a1[b]\n.c/xy")


@pytest.mark.parametrize("text", ["", "/", "//", "[z-a]"])
def test_what_is_no_pattern_is_a_wrong_call(here, text):
    with pytest.raises(UsageError, match="is no pattern"):
        pattern(text)


def test_included_and_excluded(here):
    def chosen(paths=(), include=(), exclude=()):
        is_meant = selector(absolute(paths), include, exclude)
        names = ["src/a.py", "src/a.pyc", "src/build/x", "lib/a.py", "b"]
        return [name for name in names if is_meant(here + b"/" + os.fsencode(name))]

    assert selector(()) is None
    assert chosen(["src"]) == ["src/a.py", "src/a.pyc", "src/build/x"]
    assert chosen(["src", "b"], exclude=["*.pyc"]) == ["src/a.py", "src/build/x", "b"]
    assert chosen(include=["*.py"]) == ["src/a.py", "lib/a.py"]
    assert chosen(["b"], include=["*.py"], exclude=["lib"]) == ["src/a.py", "b"]
    assert chosen(exclude=["src/**"]) == ["lib/a.py", "b"]
    assert chosen(include=["*"], exclude=["*"]) == []


def test_a_path_keeps_its_last_part_when_it_is_a_symlink(here):
    os.mkdir("real")
    os.symlink("real", "link")
    assert absolute(["link", "link/x", "real/../y", "/", "."]) == (
        here + b"/link",
        here + b"/real/x",
        here + b"/y",
        b"/",
        here,
    )


@pytest.mark.parametrize(
    ("word", "is_span"),
    [
        ("3", True), ("last", True), ("w1:3", True), ("w1:last", True),
        ("spn_01a21844-7183-74c6-97e0-1633b1d13abe", True),
        ("./3", False), ("./w1:3", False), ("d/w1:last", False), ("3.txt", False), (":3", False), ("w1:", False), ("a:b", False),
        ("lasts", False), ("", False), ("-3", False), ("٣", False), ("³", False),
    ],
)  # fmt: skip
def test_which_words_read_as_a_command(word, is_span):
    assert reads_as_span(word) is is_span


def test_only_the_first_words_are_commands():
    assert split_spans(["1", "w1:2", "src", "3"]) == (["1", "w1:2"], ["src", "3"])
    assert split_spans(["./1", "2"]) == ([], ["./1", "2"])
