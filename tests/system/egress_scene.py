"""Attacks on a world's network: what the tests of them share.

A program of ours runs on the client of an internet of our own, inside a world and, as the control,
without one. Who is attacked is the internet: its servers' logs and the wire say what came out.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

from tests.nethosts.hosts import Hosts
from tests.system.caller import Caller

HERE = Path(__file__).resolve().parent
PYTHON = "/usr/bin/python3"
#: who may be reached in these tests; it only listens
TARGET, TARGET_PLACE = "target.example.net", "203.0.113.30"


class Scene:
    """`hosts`: the internet; `caller`: whose world it is."""

    def __init__(self, hosts: Hosts, caller: Caller) -> None:
        self.hosts, self.caller = hosts, caller

    def program(self, name: str) -> Path:
        """A program of ours, where the caller's worlds can read it."""
        place = self.caller.work / name
        shutil.copyfile(HERE / name, place)
        place.chmod(0o755)
        self.caller.own(place)
        return place

    def _options(self, rules, options):
        allow = [word for rule in rules for word in ("--allow", rule)]
        return [*allow, *options]

    def run(self, line, *rules, options=(), status=0, timeout=60, env=None, content=b""):
        """A command line in a world with these rules."""
        done = self.hosts.run(
            [self.caller.command, *self._options(rules, options), "-c", line],
            uid=self.caller.uid,
            gid=self.caller.gid,
            cwd=self.caller.work,
            env={**self.caller.environ, **(env or {})},
            status=status,
            timeout=timeout,
            content=content,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    def start(self, line, *rules, options=(), env=None):
        """The same, running; its pid is the supervisor's."""
        return self.hosts.start(
            [self.caller.command, *self._options(rules, options), "-c", line],
            uid=self.caller.uid,
            gid=self.caller.gid,
            cwd=self.caller.work,
            env={**self.caller.environ, **(env or {})},
        )

    def attack(self, name, *words, rules=(), options=(), env=None, before="", timeout=60):
        """A program of ours in a world; what it prints."""
        told = " ".join(f"'{word}'" for word in words)
        line = f"{before}{PYTHON} -I -S {self.program(name)} {told}"
        done = self.run(line, *rules, options=options, env=env, timeout=timeout)
        return json.loads(done.stdout)

    def control(self, name, *words, uid=0):
        """The same program on the machine itself."""
        done = self.hosts.run([PYTHON, "-I", "-S", HERE / name, *words], uid=uid)
        return json.loads(done.stdout)

    def told(self, kind):
        """Bodies of the newest session's events that the network's own process told."""
        return [
            event["body"]
            for event in self.caller.events()
            if event["event_type"] == kind and event["component"] == "world"
        ]


def host_service(internet):
    """HTTP at the host's localhost, ports 7801 and 7802, one for all tests."""
    for server in internet._servers.values():
        if server.name == "the host":
            return server
    return internet.serve("the host", ("127.0.0.1", "::1"), (7801, 7802), on=internet.client)


def children(pid):
    """Pids of a process' children; none of one that has ended."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def engine_of(supervisor, network, bound_s=10.0):
    """The pid of the process that serves a world's network: a child of the zygote that is in the
    machine's network. Waits for it."""
    until = time.monotonic() + bound_s
    while time.monotonic() < until:
        for zygote in children(supervisor):
            for pid in children(zygote):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if os.readlink(f"/proc/{pid}/ns/net") == network and not is_world(pid):
                        return pid
        time.sleep(0.005)
    raise TimeoutError("no process serves the network")


def is_world(pid):
    """Whether a process is the first of a world: it has mounts of its own."""
    return os.readlink(f"/proc/{pid}/ns/pid_for_children") != os.readlink("/proc/self/ns/pid")


def status_of(pid):
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file)


def resident_kib(pid):
    """The most memory that it has had so far."""
    return int(status_of(pid)["VmHWM"].split()[0])


def is_gone(pid, bound_s):
    """Whether a process ends within that time."""
    until = time.monotonic() + bound_s
    while time.monotonic() < until:
        try:
            if status_of(pid)["State"].startswith(("Z", "X")):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.005)
    return False
