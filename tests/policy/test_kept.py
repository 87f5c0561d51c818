"""What is kept of a reading: that it comes back, and that it never outlives a change."""

import marshal
import os
import subprocess
import sys
import time

import pytest

from substrate.policy import broker, kept, load_policy
from substrate.policy.built import PROFILES
from substrate.policy.plain import SHAPE, layer_from, plain_of, policy_from
from substrate.policy.profiles import NAMES, parse_profile
from substrate.policy.rules import Policy
from substrate.policy.rules import Test as InlineTest
from substrate.values import replace
from tests.policy.test_parse_policy import WHOLE


def later() -> int:
    """A time at which nothing that was written until now is young, in ns."""
    return time.time_ns() + 10**12


def without_tests(policy: Policy) -> Policy:
    layers = tuple(
        replace(each, commands=tuple(replace(rule, test=InlineTest()) for rule in each.commands))
        for each in policy.layers
    )
    return replace(policy, layers=layers)


def test_a_policy_comes_back_from_plain_data(ground):
    ground.system(WHOLE)
    ground.project(WHOLE)
    policy = ground.policy()
    again = policy_from(marshal.loads(marshal.dumps(plain_of(policy))))
    assert again == without_tests(policy)
    assert hash(again) == hash(without_tests(policy))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shipped_is_what_the_profiles_texts_say(name):
    parsed = parse_profile(name)
    plain = tuple(replace(rule, test=InlineTest()) for rule in parsed.commands)
    assert layer_from(PROFILES[name]) == replace(parsed, commands=plain)


def test_the_profiles_are_generated():
    script = os.path.join(os.path.dirname(__file__), "../../scripts/gen-profiles")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def aged(monkeypatch):
    """As if the files had been written long ago: their ctime cannot be set."""
    at = later()
    monkeypatch.setattr(broker.time, "time_ns", lambda: at)


@pytest.fixture
def readings(monkeypatch):
    """How often the files were read."""
    counted = []
    real = load_policy.load_policy

    def load(*args):
        counted.append(args)
        return real(*args)

    monkeypatch.setattr(load_policy, "load_policy", load)
    return counted


def test_what_was_read_is_kept(ground, aged, readings):
    ground.user_file(WHOLE)
    first = ground.policy()
    assert ground.policy() == without_tests(first)
    assert ground.policy(cwd=ground.user) == without_tests(first)
    assert len(readings) == 1


@pytest.mark.parametrize("change", ["content", "mode", "replaced", "gone", "more", "touched"])
def test_a_change_is_seen(ground, aged, readings, change):
    path = ground.user_file('id = "one"')
    ground.policy()
    status = path.stat()
    if change == "content":
        path.write_text('id = "two"')
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "mode":
        path.chmod(0o604)
    elif change == "replaced":
        other = path.with_suffix(".new")
        other.write_text('id = "two"')
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.rename(path)
    elif change == "gone":
        path.unlink()
    elif change == "more":
        ground.system('id = "two"')
    else:
        path.touch()
    policy = ground.policy()
    expected = {"content": "two", "replaced": "two", "gone": "coding-agent"}
    assert policy.layers[-1].id == expected.get(change, "one")
    assert len(readings) == (1 if change == "gone" else 2)


def test_a_young_file_is_not_kept(ground, readings):
    ground.user_file('id = "one"')
    ground.policy()
    ground.policy()
    assert len(readings) == 2


@pytest.mark.parametrize(
    "damage", ["torn", "rubbish", "other shape", "other key", "open to others"]
)
def test_what_is_damaged_is_made_again(ground, aged, readings, damage):
    ground.user_file('id = "one"')
    ground.policy()
    (entry,) = (ground.home / "cache").iterdir()
    content = entry.read_bytes()
    if damage == "torn":
        entry.write_bytes(content[:-10])
    elif damage == "rubbish":
        entry.write_bytes(b"rubbish")
    elif damage == "open to others":
        entry.chmod(0o666)
    else:
        shape, key, stamps, row = marshal.loads(content)
        changed = {"other shape": (1, key), "other key": (shape, b"x")}[damage]
        entry.write_bytes(marshal.dumps((*changed, stamps, row)))
    assert ground.policy().layers[-1].id == "one"
    assert len(readings) == 2


def test_a_home_that_others_may_enter_keeps_nothing(ground, aged, readings):
    ground.user_file('id = "one"')
    ground.home.chmod(0o755)
    ground.policy()
    ground.policy()
    assert len(readings) == 2 and not list(ground.home.iterdir())


def test_a_missing_home_is_not_made(ground, aged):
    ground.user_file('id = "one"')
    ground.home.rmdir()
    assert ground.policy().layers[-1].id == "one"
    assert not ground.home.exists()


def test_entries_are_bounded(ground):
    home = os.fsencode(ground.home)
    for number in range(80):
        assert kept.keep(home, b"%d" % number, SHAPE, (), number, later())
    assert len(os.listdir(ground.home / "cache")) <= 64
    assert kept.fetch(home, b"79", SHAPE) == 79


def test_a_load_imports_nothing_heavy(ground):
    """With a policy that was kept, as without any file."""
    ground.user_file(WHOLE)
    code = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
import time
time.time_ns = lambda: {later()}
before = set(sys.modules)
from substrate.policy import broker
def load():
    return broker.load({ground.environ!r}, {os.fsencode(ground.work)!r}, {os.fsencode(ground.work)!r})
broker = load() if sys.argv[1] == "load" else load().net()
print("\\n".join(sorted(set(sys.modules) - before)))
"""
    heavy = {"tomllib", "re", "json", "enum", "typing", "dataclasses", "hashlib", "shlex"}
    for what in ("load", "net"):
        for fresh in (True, False):
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code, what],
                capture_output=True,
                text=True,
                check=True,
            )
            found = set(done.stdout.split())
            if not fresh:
                assert not found & heavy, found & heavy
                assert not {m for m in found if m.startswith("substrate.policy.group_")}
    (ground.user / ".config/substrate/policy.toml").unlink()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, "load"], capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & heavy
