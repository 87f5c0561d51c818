"""The process that stands for a machine: it is in the machine's namespaces and starts its servers.

Takes orders as lines of JSON on standard input, answers each with a line on standard output, and
ends with the input, or with whoever started it; its servers end with it. On a machine with
processes of its own it is their first, so that the kernel kills all the others.

    {"do": "serve", "kind": …, "log": path, "tcp": [[address, port]…], "udp": […], "options": {…}}
    {"do": "program", "words": […], "uid": …, "gid": …, "output": path, "ready": [address, port]}
    {"do": "stop", "pid": …}    {"do": "ask", "address": …, "name": …}
    {"do": "watch", "interface": …}    {"do": "wire"}

The listeners of a server are there before the answer, so whoever gets it may connect.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from substrate.world import linux
from tests.nethosts import connections
from tests.nethosts.wire import Watch

_READY_S = 30.0
_ended: set[int] = set()
_watch: list[Watch] = []


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            _ended.add(pid)


def _born(act: Callable[[], None]) -> int:
    """A child that ends with us. `act` execs or never returns."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)  # standard output is the answers'
        act()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        os._exit(1)


def _serve(order: dict[str, Any]) -> dict[str, Any]:
    listeners = [connections.listen(*place) for place in order.get("tcp", ())]
    sockets = [connections.datagrams(*place) for place in order.get("udp", ())]
    options = order.get("options", {})

    def act() -> None:
        log = connections.Log(order["log"])
        # Each kind is imported by the process that needs it.
        if order["kind"] == "dns":
            from tests.nethosts import dns_server

            dns_server.run(listeners, sockets, log, options)
        if order["kind"] == "http":
            from tests.nethosts import http_server

            connections.serve(listeners, log, http_server.handler(options))
        from tests.nethosts import raw_servers

        if order["kind"] == "datagrams":
            raw_servers.echo_datagrams(sockets, log)
        made = {"raw": raw_servers.handler, "tap": raw_servers.tap}[order["kind"]](options)
        if sockets:  # datagrams are noted, not answered
            raw_servers.note_datagrams(sockets, log)
        connections.serve(listeners, log, made)

    pid = _born(act)
    for sock in listeners + sockets:
        sock.close()
    return {"pid": pid}


def _program(order: dict[str, Any]) -> dict[str, Any]:
    def act() -> None:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if order.get("uid"):
            os.setgroups([])
            os.setgid(order["gid"])
            os.setuid(order["uid"])
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir("/")
        os.execve(order["words"][0], order["words"], {"PATH": os.environ["PATH"], "LC_ALL": "C"})

    pid = _born(act)
    deadline = time.monotonic() + _READY_S
    while "ready" in order:
        try:
            socket.create_connection(tuple(order["ready"]), timeout=1).close()
            break
        except OSError:
            if pid in _ended or time.monotonic() > deadline:
                with open(order["output"], encoding="utf-8", errors="replace") as file:
                    raise RuntimeError(f"{order['words']}: {file.read()}") from None
            time.sleep(0.01)  # bounded: a program says by its listener only that it is ready
    return {"pid": pid}


def _stop(order: dict[str, Any]) -> dict[str, Any]:
    pid = order["pid"]
    if pid not in _ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # the handler took it
            os.waitpid(pid, 0)
    return {}


def _ask(order: dict[str, Any]) -> dict[str, Any]:
    """A question to the name server that is answered after all that came before it."""
    question = b"".join(bytes((len(p),)) + p for p in order["name"].encode().split(b".")) + b"\0"
    packet = b"\0\7\0\0\0\1\0\0\0\0\0\0" + question + b"\0\1\0\1"
    family = socket.AF_INET6 if ":" in order["address"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(packet, (order["address"], 53))
        sock.recvfrom(512)
    return {}


def _start_watch(order: dict[str, Any]) -> dict[str, Any]:
    _watch.append(Watch(order["interface"]))
    return {}


def _wire(_: dict[str, Any]) -> dict[str, Any]:
    return {"packets": [packet for watch in _watch for packet in watch.drain()]}


_ORDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "serve": _serve,
    "program": _program,
    "stop": _stop,
    "ask": _ask,
    "watch": _start_watch,
    "wire": _wire,
}


def main() -> None:
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the tests
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            told = _ORDERS[order["do"]](order)
        except Exception as error:  # noqa: BLE001 - the process's edge: the test is told
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
