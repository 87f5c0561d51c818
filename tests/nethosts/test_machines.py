"""The machines: closed to the outside, several at once, and nothing of them stays."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nethosts import plan
from tests.nethosts.hosts import Hosts
from tests.nethosts.machine import PROJECT, inhabitants
from tests.nethosts.network import MACS
from tests.nethosts.seen import Packet, until
from tests.system import traces_left

_CONNECT = """
import socket, sys
for address in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.settimeout(float(sys.argv[1]))
    try:
        made.connect((address, 80))
        print(address, "connected")
    except OSError as error:
        print(address, type(error).__name__, error.errno)
"""


def _connect(hosts, *addresses, timeout_s=0.3):
    done = hosts.run(["/usr/bin/python3", "-Ic", _CONNECT, str(timeout_s), *addresses])
    return [line.split()[1:] for line in done.stdout.decode().splitlines()]


def _interfaces():
    done = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True)
    return json.loads(done.stdout)


def _on_the_host(base):
    """What could be seen of an internet from outside: its interfaces, mounts in its directory."""
    links = [link["ifname"] for link in _interfaces() if link.get("address") in MACS]
    return links + traces_left.mounts(base)


def test_the_client_has_a_network_of_its_own(hosts):
    told = json.loads(hosts.run(["ip", "-json", "address"]).stdout)
    assert {link["ifname"] for link in told} == {"lo", "wan"}
    found = {a["local"] for link in told for a in link["addr_info"] if a["scope"] == "global"}
    assert found == {plan.CLIENT, plan.CLIENT6}


def test_the_client_does_not_reach_the_real_host(hosts):
    """Neither at the host's own addresses nor beyond: all that it sends ends at the servers'
    machine, which has no other way out."""
    real = [
        a["local"] for link in _interfaces() for a in link["addr_info"] if link["ifname"] != "lo"
    ]
    real = [address for address in real if not address.startswith("fe80:")]
    assert real
    # With IPv6 the kernel hears it with its second packet, after a second.
    told = _connect(hosts, *real, timeout_s=10)
    # 113, 101: no route to host, network is unreachable
    assert all(line[-1] in ("113", "101") for line in told), told
    routes = json.loads(hosts.server.run("ip", "-json", "route"))
    assert [r["dst"] for r in routes if r.get("type") == "unreachable"] == ["default"]
    assert {r["dev"] for r in routes if "dev" in r} == {"wan"}
    links = json.loads(hosts.server.run("ip", "-json", "link"))
    assert {link["ifname"] for link in links} == {"lo", "wan"}


def test_unreachable_lost_and_refused(hosts):
    assert _connect(hosts, plan.UNREACHABLE, "203.0.113.99", timeout_s=10) == [
        ["OSError", "113"],
        ["ConnectionRefusedError", "111"],
    ]
    lost = (plan.BLACK_HOLE, "2001:db8:0:f::1")
    assert _connect(hosts, *lost) == [["TimeoutError", "None"]] * 2


def test_the_wire_is_watched(hosts):
    _connect(hosts, plan.PLAIN[0], plan.BLACK_HOLE, plan.SECRET[1], "127.0.0.1")
    hosts.run(["bash", "-c", f"echo x > /dev/udp/{plan.SECRET[0]}/9"])
    found = [packet for packet in hosts.packets() if packet.protocol != "icmp"]

    def packet(protocol, destination, port):
        source = plan.CLIENT6 if ":" in destination else plan.CLIENT
        return Packet(protocol=protocol, source=source, destination=destination, port=port)

    assert found == [
        packet("tcp", plan.PLAIN[0], 80),
        packet("tcp", plan.BLACK_HOLE, 80),
        packet("tcp", plan.SECRET[1], 80),
        packet("udp", plan.SECRET[0], 9),
    ]
    assert len(hosts.packets()) >= len(found)
    hosts.forget()
    assert hosts.packets() == []


def test_pings_are_seen_too(hosts):
    script = """
import socket
for family, kind, address in ((socket.AF_INET, 1, "203.0.113.66"), (socket.AF_INET6, 58, "2001:db8:0:2::66")):
    with socket.socket(family, socket.SOCK_RAW, kind) as made:
        made.sendto((b"\\x80" if kind == 58 else b"\\x08") + bytes(7), (address, 0))
