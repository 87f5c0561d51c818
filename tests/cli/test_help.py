"""Help: of every command, with an example first, and the page that is made of it."""

import pytest

from substrate.cli.reference import commands, help_of, render_reference
from substrate.cli.verb import Verb, VerbGroup
from tests.cli.place import ROOT

ALL = list(commands())


@pytest.mark.parametrize("words", ["substrate", *(words for words, _, _ in ALL)])
def test_help_of_every_command_begins_with_an_example(place, words):
    done = place.run(*words.split()[1:], "--help")
    first, second = done.stdout.decode().splitlines()[:2]
    assert first in ("Example:", "Examples:")
    assert second.startswith(f"  {words} ") or second.strip() == words
    assert done.stderr == b""
    assert not place.home.exists()


@pytest.mark.parametrize(
    "words", [("help",), ("-h",), ("-e", "--help"), ("--net", "none", "--help")]
)
def test_help_in_other_words(place, words):
    assert place.out(*words) == place.out("--help")


def test_help_of_a_verb_in_other_words(place):
    assert place.out("help", "diff") == place.out("diff", "--help") == place.out("diff", "-h")


def test_the_version(place):
    assert place.out("--version").startswith("substrate ")
    assert place.out("-x", "--version") == place.out("--version")


def test_help_fits_a_terminal(place):
    for line in place.out("--help").splitlines():
        assert len(line) <= 100, line


@pytest.mark.parametrize(("words", "command", "context"), ALL)
def test_every_command_has_the_form_of_a_verb(words, command, context):
    if words not in ("substrate run",):
        assert isinstance(command, (Verb, VerbGroup))
    assert help_of(command, context)


def test_the_reference_is_what_the_help_says():
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == render_reference(), "run scripts/gen-reference"


def test_the_reference_says_what_the_command_prints(place):
    page = render_reference()
    for words in (
        "--help",
        "run --help",
        "diff --help",
        "trace verify --help",
        "session rm --help",
    ):
        assert place.out(*words.split()).rstrip() in page


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("diff", "--sta"), b"did you mean --stat?"),
        (("world", "lss"), b"did you mean `substrate world ls`?"),
        (("trace", "verfy"), b"did you mean `substrate trace verify`?"),
        (("status", "--format", "xml"), b"`substrate status --help` says how"),
        (("session", "rm"), b"`substrate session rm --help` says how"),
        (("completion",), b"`substrate completion --help` says how"),
    ],
)
def test_a_wrong_call_of_a_verb_is_2_with_a_hint(place, words, hint):
    done = place.run(*words, status=2)
    assert done.stderr.startswith(b"substrate: ")
    assert hint in done.stderr
    assert not done.stdout
