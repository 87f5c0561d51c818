"""Ordinary work under the profile that holds by default: everything goes through, nothing is asked."""

import shlex

import pytest

from tests.system.gate_ordinary import FILES, ORDINARY

_DRIVER = r"""
cd "$1" || exit 9
export PATH=/usr/local/bin:/usr/bin:/bin GIT_CONFIG_NOSYSTEM=1
git config --global user.name a; git config --global user.email a@b
number=0
for line in ../lines/*; do
    bash "$line" </dev/null >out 2>&1 || { echo "$line: $?"; cat "$line" out; }
done
rm -f out
"""


@pytest.mark.parametrize("backend", ["ns-root-idmap", "ns-user"])
def test_nothing_that_a_coding_agent_does_all_day_is_stopped(make_caller, backend):
    caller = make_caller(backend)
    for name, text in FILES.items():
        path = caller.work / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (caller.work / "lines").mkdir()
    for number, line in enumerate(ORDINARY):
        (caller.work / "lines" / f"{number:03}").write_text(line + "\n")
    (caller.work / "drive").write_text(_DRIVER)
    for path in (caller.work, *caller.work.rglob("*")):
        caller.own(path)
    line = f"bash drive {shlex.quote(str(caller.work / 'project'))}"
    done = caller.substrate("--fresh", "--discard", "-c", line, timeout=600)
    assert (done.returncode, done.stdout) == (0, b""), done.stdout + done.stderr
    events = caller.events()
    decided = [e["body"] for e in events if e["event_type"] == "policy_decision"]
    assert decided == []
    (start,) = [e["body"] for e in events if e["event_type"] == "session_start"]
    assert start["isolation"]["layers"]["gate"] == {"on": True}
    assert b"denied" not in done.stderr and b"killed" not in done.stderr


def test_there_are_enough_of_them():
    assert len(set(ORDINARY)) == len(ORDINARY) >= 100
