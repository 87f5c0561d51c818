"""The servers as a test knows them: where they are, what they saw."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.nethosts import seen
from tests.nethosts.machine import Machine


class Server:
    """A server's process on a machine. `name`: its first name; `addresses`: where it listens."""

    def __init__(
        self,
        machine: Machine,
        log: Path,
        name: str,
        addresses: tuple[str, ...],
        ports: Iterable[int],
        kind: str,
        options: dict[str, Any] | None = None,
        udp_ports: Iterable[int] = (),
    ) -> None:
        self.name, self.addresses, self.ports = name, addresses, tuple(ports)
        self.address = addresses[0]
        self.machine, self._log = machine, log
        log.touch()
        told = machine.order(
            "serve",
            kind=kind,
            log=str(log),
            tcp=[(address, port) for address in addresses for port in self.ports],
            udp=[(address, port) for address in addresses for port in udp_ports],
            options=options or {},
        )
        #: its pid, as the machine counts
        self.pid: int = told["pid"]

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    def connections(self) -> list[seen.Connection]:
        return seen.connections(self._log)

    def wait_closed(self, count: int = 1) -> list[seen.Connection]:
        """Waits until there have been `count` connections and all are over; exactly so many."""
        found = seen.until(
            self.connections, lambda c: len(c) >= count and all(one.closed for one in c)
        )
        assert len(found) == count, found
        return found

    def requests(self) -> list[seen.Request]:
        """The HTTP requests of all connections, in order."""
        return [r for c in self.connections() for r in c.requests] + seen.behind(self._log)

    def wait_requests(self, count: int = 1) -> list[seen.Request]:
        """Waits for `count` requests: nginx writes them down when they have been answered."""
        found = seen.until(self.requests, lambda r: len(r) >= count)
        assert len(found) == count, found
        return found

    def datagrams(self) -> list[seen.Datagram]:
        return seen.datagrams(self._log)

    def forget(self) -> None:
        """Empties the log."""
        os.truncate(self._log, 0)

    def stop(self) -> None:
        """Kills its process: its connections end, its ports refuse."""
        self.machine.order("stop", pid=self.pid)


class Names(Server):
    """The name server, whose records can be changed at any time."""

    def __init__(
        self,
        machine: Machine,
        log: Path,
        name: str,
        addresses: tuple[str, ...],
        known: dict[str, tuple[str, ...]],
        aliases: dict[str, str],
    ) -> None:
        self._file = log.with_suffix(".records")
        self._first: dict[str, Any] = {n: record(*a) for n, a in known.items()}
        self._first |= {alias: {"CNAME": target} for alias, target in aliases.items()}
        self._records = dict(self._first)
        self._save()
        super().__init__(
            machine, log, name, addresses, (53,), "dns", {"records": str(self._file)}, (53,)
        )

    def _save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._records))
        new.rename(self._file)

    def point(self, name: str, *addresses: str, **other: Any) -> None:
        """From the next question on the name has these addresses; `other` as in dns_server.py
        (CNAME="…", TTL=0, SILENT=True, RCODE=2, TXT=["…"])."""
        self._records[name.lower()] = record(*addresses) | other
        self._save()

    def point_in_turns(self, name: str, *turns: tuple[str, ...], ttl: int = 0) -> None:
        """The name has the first addresses for the first question of each type, then the second
        ones …; the last stay. So a name is bound again between a check and its use."""
        self._records[name.lower()] = {"TURNS": [record(*turn) | {"TTL": ttl} for turn in turns]}
        self._save()

    def remove(self, name: str) -> None:
        del self._records[name.lower()]
        self._save()

    def queries(self) -> list[seen.Query]:
        """All questions that have reached the server until now."""
        barrier = "barrier.invalid"
        for address in self.addresses:
            self.machine.order("ask", address=address, name=barrier)
        return [query for query in seen.queries(self._log) if query.name != barrier]

    def asked(self) -> set[str]:
        """The names that it was asked for."""
        return {query.name for query in self.queries()}

    def forget(self) -> None:
        if self._records != self._first:
            self._records = dict(self._first)
            self._save()
        super().forget()


def record(*addresses: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for address in addresses:
        found.setdefault("AAAA" if ":" in address else "A", []).append(address)
    return found
