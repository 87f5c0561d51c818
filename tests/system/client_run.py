"""One command in a world on the client of tests/nethosts, and what is known of it afterwards.

What the command was told, what its record says, what the servers counted. Not here: which
commands (test_egress_clients.py, test_egress_settings.py).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.nethosts import plan
from tests.nethosts.hosts import Hosts
from tests.nethosts.seen import Connection
from tests.nethosts.servers import Server
from tests.system.caller import Caller

#: substrate's own lines about the network: who, then what and why
_REFUSED = re.compile(
    r"substrate: (?:the network|(.+?) \(pid \d+\)(?: and .+?)? (?:was|were)) refused (.*)"
)
#: a connection's number is the egress engine's, not one of capture's
_EGRESS = 1 << 52


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that is over. `told`: substrate's own lines about what its network refused; `who`:
    the programs that these name, "" for none."""

    status: int
    stdout: bytes
    stderr: bytes
    session: Path
    events: list[dict[str, Any]] = field(repr=False)

    @property
    def told(self) -> list[str]:
        return [what for _, what in self._lines()]

    @property
    def who(self) -> list[str]:
        return [who for who, _ in self._lines()]

    def _lines(self) -> list[tuple[str, str]]:
        lines = self.stderr.decode(errors="replace").splitlines()
        found = map(_REFUSED.fullmatch, lines)
        return [(match[1] or "", match[2]) for match in found if match]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of the events of a kind; of connections, those that the engine reported."""
        found = [event["body"] for event in self.events if event["event_type"] == kind]
        return [body for body in found if body.get("connection", _EGRESS) >= _EGRESS]

    @property
    def end(self) -> dict[str, Any]:
        (body,) = self.of("command_end")
        return body

    @property
    def seconds(self) -> float:
        """From the command's start to its end."""
        return float(self.end["duration_us"]) / 1e6

    @property
    def scopes(self) -> dict[str, dict[str, int]]:
        return {scope.pop("scope"): scope for scope in map(dict, self.end["scopes_used"])}

    def program(self, proc: int | None) -> str:
        """The name of the last program that a process executed, or its parent did before it."""
        files = [body["exe"] for body in self.of("process_start") if body["proc"] == proc]
        parents = [body["parent"] for body in self.of("process_fork") if body["proc"] == proc]
        if not files and parents:
            return self.program(parents[0])
        return Path(files[-1]).name if files else ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Who runs commands on the client. `names`: environment of the programs."""

    hosts: Hosts
    caller: Caller
    environ: dict[str, str] = field(default_factory=dict)

    def run(
        self, line: str, *flags: str, status: int | None = 0, fresh: bool = True, **env: str
    ) -> Ran:
        """`substrate FLAGS -c LINE`, in a new world. `status`: what it has to be, None for a
        failure of the command's own."""
        caller = self.caller
        done = self.hosts.run(
            [caller.command, *(["--fresh"] if fresh else []), *flags, "-c", line],
            uid=caller.uid,
            gid=caller.gid,
            cwd=caller.work,
            env={**caller.environ, **self.environ, **env},
            status=status,
        )
        assert b'Traceback (most recent call last):\n  File "/var/tmp/substrate-system' not in (
            done.stderr
        ), done.stderr
        session = caller.sessions()[-1]
        events = caller.events(session)
        begins = [i for i, event in enumerate(events) if event["event_type"] == "command_start"]
        ran = Ran(
            status=done.returncode,
            stdout=done.stdout,
            stderr=done.stderr,
            session=session,
            events=events[begins[-1] :],
        )
        if status is None:
            assert 0 < ran.status <= 128, ran
        return ran


def only_to(hosts: Hosts, *servers: Server) -> None:
    """Nothing left the client but what goes to these servers, and questions for their names."""
    known = {address for server in servers for address in server.addresses}
    asking = {plan.DNS[0]} if servers else set()
    others = [packet for packet in hosts.packets() if packet.destination not in known | asking]
    assert not others, others
    assert hosts.names.asked() <= {server.name for server in servers}
    hosts.secret_untouched()


def counted(seen: list[Connection]) -> dict[str, int]:
    """What a scope says of connections that a server saw."""
    return {
        "connections": len(seen),
        "refused": 0,
        "bytes_in": sum(one.sent for one in seen),
        "bytes_out": sum(one.received for one in seen),
    }
