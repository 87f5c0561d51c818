"""An internet of our own: a client machine, where programs run as on a host, and the servers.

Servers start when they are first asked for, so a test names the one that it needs before it runs
what should reach it. See network.py for the machines and what runs on them. Needs root.

    with Hosts() as hosts:
        hosts.run(["curl", "-s", f"http://{hosts.plain.name}/"])
        (connection,) = hosts.plain.wait_closed()
"""

from functools import cached_property
from pathlib import Path

from tests.nethosts import plan, programs
from tests.nethosts.network import Network
from tests.nethosts.servers import Server


class Hosts(Network):
    """The servers of the plan. Each is a process on the server machine; `serve` makes others."""

    @cached_property
    def plain(self) -> Server:
        """HTTP/1.1 (http_server.py)."""
        return self.serve("plain.example.net", plan.PLAIN, (80, 8080))

    @cached_property
    def secure(self) -> Server:
        """HTTP/1.1 over TLS 1.2 and 1.3, for two names that share the address."""
        tls = ("secure.example.net", "neighbour.example.net")
        return self.serve("secure.example.net", plan.SECURE, (443, 8443), tls=tls)

    @cached_property
    def six(self) -> Server:
        """HTTP at a host that has IPv6 only."""
        return self.serve("six.example.net", plan.SIX, (80,))

    @cached_property
    def six_secure(self) -> Server:
        return self.serve("six.example.net", plan.SIX, (443,), tls=("six.example.net",))

    @cached_property
    def raw(self) -> Server:
        """Bytes without a protocol; what a port does: plan.RAW_PORTS."""
        ports = plan.RAW_PORTS
        return self.serve("raw.example.net", plan.RAW, ports, "raw", ports=ports)

    @cached_property
    def udp(self) -> Server:
        """Echo of datagrams at ports 7 and 443."""
        return self.serve("udp.example.net", plan.UDP, (), "datagrams", udp_ports=(7, 443))

    @cached_property
    def h2(self) -> Server:
        """nginx with HTTP/2 and HTTP/1.1 over TLS, at port 80 HTTP/2 without it; files /1000, /1000000, /20000000."""
        behind = {443: programs.NGINX_PORT, 80: programs.NGINX_PORT + 1}
        made = self.serve("h2.example.net", plan.H2, behind, "tap", behind=behind)
        log = self.base / f"{self._key(made)}.log"
        certificate = self.authority.certify("h2.example.net")
        programs.start_nginx(self.server, self.base, log, certificate)
        return made

    @cached_property
    def git(self) -> Server:
        """git over HTTPS: https://git.example.net/git/project.git."""
        return self.serve(
            "git.example.net",
            plan.GIT,
            (443,),
            tls=("git.example.net",),
            git=str(self._repositories),
            git_uid=programs.GIT_UID,
        )

    @cached_property
    def git_ssh(self) -> Server:
        """sshd at ports 22 and 2222: git@git.example.net:project.git; see `ssh_environment`."""
        _ = self._ssh_files
        behind = dict.fromkeys((22, 2222), programs.SSH_PORT)
        return self.serve("git.example.net", plan.GIT, behind, "tap", behind=behind)

    @property
    def ssh_environment(self) -> dict[str, str]:
        """With it git uses the key of `git_ssh`, and knows its host key."""
        key, known = self._ssh_files
        return {
            "GIT_SSH_COMMAND": f"ssh -F /dev/null -i {key} -o UserKnownHostsFile={known}"
            " -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o BatchMode=yes"
        }

    @cached_property
    def _ssh_files(self) -> tuple[Path, Path]:
        return programs.start_sshd(self.server, self.base, self._repositories)

    @cached_property
    def _repositories(self) -> Path:
        return programs.make_repository(self.base)

    @cached_property
    def database(self) -> Server:
        """PostgreSQL: host=db.example.net user=postgres, no password, with TLS or without."""
        certificate = self.authority.certify("db.example.net")
        programs.start_database(self.server, self.base, certificate)
        behind = {5432: programs.DATABASE_PORT}
        return self.serve("db.example.net", plan.DATABASE, behind, "tap", behind=behind)

    @cached_property
    def packages(self) -> Server:
        """An index for pip: https://pypi.example.net/simple/ with nethosts-probe."""
        index = str(programs.make_index(self.base))
        name = "pypi.example.net"
        return self.serve(name, plan.PACKAGES, (443,), tls=(name,), files=index)

    @cached_property
    def metadata(self) -> Server:
        """HTTP at 169.254.169.254, as a cloud's metadata service."""
        return self.serve("metadata.example.net", plan.METADATA, (80,))

    @cached_property
    def private(self) -> Server:
        """HTTP at private addresses of each kind."""
        return self.serve("private.example.net", plan.PRIVATE, (80,))

    @cached_property
    def secret(self) -> Server:
        """Answers at many ports, and nothing may ever come: see `secret_untouched`."""
        return self.serve(
            "secret.example.net",
            plan.SECRET,
            plan.SECRET_PORTS,
            "raw",
            ports={},
            otherwise="echo",
            udp_ports=(53, 123, 443),
        )

    def secret_untouched(self) -> None:
        """Fails when anything has come to the secret server since the last `forget`."""
        assert not self.secret.connections() and not self.secret.datagrams()
        touched = [packet for packet in self.packets() if packet.destination in plan.SECRET]
        assert not touched, touched
