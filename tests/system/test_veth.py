"""A routed network (`--net veth`) on the client of tests/nethosts, which forwards here as a host may.

What reaches a server and what does not, by the servers' own logs and the wire; what the record says
of it; that nothing is left on the host. Needs root, as the mode does.
"""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.nethosts import content, plan
from tests.nethosts.fixtures import hosts, internet
from tests.nethosts.hosts import Hosts
from tests.nethosts.seen import until
from tests.system.client_run import Place

__all__ = ["hosts", "internet"]

FORWARD = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
VETH = ("--net", "veth")


@pytest.fixture
def host(hosts: Hosts):
    """The client as a host that forwards. At the end nothing of ours may be left on it."""
    hosts.client.configure(dict.fromkeys(FORWARD, 1), [])
    yield hosts
    try:
        assert left_on(hosts) == []
    finally:
        hosts.client.configure(dict.fromkeys(FORWARD, 0), [])


def left_on(hosts: Hosts) -> list[str]:
    """Links of ours on the client."""
    lines = hosts.client.run("ip", "-o", "link").splitlines()
    return [line for line in lines if "substrate" in line]


@pytest.fixture(params=["ns-root-idmap", "ns-root"])
def place(request, host):
    caller = request.getfixturevalue({"ns-root-idmap": "idmap", "ns-root": "root"}[request.param])
    caller.forget()
    return Place(hosts=host, caller=caller)


def test_ping_udp_and_tcp(place):
    server = place.hosts.udp
    plain = place.hosts.plain
    ran = place.run(f"ping -c 2 -i 0.01 -W 2 {plan.UDP[0]} && curl -sS http://plain.example.net/", *VETH)
    print(ran.stdout, ran.stderr, ran.scopes)
    assert b"2 received" in ran.stdout
