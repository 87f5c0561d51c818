"""Addresses of a filtered network are told by the names that they stand for."""

from substrate.telemetry.capture.fake_names import FakeNames


def line(kind, component="world", **body):
    return {"event_type": kind, "component": component, "body": body}


def test_what_the_networks_lines_say():
    names = FakeNames()
    names.learn(line("dns_query", domain="a.example", answers=["198.18.0.1"]))
    names.learn(line("net_connect", domain="b.example", target="198.18.0.2", ip="203.0.113.5"))
    names.learn(line("dns_query", "capture", domain="lie.example", answers=["198.18.0.3"]))
    names.learn(line("dns_query", domain="real.example", answers=["203.0.113.9"]))
    names.learn(line("dns_query", domain={"b64": "AA=="}, answers=["198.18.0.4"]))
    names.learn(line("net_connect", domain=None, target="198.18.0.5"))
    names.learn(line("process_fork", pid=1))
    found = [names.endpoint(f"tcp://198.18.0.{n}:443") for n in range(1, 6)]
    assert found[:2] == ["tcp://a.example:443", "tcp://b.example:443"]
    assert found[2:] == [f"tcp://198.18.0.{n}:443" for n in (3, 4, 5)]
    assert names.endpoint("tcp://[::ffff:198.18.0.1]:443") == "tcp://a.example:443"
    for other in ("tcp://203.0.113.9:443", "udp://[2001:db8::1]:53", "unix:/run/198.18.0.1", "tcp"):
        assert names.endpoint(other) == other


def test_an_address_of_two_names_is_neither():
    names = FakeNames()
    for name in ("a.example", "a.example", "b.example", "a.example"):
        names.add("198.18.0.1", name)
    assert names.name("198.18.0.1") is None
    assert names.endpoint("tcp://198.18.0.1:1") == "tcp://198.18.0.1:1"
