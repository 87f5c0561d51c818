"""Every way to run a denied program, really tried: stopped by the rule that the table names, or not seen.

In one world all of them are tried one after the other: without rules (each has to work, or it proves
nothing), with a rule of the name, and with rules of name and content.
"""

import json
import re
import shlex
import shutil

import pytest

from tests.system.gate_tools import build
from tests.system.gate_ways import DIGEST, NAME, UNSEEN, WAYS, WORLD

GATED = "gate"
_DRIVER = r"""
cd "$1" || exit 9
export B=$1/bin T=$1/tools F=$1/bin/forbidden RAN=$1/ran HOME=$1/home
export PATH=$B:/usr/local/bin:/usr/bin:/bin GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
mkdir -p ran home places
one() {
    mkdir -p "places/$1"
    cd "places/$1" && WAY=$1 timeout -k 2 "$2" bash ../../"ways/$1" </dev/null >out 2>&1
}
export -f one
ls ways | xargs -P 6 -I {} bash -c 'one "$@" || true' one {} "$2"
sleep 0.5
ls ran
"""


def tried(root):
    """The ways that can be tried here. What is not installed is not tried by anybody: CI installs it."""
    found = [w for w in WAYS if root or not w.root]
    return [
        w
        for w in found
        if all(shutil.which(n, path="/usr/bin:/bin:/usr/sbin:/usr/local/bin") for n in w.needs)
    ]


@pytest.fixture(scope="module", params=["ns-root-idmap", "ns-user"])
def scene(request, make_caller):
    caller = make_caller(request.param)
    digests = build(caller.work, str(caller.work / "ran"))
    caller.make_directory(caller.work / "ways")
    ways = tried(root=caller.uid == 0)
    for way in ways:
        (caller.work / "ways" / way.name).write_text(way.script + "\n")
    (caller.work / "drive").write_text(_DRIVER)
    for path in (caller.work, *caller.work.rglob("*")):
        caller.own(path)
    return caller, ways, digests


def ran(caller, rules, *, seconds=40, backend="auto"):
    """The names of the ways by which the program ran, under these rules, and the session's trace."""
    policy = caller.base / "policy.toml"
    policy.write_text(rules)
    caller.own(policy)
    line = f"bash drive {shlex.quote(str(caller.work))} {seconds}"
    done = caller.substrate(
        *("--fresh", "--policy", policy, "--capture-backend", backend, "--discard"),
        *("--background", "0.1", "-c", line),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return set(done.stdout.decode().split()), caller.events(), done


ALLOWS = 'extends = "builtin:observe"\n'
BY_NAME = """extends = "builtin:observe"
[[command]]
match = ["forbidden", "**"]
action = "deny"
reason = "it is forbidden"
"""
BY_DIGEST = """
[[command]]
sha256 = "{}"
action = "deny"
reason = "its content is forbidden"
"""


def test_each_way_works_where_nothing_is_denied(scene):
    caller, ways, _ = scene
    found, _, _ = ran(caller, ALLOWS)
    worked = {way.name for way in ways if way.by != WORLD}
    assert sorted(worked - found) == [], "these prove nothing"
    assert sorted(found - worked) == []


def test_a_rule_of_the_name_stops_what_it_can_see(scene):
    caller, ways, _ = scene
    found, trace, done = ran(caller, BY_NAME)
    stopped = {way.name for way in ways if way.by in (NAME, WORLD)}
    assert sorted(found & stopped) == []
    assert sorted(found) == sorted({way.name for way in ways} - stopped), "these rows are wrong"
    denied = [e["body"] for e in trace if e["event_type"] == "policy_decision"]
    assert len(denied) >= len([way for way in ways if way.by == NAME])
    assert {body["action"] for body in denied} <= {"denied", "killed"}
    assert {body["rule"] for body in denied if body["action"] == "denied"} - {None}
    assert re.search(rb"substrate: denied: .*it is forbidden.*policy explain", done.stderr)


def test_a_rule_of_the_content_stops_copies_too(scene):
    caller, ways, digests = scene
    rules = BY_NAME + "".join(map(BY_DIGEST.format, digests.values()))
    found, _, _ = ran(caller, rules)
    assert sorted(found) == sorted(way.name for way in ways if way.by == UNSEEN)


@pytest.mark.parametrize("backend", ["ptrace", "python", "bpf"])
def test_other_backends_hold_as_well(scene, backend):
    """A few of each kind."""
    caller, _, digests = scene
    few = {
        "plain",
        "copy",
        "memfd",
        "symbolic-link",
        "vfork",
        "script-of-sh",
        "race-of-the-path",
        "python-system",
    }
    if backend == "bpf" and caller.uid:
        backend = "hybrid"  # a user has no rights to the other
    kept = caller.work / "kept"
    (caller.work / "ways").rename(kept)
    caller.make_directory(caller.work / "ways")
    try:
        for way in few:
            shutil.copy(kept / way, caller.work / "ways" / way)
        rules = BY_NAME + "".join(map(BY_DIGEST.format, digests.values()))
        assert ran(caller, ALLOWS, backend=backend)[0] == few
        found, trace, _ = ran(caller, rules, backend=backend, seconds=60)
        assert found == set()
        (start,) = [e["body"] for e in trace if e["event_type"] == "session_start"]
        assert start["isolation"]["layers"]["gate"] == {"on": True}, json.dumps(start)
    finally:
        shutil.rmtree(caller.work / "ways")
        kept.rename(caller.work / "ways")


def test_the_table_is_as_large_as_it_says():
    assert len(WAYS) >= 150 and len({way.name for way in WAYS}) == len(WAYS)
    for way in WAYS:
        assert bool(way.why) == (way.by in (UNSEEN, WORLD)), way.name
    assert {way.by for way in WAYS} == {NAME, DIGEST, UNSEEN, WORLD}
