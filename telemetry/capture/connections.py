"""Calls into events of the network: who listens, accepts, connects and asks name servers.

Logic only: what the addresses mean is in network.py. A socket is known by the kernel's own name for
it, or, of backends that cannot ask, by its process and descriptor. Who has reached out from which
local port goes into ports.py, whether an event tells of the call or not.
"""

from __future__ import annotations

import errno
from _socket import AF_UNSPEC, SOCK_DGRAM

from substrate.telemetry.capture import calls, intents, network, records
from substrate.telemetry.capture.ports import Ports
from substrate.telemetry.capture.records import int_argument
from substrate.telemetry.trace.octets import text_or_b64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from substrate.telemetry.capture.batches import Batches
    from substrate.telemetry.capture.network import Address, Local, Socket
    from substrate.telemetry.capture.processes import Process, Tree
    from substrate.telemetry.capture.steps import Steps
    from substrate.telemetry.capture.summary import Summary

_MOST_SOCKETS: Final = 16384
#: a connection by TCP that ended so has no port any more
_ENDED: Final = ("ECONNREFUSED", "ECONNRESET", "ETIMEDOUT")
#: nothing was sent: the port is another's, or the socket is connected already, or is none
_NOT_BEGUN: Final = frozenset(
    (
        *("EADDRNOTAVAIL", "EADDRINUSE", "EISCONN", "EALREADY", "EINVAL", "EAFNOSUPPORT"),
        *("EFAULT", "EBADF", "ENOTSOCK", "EACCES", "EAGAIN", "ENOBUFS", "ENOMEM"),
    )
)


