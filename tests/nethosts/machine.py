"""A machine of the tests: namespaces without names, kept by one process (agent.py), gone with it.

The namespaces are network and mounts; a machine of servers has processes of its own too. Nothing
of them is seen on the host: interfaces are made inside, and a mount stays inside.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
_ANSWER_S = 60.0
#: of programs on a machine: nothing from the environment of whoever runs the tests
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


class Machine:
    """`pid`: the process whose namespaces are the machine's, as this host counts."""

    def __init__(self, name: str, base: Path, *, processes: bool) -> None:
        self.name, self._processes = name, processes
        own = ["--pid", "--fork", "--kill-child", "--mount-proc"] if processes else []
        self._complaints = base / f"{name}.stderr"
        with open(self._complaints, "ab") as complaints:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--net", "--mount", "--propagation", "private", *own),
                    *(sys.executable, "-S", "-m", "tests.nethosts.agent"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                cwd="/",
                env={**ENVIRONMENT, "PYTHONPATH": str(PROJECT)},
            )
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<machine {self.name} {self.pid}>"

    def wait_ready(self) -> None:
        assert "ready" in self._answer()

    def enter(self) -> list[str]:
        """The words before those of a program of the host that is to run on the machine."""
        spaces = f"/proc/{self.pid}/ns"
        own = [f"--pid={spaces}/pid_for_children"] if self._processes else []
        return ["nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", *own]

    def run(self, *words: str, content: str = "") -> str:
        """Runs a program there as root; its output."""
        done = subprocess.run(
            [*self.enter(), *words],
            input=content,
            capture_output=True,
            text=True,
            timeout=60,
            env=ENVIRONMENT,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{words} on {self.name}: {done.stdout}{done.stderr}")
        return done.stdout

    def configure(self, settings: Mapping[str, int], lines: Sequence[str]) -> None:
        """Settings below /proc/sys/net, then lines of ip-link(8), ip-address(8), ip-route(8)."""
        script = "".join(f"echo {n} > /proc/sys/net/{name}\n" for name, n in settings.items())
        self.run("sh", "-euc", f"{script}exec ip -batch -", content="\n".join(lines) + "\n")

    def order(self, do: str, **order: Any) -> dict[str, Any]:
        """An order to the agent, and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], _ANSWER_S)
        line = stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"{self.name} does not answer: {self.complaints()}")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise RuntimeError(f"{self.name}: {told['error']}")
        return told

    def complaints(self) -> str:
        """What its servers wrote to standard error: bugs of theirs."""
        return self._complaints.read_text(errors="replace")

    def namespaces(self) -> dict[str, str]:
        """Its own namespaces: kind → how the kernel calls it (`net:[4026532000]`)."""
        found = {}
        for kind in ("net", "mnt", "pid_for_children"):
            told = os.readlink(f"/proc/{self.pid}/ns/{kind}")
            if told != os.readlink(f"/proc/self/ns/{kind}"):
                found[kind] = told
        return found

    def processes(self) -> list[int]:
        """Pids of all who are in its network, but those that keep it."""
        wanted = os.readlink(f"/proc/{self.pid}/ns/net")
        return [pid for pid in inhabitants(wanted) if pid != self.pid]

    def close(self) -> None:
        """Ends the machine and what was left running on it; waits until all is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # Held open, so that the kernel gives its number to no other namespace meanwhile: whoever
        # is found in it is ours.
        network = -1
        if self._process.poll() is None:
            network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=30)
            self._process.stdout.close()
            if network != -1:
                _end_all(os.readlink(f"/proc/self/fd/{network}"))
        finally:
            if network != -1:
                os.close(network)


def _end_all(network: str) -> None:
    """Kills whoever is in a network namespace that its caller holds open and is not in."""
    if network == os.readlink("/proc/self/ns/net"):
        raise AssertionError("that is our own network")
    deadline = time.monotonic() + 10
    while left := inhabitants(network):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                process = os.pidfd_open(pid)
                try:
                    # Looked at again: only now it is surely this process that is meant.
                    if os.readlink(f"/proc/{pid}/ns/net") == network:
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running: {left}")
        time.sleep(0.002)


def inhabitants(namespace: str) -> list[int]:
    """Pids of the processes in a namespace, by how the kernel calls it."""
    kind = namespace.partition(":")[0]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/ns/{kind}") == namespace:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is one of the kernel's
    return found
