"""Rules that are written for an argv, and the user's file that they are added to."""

import os
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.errors import ConfigError
from substrate.policy import places
from substrate.policy.decide import compile_policy
from substrate.policy.merge import merge
from substrate.policy.parse_policy import parse_policy
from substrate.policy.render_policy import argv_patterns, render_rule, toml_string
from substrate.policy.rules import USER, Subject
from substrate.policy.write_rule import add_rule

ARGV = st.lists(
    st.binary(min_size=1, max_size=10).filter(lambda word: b"\0" not in word),
    min_size=1,
    max_size=5,
)

#: the machine that runs this has other work, too
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(st.text(max_size=30).filter(lambda text: text.isascii() or text.isprintable()))
def test_a_string_comes_back(text):
    assert tomllib.loads(f"x = {toml_string(text)}")["x"] == text


@slow
@given(ARGV.filter(lambda argv: argv[0].rpartition(b"/")[2] and b"/" not in argv[0]))
def test_a_rule_meets_the_argv_that_it_was_written_for(argv):
    text = render_rule(argv_patterns(argv), "deny", 'why "not"')
    layer = parse_policy(text.encode(), kind=USER, name="it", label="user", shown="it").layer
    assert layer.commands[0].reason == 'why "not"'
    verdict = compile_policy(merge([layer])).decide(Subject(argv=tuple(argv)))
    assert verdict.rule == "user command[1]"


def found(ground):
    return places.find_places(ground.environ, os.fsencode(ground.work), os.fsencode(ground.work))


def test_a_rule_is_added_to_a_file_that_is_made(ground):
    add_rule(found(ground), (b"git", b"push"), "allow", "asked for")
    path = ground.user / ".config/substrate/policy.toml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert ground.load().decide(Subject(argv=(b"git", b"push"))).rule == "user command[1]"


def test_a_rule_is_added_behind_what_is_there(ground):
    path = ground.user_file('id = "mine" # kept\n[limits]\npids = 7')
    add_rule(found(ground), (b"make",), "deny", "")
    add_rule(found(ground), (b"/usr/bin/cc", b"x y"), "deny", "")
    layer = ground.policy().layers[-1]
    assert (layer.id, layer.limits.pids) == ("mine", 7)
    assert [rule.match for rule in layer.commands] == [(b"make",), (b"cc", b"x y")]
    assert path.read_text().startswith('id = "mine" # kept\n')


def test_a_file_that_cannot_be_read_is_not_touched(ground):
    path = ground.user_file("not toml")
    with pytest.raises(ConfigError):
        add_rule(found(ground), (b"make",), "deny", "")
    assert path.read_text() == "not toml"
    path.write_text("[[command]]\nmatch = 'x'\n")
    with pytest.raises(ConfigError):
        add_rule(found(ground), (b"make",), "deny", "")


def test_a_symlink_of_the_user_stays_one(ground):
    target = ground.write(ground.user / "dotfiles/policy.toml", 'id = "linked"\n')
    target.parent.chmod(0o700)
    path = ground.user / ".config/substrate/policy.toml"
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    add_rule(found(ground), (b"make",), "deny", "")
    assert path.is_symlink() and "make" in target.read_text()
