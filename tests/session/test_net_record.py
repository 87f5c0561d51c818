"""What the egress process reports, as events, scopes and lines for people."""

from substrate.session.net_denials import net_denials
from substrate.session.net_record import EGRESS, NetRecord, Owner
from substrate.session.net_rules import own_names, parse_searched
from substrate.world.egress.report import Asked, Attempt, Closed, Exceeded, Refused

ATTEMPT = {
    "connection": 1,
    "time_us": 5,
    "client_port": 40000,
    "protocol": "tcp",
    "spoken": "tls",
    "domain": "a.example.net",
    "target": "198.18.0.1",
    "ip": "203.0.113.7",
    "port": 443,
    "said": "a.example.net",
    "allowed": True,
    "rule": "a.example.net",
    "reason": "",
    "hint": "",
    "result": "",
}
REFUSED = {
    "connection": 2,
    "time_us": 6,
    "protocol": "tcp",
    "client_port": 40001,
    "domain": "",
    "ip": "203.0.113.8",
    "port": 22,
    "uid": 1000,
    "reason": "no rule names 203.0.113.8",
}


def _asked(domain, *, allowed=False, qtype="A", rule=""):
    return Asked(
        time_us=1,
        protocol="udp",
        client_port=40002,
        domain=domain,
        qtype=qtype,
        rcode="NOERROR" if allowed else "NXDOMAIN",
        answer="198.18.0.1" if allowed else "",
        allowed=allowed,
        rule=rule,
        reason="" if allowed else "why",
    )


def _record(*names):
    return NetRecord("spn_command", 7, frozenset(names))


def _told(record):
    return [denial.text for denial in net_denials(record.refusals(), record.used_up)]


def test_a_connection_and_its_end_have_the_span_of_who_made_it():
    record = _record()
    made = record.event(Attempt(**ATTEMPT), Owner(proc=4, span="spn_process"))
    closed = record.event(
        Closed(connection=1, time_us=9, bytes_in=5, bytes_out=3, duration_us=4, reason=""), None
    )
    assert made.span_id == closed.span_id == "spn_process"
    assert made.body["connection"] == closed.body["connection"] > EGRESS
    (scope,) = record.scopes()
    assert scope.scope == "tls://a.example.net:443"
    assert (scope.connections, scope.refused, scope.bytes_in, scope.bytes_out) == (1, 0, 5, 3)


def test_an_end_of_which_no_beginning_is_known_is_the_commands():
    closed = Closed(connection=9, time_us=9, bytes_in=5, bytes_out=3, duration_us=4, reason="")
    assert _record().event(closed, None).span_id == "spn_command"


def test_a_name_that_is_refused_is_told_once_for_both_kinds_of_addresses():
    record = _record()
    for qtype in ("A", "AAAA"):
        record.event(_asked("b.example.net", qtype=qtype), None)
    assert _told(record) == [
        "the network refused b.example.net: why; --allow b.example.net allows it"
    ]


def test_where_a_rule_denies_nothing_is_said_to_allow_it():
    record = _record()
    record.event(_asked("b.example.net", rule="*.example.net"), None)
    assert _told(record) == ["the network refused b.example.net: why"]


def test_the_hosts_own_names_are_recorded_and_not_told():
    record = _record("vm", "vm.corp.example")
    for name in ("vm", "vm.corp.example"):
        event = record.event(_asked(name), None)
        assert event.body["decision"] == "deny"
    assert _told(record) == []


def test_what_would_allow_it_is_what_the_engine_says():
    record = _record()
    refused = {**ATTEMPT, "allowed": False, "rule": "", "reason": "why"}
    record.event(Attempt(**{**refused, "hint": "--private 10.1.2.3"}), None)
    assert _told(record) == [
        "the network refused a.example.net:443: why; --private 10.1.2.3 allows it"
    ]


def test_a_packet_that_the_kernel_refused():
    record = _record()
    end = "203.0.113.8:22"
    event = record.event(Refused(**REFUSED, hint=f"--allow {end}"), None)
    assert (event.body["ip"], event.body["domain"]) == ("203.0.113.8", None)
    assert _told(record) == [
        f"the network refused {end}: no rule names 203.0.113.8; --allow {end} allows it"
    ]


def test_no_rule_would_allow_what_stands_for_no_name():
    record = _record()
    unnamed = {**REFUSED, "ip": "198.19.200.7", "reason": "it stands for no name"}
    record.event(Refused(**unnamed), None)
    assert _told(record) == ["the network refused 198.19.200.7:22: it stands for no name"]


def test_no_rule_would_allow_what_is_not_tcp():
    record = _record()
    udp = {**REFUSED, "protocol": "udp", "domain": "a.example.net", "port": 443, "reason": "why"}
    event = record.event(Refused(**udp), None)
    assert event.body["domain"] == "a.example.net"
    assert _told(record) == ["the network refused udp://a.example.net:443: why"]
    assert [scope.scope for scope in record.scopes()] == ["udp://a.example.net:443"]


def test_a_limit_that_is_used_up_is_told_first_and_once():
    record = _record()
    record.event(_asked("b.example.net"), None)
    record.event(Exceeded(time_us=1, limit=1 << 20, used=1 << 20), None)
    for number in range(5):
        record.event(
            Attempt(
                **{
                    **ATTEMPT,
                    "connection": number,
                    "allowed": False,
                    "rule": "limits.egress",
                    "reason": "the limit is used up",
                }
            ),
            None,
        )
    limit, refused = _told(record)
    assert limit.startswith("the network's limit of 1m was used up")
    assert "--limit egress=" in limit
    assert refused.startswith("the network refused b.example.net")
    assert {scope.refused for scope in record.scopes()} == {5}


def test_at_most_three_lines_and_the_last_counts_the_others():
    record = _record()
    for number in range(9):
        record.event(_asked(f"h{number}.example.net"), None)
    assert len(_told(record)) == 3
    assert _told(record)[2].startswith("the network refused 7 more")
    record.event(Exceeded(time_us=1, limit=5, used=5), None)
    assert len(_told(record)) == 3
    assert _told(record)[2].startswith("the network refused 8 more")


def test_the_domains_that_a_resolver_searches():
    assert parse_searched(b"search a.example B.example.\nnameserver 203.0.113.1\n") == [
        "a.example",
        "b.example",
    ]
    assert parse_searched(b"search a.example\ndomain c.example\n") == ["c.example"]
    assert parse_searched(b"searching x\n# search y\nsearch .\n\xff\xfe\n") == []


def test_own_names_are_lower_case_and_none_is_empty():
    names = own_names()
    assert names
    assert all(name == name.lower() and name for name in names)


def _failed(result, ip="", count=1):
    record = _record()
    for number in range(count):
        failed = {**ATTEMPT, "connection": number, "ip": ip, "result": result}
        record.event(Attempt(**failed), None)
    return [d.text for d in net_denials(record.refusals(), 0, record.unreached())]


def test_a_server_that_was_not_reached_is_told_with_why():
    """The client sees a reset, whatever it was."""
    error = "203.0.113.7 port 443: Connection refused"
    end = "a.example.net:443"
    assert _failed(error, "203.0.113.7", 2) == [
        f"{end} is allowed and was not reached (2 times): {error}"
    ]
    error = "a.example.net: Temporary failure in name resolution"
    assert _failed(error) == [f"{end} is allowed and was not reached: {error}"]


def test_a_client_that_went_first_is_not_told_of():
    assert _failed("the client went before the server was reached") == []
