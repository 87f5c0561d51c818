"""`substrate run -- AGENT`: whatever is below an agent is in its world and on its record (shell.md §4)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from substrate.telemetry.verifier import main as verify

AGENT = '''
"""An agent that has subagents, which have shells; one of them is started in the background."""
import os, subprocess, sys

def shell(text, **more):
    return subprocess.run(["/bin/bash", "-c", "-l", f"eval '{text}' < /dev/null && pwd -P >| /tmp/claude-0a0b-cwd"],
                          check=False, capture_output=True, text=True, **more)

def subagent(depth):
    shell(f"echo depth {depth} > depth{depth}")
    if depth:
        subprocess.run([sys.executable, __file__, str(depth - 1)], check=True)

if len(sys.argv) > 1:
    subagent(int(sys.argv[1]))
    sys.exit(0)
assert shell("echo plan; exit 3").returncode == 3
with open("edited.py", "w") as file:  # its own file tool: no shell
    file.write("x = 1\\n")
behind = subprocess.Popen(["setsid", "sh", "-c", "echo behind > behind; exec sleep 0.2"])
subagent(2)
env = dict(os.environ)
env.pop("SUBSTRATE_SESSION"); env.pop("SUBSTRATE_PARENT_SPAN")
subprocess.run(["env", "-i", "/bin/sh", "-c", "echo forgetful > forgetful"], env=env, check=True)
pid = os.fork()
if pid == 0:  # twice forked, a session of its own
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sh", ["renamed-shell", "-c", "echo daemon > daemon"])
    os._exit(0)
os.waitpid(pid, 0)
behind.wait()
while not os.path.exists("daemon"):
    pass
print("agent done")
sys.exit(7)
'''


@pytest.fixture
def agent(place):
    path = place.work / "agent.py"
    path.write_text(AGENT)
    return path


def lines_of(place):
    return [json.loads(line) for line in (place.home / "trace.jsonl").read_text().splitlines()]


def test_all_below_an_agent_is_in_the_world_and_on_the_record(place, agent):
    done = place.run("run", "--", sys.executable, str(agent), status=7)
    assert done.stdout == b"agent done\n"
    assert sorted(os.listdir(place.work)) == ["agent.py"]
    changed = set(place.out("diff", "--name-only").split())
    names = ["edited.py", "behind", "depth0", "depth1", "depth2", "forgetful", "daemon"]
    assert {str(place.work / name) for name in names} <= changed
    lines = lines_of(place)
    (start,) = [line for line in lines if line["event_type"] == "command_start"]
    starts = [line for line in lines if line["event_type"] == "process_start"]
    shown = [" ".join(map(str, line["body"]["argv"])) for line in starts]
    for depth in range(3):
        assert any(f"agent.py {depth}" in text for text in shown if depth < 2) or depth == 2
        assert any(f"eval 'echo depth {depth} > depth{depth}'" in text for text in shown)
    for text in (
        "renamed-shell -c echo daemon > daemon",
        "env -i /bin/sh",
        "setsid sh -c",
        "sleep 0.2",
    ):
        assert any(text in each for each in shown), (text, shown)
    assert len({line["span_id"] for line in starts}) == len(starts)
    # each hangs below the agent, by who forked it
    parents = {line["span_id"]: line["parent_span_id"] for line in starts}
    for span in parents:
        while span in parents:
            span = parents[span]
        assert span == start["span_id"]
    assert verify([os.fspath(place.home / "trace.jsonl")]) == 0
    place.run("discard")


def test_what_an_agent_left_running_ends_with_it(place):
    marker = f"314.{os.getpid()}"
    place.run("run", "--", "sh", "-c", f"setsid sleep {marker} & exit 0")
    ps = subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True)
    assert ps.returncode == 1


def test_an_agent_s_own_hooks_say_that_they_are_in_a_world(place, agent):
    """Its commands are on the record themselves; its hooks neither break it nor reach the record."""
    program = Path(sys.executable).with_name("substrate")
    given = json.dumps({"tool_name": "Bash", "tool_input": {"command": "ls"}, "tool_use_id": "t1"})
    done = place.run("run", "--", "sh", "-c", f"echo '{given}' | {program} hook claude PreToolUse")
    assert b"this is a world" in done.stderr
    place.run("-c", "true")
    assert not [line for line in lines_of(place) if line["event_type"] == "tool_call"]