class Connections:
    """What a command's processes do with sockets. `put` takes the body of an event, and whose it
    is."""

    __slots__ = (
        *("_batches", "_count", "_put", "_sockets", "_steps", "_summary", "_tree"),
        "ports",
    )

    def __init__(
        self,
        tree: Tree,
        batches: Batches,
        summary: Summary,
        put: Callable[[Any, Process], None],
        steps: Steps,
    ) -> None:
        self._tree, self._batches, self._summary = tree, batches, summary
        self._put, self._steps = put, steps
        self._sockets: dict[bytes, Socket] = {}
        self._count = 0
        self.ports = Ports()

    def call(
        self,
        process: Process,
        tid: int,
        time_us: int,
        name: str,
        shape: tuple[int, ...],
        args: list[int],
        items: dict[int, Any],
        outcome: int | str,
    ) -> None:
        if shape[8] & calls.NEW_SOCKET:
            if type(outcome) is int:
                key = items.get(records.OPENED) or b"%d:%d" % (process.proc, outcome)
                self._sockets.pop(key, None)
                self._keep_socket(
                    key, network.Socket(int_argument(args[0]), int_argument(args[1]) & 0xF)
                )
            return
        if name in ("socketpair", "socketcall"):
            return
        socket = self._socket(process, args, items)
        addresses = [network.parse_address(text) for text in items.get(records.ADDRESS, ())]
        if name == "sendmmsg" and type(outcome) is int:
            del addresses[outcome:]  # so many were sent
        address = addresses[-1] if addresses else None
        local = self._reaches(process, time_us, socket, address, items, outcome)
        if name == "bind":
            self._makes_socket(process, tid, time_us, address, outcome)
            if type(outcome) is int:
                socket.bound = address
                if socket.kind == SOCK_DGRAM and address is not None:
                    self._listens(process, time_us, socket, outcome)
        elif name == "listen":
            socket.bound = address or socket.bound
            self._listens(process, time_us, socket, outcome)
        elif name in ("accept", "accept4"):
            if outcome == intents.UNOBSERVED or type(outcome) is int:
                self._accepts(process, time_us, socket, address)
        elif name == "connect":
            if address is not None and address.family != 0:
                socket.peer = address
                self._connects(process, time_us, socket, address, outcome, local)
        else:
            for address in addresses or (None,):  # sendmmsg(2): several messages
                self._sends(process, time_us, socket, address, outcome, local)
            self._questions(process, time_us, (*addresses, socket.peer), items)

    def interrupted(
        self, process: Process, time_us: int, args: list[int], items: dict[int, Any]
    ) -> None:
        """A call that begins again, or will be told later: what it has sent is on its way already."""
        if records.LOCAL in items:
            addresses = [network.parse_address(text) for text in items.get(records.ADDRESS, ())]
            socket = self._socket(process, args, items)
            address = addresses[-1] if addresses else None
            self._reaches(
                process, time_us, socket, address, items, intents.result_text(-errno.EINTR)
            )

    def _reaches(
        self,
        process: Process,
        time_us: int,
        socket: Socket,
        address: Address | None,
        items: dict[int, Any],
        outcome: int | str,
    ) -> Local | None:
        """From where a call has reached out. A connection by TCP is of whoever began it: that it
        is asked for again, to see what came of it, makes no other one."""
        if address is not None and address.family == AF_UNSPEC:
            socket.port = None  # a connect(2) that ends what was before
            return None
        item = items.get(records.LOCAL)
        local = None if item is None else network.parse_local(item)
        if local is None:
            return None
        if outcome in _NOT_BEGUN and local.protocol == "tcp":
            return local
        if local.protocol != "tcp" or local.port != socket.port:
            peer = None
            if address is not None and address.ip is not None and address.port is not None:
                peer = address.ip, address.port
            self.ports.add(
                *(local.protocol, local.port, time_us, process.proc, process.span, peer),
                *(process.program, process.pid, local.ip or ""),
            )
        if local.protocol == "tcp":
            socket.port = None if outcome in _ENDED else local.port
        return local

    def _socket(self, process: Process, args: list[int], items: dict[int, Any]) -> Socket:
        key = items.get(records.BASE) or b"%d:%d" % (process.proc, int_argument(args[0]))
        found = self._sockets.get(key)
        if found is None:
            found = self._keep_socket(key, network.Socket())
        return found

    def _keep_socket(self, key: bytes, socket: Socket) -> Socket:
        """Nobody tells when one is closed, so the oldest are forgotten: what is known of them is
        where they were bound, and with whom they were connected."""
        self._sockets[key] = socket
        if len(self._sockets) > _MOST_SOCKETS:
            del self._sockets[next(iter(self._sockets))]
        return socket

    def _makes_socket(
        self,
        process: Process,
        tid: int,
        time_us: int,
        address: Address | None,
        outcome: int | str,
    ) -> None:
        """bind(2) to a path makes a file there (unix(7))."""
        named = None if address is None else address.path
        if not named or named[:1] == b"\0":
            return
        place = self._tree.place_of(process, tid)
        path = self._steps.absolute(named, place.cwd, place, time_us)
        self._batches.add(process, time_us, tid, "bind", path, "create", outcome)
        self._summary.add("create", path, None, outcome)

    def _listens(self, process: Process, time_us: int, socket: Socket, outcome: int | str) -> None:
        from substrate.telemetry.trace.events.net import NetListen

        bound = socket.bound
        self._put(
            NetListen(
                proc=process.proc,
                ip=None if bound is None else bound.ip,
                port=None if bound is None else bound.port,
                protocol=socket.protocol(bound),
                path=None if bound is None else bound.path,
                result=None if type(outcome) is int else str(outcome),
                extra=(("mono_us", time_us),),
            ),
            process,
        )

    def _accepts(
        self, process: Process, time_us: int, socket: Socket, address: Address | None
    ) -> None:
        from substrate.telemetry.trace.events.net import NetAccept

        self._count += 1
        extra: list[tuple[str, Any]] = [("mono_us", time_us)]
        if address is not None and address.path:
            extra.append(("path", text_or_b64(address.path)))
        if socket.bound is not None and socket.bound.port is not None:
            extra.append(("local_port", socket.bound.port))
        self._put(
            NetAccept(
                connection=self._connection(),
                proc=process.proc,
                ip=None if address is None else address.ip,
                port=None if address is None else address.port,
                protocol=socket.protocol(address),
                extra=tuple(extra),
            ),
            process,
        )

    def _connection(self) -> int:
        """A number of the session: of the process that made it, and counted there."""
        return self._tree.root.proc * 1_000_000 + self._count

    def _connects(
        self,
        process: Process,
        time_us: int,
        socket: Socket,
        address: Address,
        outcome: int | str,
        local: Local | None,
    ) -> None:
        from substrate.telemetry.trace.events.net import NetConnect

        self._count += 1
        extra: list[tuple[str, Any]] = [("mono_us", time_us)]
        protocol = socket.protocol(address)
        if address.path is not None:
            extra.append(("path", text_or_b64(address.path)))
        if local is not None:
            extra.append(("local_port", local.port))
            if local.ip is not None:
                extra.append(("local_ip", local.ip))
        self._put(
            NetConnect(
                connection=self._connection(),
                proc=process.proc,
                domain=None,
                ip=address.ip,
                port=address.port,
                protocol=protocol,
                name=None,
                decision="observed",
                rule=None,
                result=outcome if type(outcome) is str else None,
                extra=tuple(extra),
            ),
            process,
        )
        self._summary.reached(_endpoint(protocol, address))

    def _sends(
        self,
        process: Process,
        time_us: int,
        socket: Socket,
        address: Address | None,
        outcome: int | str,
        local: Local | None,
    ) -> None:
        """Datagrams: each address once a socket."""
        if address is not None:
            key = (address.ip, address.port, address.path)
            if key not in socket.told:
                if len(socket.told) < 4096:  # further ones are told each time
                    socket.told.add(key)
                self._connects(process, time_us, socket, address, outcome, local)

    def _questions(
        self,
        process: Process,
        time_us: int,
        to: tuple[Address | None, ...],
        items: dict[int, Any],
    ) -> None:
        """Questions to name servers, each time. `to`: where any of the messages goes."""
        if any(address is not None and address.port == network.DNS_PORT for address in to):
            for data in items.get(records.DATA, ()):
                question = network.parse_question(data)
                if question is not None:
                    self._asks(process, time_us, question)

    def _asks(self, process: Process, time_us: int, question: tuple[bytes, str]) -> None:
        from substrate.telemetry.trace.events.net import DnsQuery

        self._put(
            DnsQuery(
                proc=process.proc,
                domain=question[0],
                qtype=question[1],
                rcode="unobserved",
                answers=(),
                decision="observed",
                rule=None,
                extra=(("mono_us", time_us),),
            ),
            process,
        )


def _endpoint(protocol: str, address: Address) -> str:
    if address.path is not None:
        path = address.path.decode("utf-8", "backslashreplace").replace("\0", "@", 1)
        return f"unix:{path}"
    if address.ip is None:
        return protocol
    ip = f"[{address.ip}]" if ":" in address.ip else address.ip
    return f"{protocol}://{ip}:{address.port}"
