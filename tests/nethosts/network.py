"""Two machines and the wire between them; what runs on the client, and what it sent.

    client machine ── veth ── server machine: every public, private and metadata address of plan.py

The client has the host's files, but its own network, /etc/resolv.conf, /etc/hosts,
/etc/nsswitch.conf and /etc/ssl/certs. Nothing joins it to the host's network: what no server has
is unreachable, on purpose and at once, or lost in a black hole. The name server is there from the
start. Several can be there at once; each has all the addresses. Needs root.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.nethosts import plan, seen
from tests.nethosts.machine import Machine
from tests.nethosts.servers import Names, Server

#: of the link: the client's end, the servers'
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
_HOSTS_FILE = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 client.example.net\n"
_RESOLV_CONF = f"nameserver {plan.DNS[0]}\noptions timeout:2 attempts:2\n"


def _neighbours(mac: str, *addresses: str) -> list[str]:
    """Known beforehand: to ask a neighbour for the first time costs IPv6 a second here."""
    return [f"neighbour add {one} lladdr {mac} dev wan nud permanent" for one in addresses]


class Network:
    """`client`, `server`: the machines. `resolv_conf`, `hosts_file`: the client's, to be written
    (in place) by tests."""

    def __init__(self) -> None:
        self._packets: list[seen.Packet] = []
        self.base = Path(tempfile.mkdtemp(prefix="substrate-nethosts-", dir="/var/tmp"))
        self.base.chmod(0o755)
        self._servers: dict[str, Server] = {}
        self.server = Machine("server", self.base, processes=True)
        self.client = Machine("client", self.base, processes=False)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        # Not installed everywhere: whoever only looks at this module needs no certificates.
        from tests.nethosts.certificates import Authority

        self.authority = Authority(self._folder("authority"))
        etc = self._folder("etc")
        self.resolv_conf, self.hosts_file = etc / "resolv.conf", etc / "hosts"
        (etc / "nsswitch.conf").write_text(
            "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
        )
        self._write_etc()
        self.server.wait_ready()
        self.client.wait_ready()
        self._join()
        self._mount(etc)
        self.server.order("watch", interface="wan")
        self.names = Names(
            self.server,
            self.base / "dns.log",
            "dns.example.net",
            plan.DNS,
            plan.NAMES,
            plan.ALIASES,
        )
        self._servers["dns"] = self.names

    def _folder(self, name: str) -> Path:
        folder = self.base / name
        folder.mkdir()
        return folder

    def _write_etc(self) -> None:
        for path, text in ((self.resolv_conf, _RESOLV_CONF), (self.hosts_file, _HOSTS_FILE)):
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def _join(self) -> None:
        # Addresses are ours at once: nobody else on the link is asked whether he has them.
        at_once = {"ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/dad_transmits": 0}
        # A router says that there is no way, each time; a host would only be silent.
        router = {
            "ipv4/ip_forward": 1,
            "ipv6/conf/all/forwarding": 1,
            "ipv4/icmp_ratelimit": 0,
            "ipv6/icmp/ratelimit": 0,
        }
        self.server.configure(at_once | router, [])
        # The server machine counts its processes by itself: it could not name the client's.
        self.client.configure(
            at_once,
            [
                "link set lo up",
                f"link add wan address {MACS[0]} type veth"
                f" peer name wan address {MACS[1]} netns {self.server.pid}",
                f"address add {plan.CLIENT}/24 dev wan",
                f"address add {plan.CLIENT6}/64 dev wan nodad",
                "link set wan up",
                *_neighbours(MACS[1], plan.GATEWAY, plan.GATEWAY6),
                f"route add default via {plan.GATEWAY}",
                f"route add ::/0 via {plan.GATEWAY6}",
            ],
        )
        self.server.configure(
            {},
            [
                "link set lo up",
                f"address add {plan.GATEWAY}/24 dev wan",
                f"address add {plan.GATEWAY6}/64 dev wan nodad",
                "link set wan up",
                *_neighbours(MACS[0], plan.CLIENT, plan.CLIENT6),
                *(f"route add local {served} dev lo" for served in plan.SERVED + plan.SERVED6),
                *(f"route add blackhole {lost}" for lost in plan.BLACK_HOLES + plan.BLACK_HOLES6),
                "route add unreachable default",
                "route add unreachable ::/0",
            ],
        )

    def _mount(self, etc: Path) -> None:
        """The client's own files. A name service of the host would ask for us, by its socket."""
        self.client.run(
            "sh",
            "-euc",
            'for name in resolv.conf hosts nsswitch.conf; do mount --bind "$1/$name" /etc/$name; done\n'
            'mount --bind "$2" /etc/ssl/certs\n'
            "for path in /run/nscd /run/systemd/resolve; do\n"
            '    [ ! -d "$path" ] || mount -t tmpfs -o mode=755 hidden "$path"\ndone',
            "sh",
            str(etc),
            str(self.authority.store),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- programs on the client

    @property
    def environment(self) -> dict[str, str]:
        """For programs that look for authorities, settings or ssh keys elsewhere than in /etc."""
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        return {
            "SSL_CERT_FILE": bundle,
            "NODE_EXTRA_CA_CERTS": bundle,
            "PIP_CERT": bundle,
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def enter(self, *, uid: int = 0, gid: int | None = None, cwd: str | Path = "/") -> list[str]:
        """The words before those of a program that is to run on the client."""
        who = []
        if uid != 0:
            gid = uid if gid is None else gid
            who = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        return [*self.client.enter(), *who, "env", "-C", str(cwd)]

    def _call(
        self,
        argv: Sequence[str | Path],
        uid: int,
        gid: int | None,
        cwd: str | Path,
        env: Mapping[str, str] | None,
    ) -> tuple[list[str], dict[str, str]]:
        words = [*self.enter(uid=uid, gid=gid, cwd=cwd), *(os.fspath(word) for word in argv)]
        standard = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self._home_of(uid)),
            "LANG": "C.UTF-8",
        }
        return words, {**standard, **self.environment, **(env or {})}

    def _home_of(self, uid: int) -> Path:
        """A home of its own: what a program leaves there goes with the hosts."""
        home = self.base / f"home-{uid}"
        if not home.is_dir():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        return home

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int = 0,
        gid: int | None = None,
        cwd: str | Path = "/",
        env: Mapping[str, str] | None = None,
        content: bytes = b"",
        status: int | None = 0,
        timeout: float = 60,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Runs a program on the client to its end. Its status must be `status` (None: any)."""
        words, environ = self._call(argv, uid, gid, cwd, env)
        done = subprocess.run(
            words, env=environ, input=content, capture_output=True, timeout=timeout
        )
        if status is not None:
            assert done.returncode == status, (argv, done.returncode, done.stdout, done.stderr)
        return done

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int = 0,
        gid: int | None = None,
        cwd: str | Path = "/",
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "subprocess.Popen[bytes]":
        """Starts a program on the client, with pipes; the caller waits for it."""
        words, environ = self._call(argv, uid, gid, cwd, env)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(words, env=environ, **{**pipes, **options})

    # --- servers, and what was seen

    def serve(
        self,
        name: str,
        addresses: tuple[str, ...],
        ports: Iterable[int],
        kind: str = "http",
        /,
        *,
        tls: Sequence[str] = (),
        on: Machine | None = None,
        udp_ports: Iterable[int] = (),
        **options: Any,
    ) -> Server:
        """Starts a server of one's own (kinds: agent.py). `tls`: names to have certificates for,
        each its own. `on`: the machine; the client's own is the place of a host's services."""
        if tls:
            options["tls"] = {one: str(self.authority.certify(one)) for one in tls}
        if kind == "http":
            options.setdefault("who", name)
        machine = on or self.server
        key = f"{len(self._servers)}-{name}"
        log = self.base / f"{key}.log"
        made = Server(machine, log, name, addresses, ports, kind, options, udp_ports)
        self._servers[key] = made
        return made

    def _key(self, server: Server) -> str:
        return next(key for key, one in self._servers.items() if one is server)

    def packets(self) -> list[seen.Packet]:
        """What the client has sent over the wire since the last `forget`, whatever it was: first
        packets of TCP, all others. What is not here did not leave."""
        told = self.server.order("wire")["packets"]
        self._packets += [seen.Packet(**packet) for packet in told]
        return list(self._packets)

    def forget(self) -> None:
        """Empties all logs, and sets names and the client's files back: for the next test."""
        self._write_etc()
        for server in self._servers.values():
            server.forget()
        self.server.order("wire")
        self._packets.clear()

    def complaints(self) -> str:
        """Tracebacks of servers; "" when all went well."""
        return self.server.complaints() + self.client.complaints()

    def close(self) -> None:
        """Ends everything: programs that were left on the client, servers, machines."""
        for machine in (self.client, self.server):
            machine.close()
        shutil.rmtree(self.base)
