"""The network of the egress bench: three namespaces and what runs in them; nothing outside.

    behind ── veth, masquerade ── client ── veth ── server

`client` is the host on which everything is measured, with name service files of its own. `behind` is
the peer "veth + NAT" (where there is nft). On the server run egress_load.c as a server and as a name
server. Addresses are of RFC 5737, and of 10/8 for the inner link; they exist in here only. A
namespace lives as long as its keeper, and its keeper ends with us (PDEATHSIG). Needs root.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType

NAME = "server.example.net"
WEB, RAW = 80, 7000
PROXY = "127.0.0.1:8888"
_SERVER, _DNS = "203.0.113.10", "203.0.113.53"
_CLIENT_MAC, _SERVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
_READY_S = 20
HERE = os.path.dirname(os.path.abspath(__file__))

#: Of sh in the client's namespace: joins the namespace of process $inner to it, behind a NAT.
JOIN = """
ip -batch - <<END
link add in$inner type veth peer name away netns $inner
address add $net.1/30 dev in$inner
link set in$inner up
END
nsenter --net=/proc/$inner/ns/net ip -batch - <<END
link set lo up
address add $net.2/30 dev away
link set away up
route add default via $net.1
END
nft -f - <<END
table ip bench
flush table ip bench
table ip bench {
    chain out {
        type nat hook postrouting priority 100
        oifname wan ip saddr 10.0.0.0/8 masquerade
    }
}
END
"""
_TINYPROXY = """
Port 8888
Listen 127.0.0.1
Timeout 600
MaxClients 2000
LogLevel Critical
DisableViaHeader Yes
ConnectPort 80
ConnectPort 7000
"""


class NoNetwork(Exception):
    """What is needed to make it is not here."""


class Namespace:
    """Network and mounts of their own, kept by the process `pid`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def words(self, *argv: str) -> tuple[str, ...]:
        """The words that run a program there."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt",
                *argv)  # fmt: skip

    def run(self, *argv: str, content: str = "") -> None:
        subprocess.run(self.words(*argv), input=content.encode(), check=True)

    def ip(self, *lines: str) -> None:
        self.run("ip", "-batch", "-", content="\n".join(lines) + "\n")


class Net:
    """See the module. `load`: the program made of egress_load.c. `proxy`, `nft`: whether there is
    that peer."""

    def __init__(self, scratch: str) -> None:
        for needed in ("gcc", "ip", "nsenter", "unshare", "setpriv"):
            if shutil.which(needed) is None:
                raise NoNetwork(f"no {needed}")
        if os.geteuid() != 0:
            raise NoNetwork("network namespaces are made as root")
        self._programs: list[subprocess.Popen[bytes]] = []
        self._scratch = Path(scratch)
        self.load = os.path.join(scratch, "load")
        self.proxy = shutil.which("tinyproxy") is not None
        self.nft = shutil.which("nft") is not None
        source = os.path.join(HERE, "egress_load.c")
        subprocess.run(("gcc", "-O2", "-pthread", "-o", self.load, source), check=True)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        etc = self._scratch / "etc"
        etc.mkdir()
        for name, text in (
            ("resolv.conf", f"nameserver {_DNS}\n"),
            ("hosts", "127.0.0.1 localhost\n"),
            ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
        ):
            (etc / name).write_text(text, encoding="ascii")
        self.server, self.client = self._namespace(""), self._namespace(str(etc))
        self.client.ip(
            "link set lo up",
            f"link add wan address {_CLIENT_MAC} type veth peer name wan address {_SERVER_MAC}"
            f" netns {self.server.pid}",
            "address add 198.51.100.2/24 dev wan",
            "link set wan up",
            "route add default via 198.51.100.1",
        )
        self.server.ip(
            "link set lo up",
            "address add 198.51.100.1/24 dev wan",
            "link set wan up",
            "route add local 203.0.113.0/24 dev lo",
        )
        # What a connection leaves behind for a minute must not be what the next ones pay for: the
        # search for a free port takes milliseconds when most are taken.
        settings = {
            "net/ipv4/ip_local_port_range": "1024 65000",
            "net/ipv4/tcp_max_tw_buckets": "1000",
            "net/core/somaxconn": "4096",
            "net/ipv4/ip_forward": "1",
        }
        script = "; ".join(f"echo {value} > /proc/sys/{name}" for name, value in settings.items())
        for space in (self.server, self.client):
            space.run("sh", "-euc", script)
        self._program(self.server, self.load, "serve", _SERVER, str(WEB), str(RAW))
        self._program(self.server, self.load, "names", _DNS, NAME, _SERVER)
        if self.nft:
            self.behind = self._namespace(str(etc))
            words = ("env", f"inner={self.behind.pid}", "net=10.9.0", "sh", "-euc", JOIN)
            self.client.run(*words)
        if self.proxy:
            words = self._scratch / "tinyproxy.conf"
            words.write_text(_TINYPROXY, encoding="ascii")
            self._program(self.client, "tinyproxy", "-d", "-c", str(words), ready=False)

    def _namespace(self, etc: str) -> Namespace:
        """`etc`: a directory of files that stand for those in /etc there."""
        script = (
            f'for name in $(ls "{etc}"); do mount --bind "{etc}/$name" /etc/$name; done\n'
            "for path in /run/nscd /run/systemd/resolve; do\n"
            '    [ ! -d "$path" ] || mount -t tmpfs hidden "$path"\ndone\n'
            if etc
            else ""
        )
        words = ("unshare", "--net", "--mount", "--propagation", "private")
        script += "echo ready\nexec sleep infinity\n"
        return Namespace(self._start((*words, "sh", "-euc", script)).pid)

    def _program(self, where: Namespace, *argv: str, ready: bool = True) -> None:
        self._start(where.words(*argv), ready=ready)

    def _start(self, argv: tuple[str, ...], *, ready: bool = True) -> subprocess.Popen[bytes]:
        """A program that ends with us. `ready`: it says so when it is."""
        output = subprocess.PIPE if ready else subprocess.DEVNULL
        program = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *argv), stdin=subprocess.DEVNULL, stdout=output
        )
        self._programs.append(program)
        if program.stdout is not None:
            found, _, _ = select.select([program.stdout], [], [], _READY_S)
            if not found or program.stdout.readline() != b"ready\n":
                raise NoNetwork(f"{argv} did not begin")
        return program

    def close(self) -> None:
        for program in reversed(self._programs):
            program.send_signal(signal.SIGKILL)
            program.wait()
            if program.stdout is not None:
                program.stdout.close()
        self._programs.clear()

    def __enter__(self) -> Net:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
