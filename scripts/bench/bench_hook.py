"""A hook: what an agent waits for before and after each call of a tool.

`substrate hook AGENT EVENT` with the agent's JSON on its standard input, from its start to its end. "shell": a
shell's command, about which the policy is asked; "file": another tool. The floor is the start of Python in the same venv.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import harness
from harness import BenchFailed, Context, Result, Sample, interleave, spawn

_SHELL = {"tool_name": "Bash", "tool_input": {"command": "git status --short && ls -la"}}
_DENIED = {"tool_name": "Bash", "tool_input": {"command": "rm -rf build"}}
_FILE = {"tool_name": "Write", "tool_input": {"file_path": "x.py", "content": "x = 1\n" * 200}}
_POLICY = '[[command]]\nmatch = ["rm", "-rf", "**"]\naction = "deny"\nreason = "no"\n'


def bench(context: Context) -> list[Result]:
    work = os.path.join(context.scratch, "work")
    os.makedirs(os.path.join(work, ".substrate"))
    with open(os.path.join(work, ".substrate/policy.toml"), "w") as file:
        file.write(_POLICY)
    os.chdir(work)
    environ = {**os.environ, "SUBSTRATE_HOME": os.path.join(context.scratch, "state")}
    program = os.path.join(os.path.dirname(sys.executable), "substrate")
    subprocess.run([program, "--fresh", "-c", "true"], env=environ, check=True, capture_output=True)
    time.sleep(2.1)  # a policy that was written a moment ago is read each time

    def hook(event: str, said: dict[str, object], status: int = 0) -> Sample:
        told = {"session_id": "s", "transcript_path": "/t", "cwd": work, "tool_use_id": "t1"}
        text = json.dumps({**told, "hook_event_name": event, **said}).encode()
        start = time.perf_counter()
        done = subprocess.run(
            [program, "hook", "claude", event], env=environ, input=text, capture_output=True,
            check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if done.returncode != status:
            raise BenchFailed(f"a hook ended with {done.returncode}: {done.stderr!r}")
        return Sample(seconds)

    cases = {
        "python3 -c pass": lambda: spawn((sys.executable, "-c", "pass")),
        "before a shell's command": lambda: hook("PreToolUse", _SHELL),
        "before a shell's command, denied": lambda: hook("PreToolUse", _DENIED, 2),
        "before a file is written": lambda: hook("PreToolUse", _FILE),
        "after a shell's command": lambda: hook(
            "PostToolUse", {**_SHELL, "tool_response": {"stdout": "x\n" * 500}}
        ),
    }
    taken = interleave(cases, rounds=context.rounds, seed=context.seed, reference="python3 -c pass")
    os.chdir("/")
    return context.results("hook", taken, "python3 -c pass")


if __name__ == "__main__":
    harness.main(bench)
