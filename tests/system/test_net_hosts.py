"""substrate on the client of an internet of our own (tests/nethosts): it runs there as on a host,
and the host that its worlds see is the client."""

import pytest

from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet

__all__ = ["hosts", "internet"]


def _substrate(hosts, caller, line, *words):
    return hosts.run(
        [caller.command, *words, "-c", line],
        uid=caller.uid,
        gid=caller.gid,
        cwd=caller.work,
        env=caller.environ,
    )


def test_worlds_on_the_client(hosts, every_caller):
    done = _substrate(hosts, every_caller, "cat /etc/resolv.conf; echo made > file; id -u")
    assert done.stdout.decode().startswith(f"nameserver {plan.DNS[0]}\n")
    assert b"Traceback" not in done.stderr
    assert not (every_caller.work / "file").exists()
    every_caller.verify()


def test_a_world_sends_nothing_over_the_wire(hosts, caller):
    """Without rules, whatever is tried; from the client the same arrives."""
    script = (
        f"for host in {plan.SECRET[0]} {plan.SECRET[1]} {plan.METADATA[0]} {plan.PRIVATE[0]}; do"
        " (echo x > /dev/tcp/$host/80; echo x > /dev/udp/$host/53) 2>/dev/null; done;"
        " getent hosts secret.example.net; true"
    )
    assert hosts.metadata and hosts.private
    hosts.secret_untouched()
    _substrate(hosts, caller, f"bash -c '{script}'")
    assert hosts.packets() == []
    assert hosts.names.asked() == set()
    hosts.secret_untouched()
    hosts.run(["bash", "-c", script])
    assert {packet.destination for packet in hosts.packets()} >= {
        *plan.SECRET,
        plan.METADATA[0],
        plan.PRIVATE[0],
    }
    assert hosts.names.asked() == {"secret.example.net"}
    with pytest.raises(AssertionError):
        hosts.secret_untouched()