"""
    hosts.run(["/usr/bin/python3", "-Ic", script])
    assert [(packet.protocol, packet.destination) for packet in hosts.packets()] == [
        ("icmp", plan.SECRET[0]),
        ("icmp6", plan.SECRET[1]),
    ]


def test_the_clients_files_are_its_own(hosts):
    with open("/etc/resolv.conf") as file:
        before = file.read()
    shown = hosts.run(["cat", "/etc/resolv.conf"]).stdout.decode()
    assert shown.startswith(f"nameserver {plan.DNS[0]}\n")
    hosts.resolv_conf.write_text(f"nameserver {plan.DNS[1]}\n")
    hosts.hosts_file.write_text("203.0.113.10 written.example.net\n")
    assert hosts.run(["getent", "ahostsv4", "written.example.net"]).stdout.startswith(
        b"203.0.113.10"
    )
    hosts.run(["getent", "ahostsv4", "plain.example.net"])
    assert {query.peer[0] for query in hosts.names.queries()} == {plan.CLIENT6}
    assert hosts.names.asked() == {"plain.example.net"}
    hosts.forget()
    assert hosts.run(["cat", "/etc/resolv.conf"]).stdout.decode() == shown
    with open("/etc/resolv.conf") as file:
        assert file.read() == before != shown


def test_programs_run_as_whom_and_where_they_should(hosts, tmp_path):
    words = ["sh", "-c", "id -u; id -g; id -G; pwd; echo $GIVEN; cat"]
    done = hosts.run(words, uid=65534, gid=65533, cwd="/usr", env={"GIVEN": "x"}, content=b"in")
    assert done.stdout.decode().split() == ["65534", "65533", "65533", "/usr", "x", "in"]
    with hosts.start(["cat"]) as process:
        assert process.communicate(b"piped", timeout=30) == (b"piped", b"")
    assert hosts.run(["false"], status=1).returncode == 1
    with pytest.raises(AssertionError):
        hosts.run(["false"])


def test_namespaces_can_be_made_on_the_client(hosts):
    """What substrate does itself: as root and without rights, one in another."""
    words = ["unshare", "-Urnm", "sh", "-c", "ip -o link | wc -l; mount -t tmpfs t /mnt && echo ok"]
    for uid in (0, 65534):
        assert hosts.run(words, uid=uid).stdout.split() == [b"1", b"ok"]


def test_several_at_once_have_the_same_addresses(hosts):
    with Hosts() as other:
        for one, length in ((hosts, 11), (other, 22)):
            assert one.plain
            one.run(["curl", "-sSo/dev/null", f"http://{plan.PLAIN[0]}/bytes/{length}"])
        for one, length in ((hosts, 11), (other, 22)):
            (seen,) = one.plain.wait_closed()
            assert seen.requests[0].target == f"/bytes/{length}"
        spaces = [m.namespaces()["net"] for h in (hosts, other) for m in (h.client, h.server)]
        assert len(set(spaces)) == 4


_ALL = (
    *("plain", "secure", "six", "six_secure", "raw", "udp", "h2", "git", "git_ssh", "database"),
    *("packages", "metadata", "private", "secret"),
)


@contextlib.contextmanager
def _held(pids):
    """The namespaces of two machines, which stay while they are looked at: the kernel would give
    their numbers to the next ones that anybody makes."""
    fds = []
    try:
        for pid in pids:
            for kind in ("net", "mnt", "pid_for_children"):
                fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                fds.append(fd)
        names = {os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
        names -= {os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt", "pid")}
        assert len(names) == 5  # two networks, two of mounts, one of processes
        yield names
    finally:
        for fd in fds:
            os.close(fd)


def _left(names):
    """Who is still in one of the namespaces; who but us holds it open, or has it mounted."""
    found = [(name, pid) for name in names for pid in inhabitants(name)]
    numbers = [re.search(r"\d+", name)[0] for name in names]
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or has nothing to show
            found += [(pid, fd) for fd in _fds(pid) if fd in names]
            with open(f"/proc/{pid}/mountinfo") as file:
                found += [(pid, line) for line in file if any(n in line for n in numbers)]
    return found


def _fds(pid):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            yield os.readlink(f"/proc/{pid}/fd/{fd}")


@pytest.mark.usefixtures("internet")  # skipped where that is
def test_nothing_is_left_after_the_end():
    made = Hosts()
    with _held([made.client.pid, made.server.pid]) as names:
        try:
            for name in _ALL:
                assert getattr(made, name)
            left = made.start(["sleep", "1000"])
            base = made.base
            assert len(_left(names)) > 20
            assert _on_the_host(base) == []
        finally:
            made.close()
        assert left.wait(timeout=30) == -signal.SIGKILL
        for pipe in (left.stdin, left.stdout, left.stderr):
            pipe.close()
        assert _left(names) == []
    assert not base.exists()
    assert _on_the_host(base) == []


@pytest.mark.usefixtures("internet")  # skipped where that is
def test_nothing_runs_on_when_the_tests_are_killed():
    script = f"""
import sys
from pathlib import Path
from tests.nethosts.hosts import Hosts
made = Hosts()
for name in {_ALL!r}:
    getattr(made, name)
print(made.base, made.client.pid, made.server.pid, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])},
    )
    with process:
        base, *pids = process.stdout.readline().decode().split()
        with _held(pids) as names:
            try:
                assert len(_left(names)) > 20
            finally:
                process.kill()
                process.wait(timeout=30)
                subprocess.run(["rm", "-rf", base], check=True)
            until(lambda: _left(names), lambda left: left == [])


@pytest.mark.parametrize("uid", [0, 65534])
def test_programs_on_the_client_have_a_home_of_their_own(hosts, uid, monkeypatch):
    """Nothing of whoever runs the tests: neither their PATH nor their home."""
    monkeypatch.setenv("PATH", f"/opt/shims:{os.environ['PATH']}")
    script = 'echo "$HOME" "$PATH"; mkdir "$HOME/made"'
    home, path = hosts.run(["sh", "-c", f"rm -rf $HOME/made; {script}"], uid=uid).stdout.split()[:2]
    assert Path(home.decode()).parent == hosts.base
    assert (Path(home.decode()) / "made").stat().st_uid == uid
    assert b"/opt/shims" not in path
    assert "/opt/shims" not in hosts.server.run("sh", "-c", "echo $PATH")
