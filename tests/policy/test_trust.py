"""Trust in a project's file: of its exact bytes, at its exact path."""

import hashlib
import os

import pytest

from substrate.errors import StateError
from substrate.policy import trust
from substrate.policy.rules import Subject

LAX = '[[command]]\nmatch = ["git", "push", "**"]\naction = "allow"\n[limits]\npids = 9\n'
PUSH = Subject(argv=(b"git", b"push"))


def trust_file(ground, path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    trust.trust(os.fsencode(ground.home), os.fsencode(path), digest)


def trusted(ground):
    return [layer.trusted for layer in ground.policy().layers if layer.kind == "project"]


def test_a_trusted_file_counts_in_full(ground):
    path = ground.project(LAX)
    assert trusted(ground) == [False]
    trust_file(ground, path)
    assert trusted(ground) == [True]
    assert ground.load().decide(PUSH).action == "allow"
    assert ground.policy().ignored == ()


def test_another_byte_and_another_place_are_not_trusted(ground):
    path = ground.project(LAX)
    trust_file(ground, path)
    path.write_text(LAX + "\n")
    assert trusted(ground) == [False]
    path.write_text(LAX)
    assert trusted(ground) == [True]
    inner = ground.work / "inner"
    ground.project(LAX, inner)
    assert [layer.trusted for layer in ground.policy(cwd=inner).layers[1:]] == [True, False]


def test_trust_can_be_taken_back(ground):
    path = ground.project(LAX)
    home, name = os.fsencode(ground.home), os.fsencode(path)
    trust_file(ground, path)
    assert list(trust.list_trusted(home)) == [(name, hashlib.sha256(LAX.encode()).hexdigest())]
    assert trust.revoke(home, name)
    assert not trust.revoke(home, name)
    assert trusted(ground) == [False]
    assert list(trust.list_trusted(home)) == []


def test_a_projects_profile_is_trusted_as_its_file_is(ground):
    path = ground.project('extends = "builtin:locked-down"')
    assert ground.policy().default_action == "ask"
    path.write_text('extends = "builtin:observe"')
    assert "*" not in ground.policy().net.allow
    assert [layer.trusted for layer in ground.policy().layers[1:]] == [False, False]
    trust_file(ground, path)
    assert "*" in ground.policy().net.allow


def test_what_others_could_have_written_says_nothing(ground):
    path = ground.project(LAX)
    trust_file(ground, path)
    (entry,) = (ground.home / "trust").iterdir()
    entry.chmod(0o644)
    with pytest.raises(StateError, match="is not a file that substrate wrote"):
        ground.load()


def test_trust_is_seen_past_what_was_kept(ground):
    path = ground.project(LAX)
    for file in (path, path.parent):
        os.utime(file, (1, 1))
    broker = ground.load()
    assert broker.is_current()
    trust_file(ground, path)
    assert not broker.is_current()
    assert trusted(ground) == [True]
