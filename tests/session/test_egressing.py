"""A report waits until capture has come as far, and says whose it is then (egressing.py)."""

import _socket
import _thread
import os

import pytest

from substrate.session import egressing
from substrate.session.net_denials import net_denials
from substrate.session.net_record import NetRecord, Owner
from substrate.telemetry.trace.envelope import Event
from substrate.telemetry.trace.pack import BlobRef
from substrate.world import wire
from substrate.world.egress import report
from substrate.world.egress.report import Asked, Attempt, Closed, Refused
from substrate.world.egress.tape import Tapes

BEHIND_US = 50_000
OWNER = Owner(proc=7, span="spn_7", program=b"curl", pid=12)


class Capture:
    """`told`: how far it has come; `ports`: (port, time of the use) → owner."""

    knows_ports = True

    def __init__(self):
        self.told, self.pumps, self.ports = 0, 0, {}
        self.pids = {}

    def pump(self):
        self.pumps += 1

    def told_us(self):
        return self.told

    def owner(self, protocol, local_port, address, port, time_us, turn=0, **_):
        uses = [(at, who) for (p, at), who in self.ports.items() if p == local_port]
        uses = [(at, who) for at, who in uses if at <= time_us]
        return max(uses, key=lambda use: use[0])[1] if uses else None

    def owner_by_pid(self, host_pid, time_us):
        return self.pids.get(host_pid)


class Writer:
    def __init__(self):
        self.events = []
        self.blobs = self

    def put(self, content, media_type):
        return BlobRef(commitment="c", size=len(content), media_type=media_type, encoding="")

    def append(self, events):
        self.events += events


class World:
    holder_pid = 4711

    def take_network(self):
        return {"dns_udp4": os.dup(0)}


class Zygote:
    def serve_network(self, network, rules, end):
        self.rules = rules
        self.end = _socket.socket(fileno=os.dup(end.fileno()))

    def tell(self, found):
        self.end.send(report.render(found))


@pytest.fixture
def made(tmp_path):
    """(egressing, zygote, capture, writer) that serves; the clock is the test's."""
    kept = []

    def make(capture, **more):
        zygote, writer = Zygote(), Writer()
        rules = {"allow": ("x.example",), "host_ports": (), "publish": (), **more}
        one = egressing.Egressing(zygote, World(), rules, capture)
        session = os.open(tmp_path, os.O_PATH)
        one.begin(writer, "spn_command", 3, session, lambda data: "digest")
        os.close(session)
        kept.extend((one, zygote.end))
        return one, zygote, writer

    yield make
    for one in kept:
        one.close()


def asked(time_us, port=40000, name="x.example", **more):
    fields = {"time_us": time_us, "protocol": "udp", "client_port": port, "domain": name}
    fields |= {"qtype": "A", "rcode": "NXDOMAIN", "answer": "", "allowed": False}
    return Asked(**{**fields, "rule": "", "reason": "no", **more})


def attempt(time_us, number, port=40000):
    return Attempt(
        connection=number, time_us=time_us, client_port=port, protocol="tcp", spoken="tls",
        domain="x.example", target="198.18.0.1", ip="203.0.113.5", port=443, said="x.example",
        allowed=True, rule="x.example", reason="", hint="", result="",
    )  # fmt: skip


def closed(number):
    return Closed(connection=number, time_us=9, bytes_in=1, bytes_out=2, duration_us=3, reason="")


def test_an_older_use_of_the_port_is_not_taken_before_the_newer_one_is_told(made):
    capture = Capture()
    capture.ports[40000, 100] = Owner(proc=1, span="old")
    one, zygote, writer = made(capture)
    zygote.tell(asked(1000))
    one.pump()
    capture.told = 1000 + BEHIND_US - 1
    one.tick(one.next_look())
    assert (writer.events, capture.pumps) == ([], 1)
    capture.ports[40000, 900] = OWNER
    capture.told += 1
    one.tick(one.next_look())
    (event,) = writer.events
    assert (event.body["proc"], event.span_id) == (7, "spn_7")
    assert one.next_look() is None


def test_what_came_later_stands_behind(made):
    capture = Capture()
    one, zygote, writer = made(capture)
    for found in (attempt(1000, 1), closed(1), asked(10), attempt(5_000_000, 2), closed(2)):
        zygote.tell(found)
    one.pump()
    capture.told = 1_000_000
    one.tick(one.next_look())
    kinds = [event.event_type for event in writer.events]
    assert kinds == ["net_connect", "net_close", "dns_query"]
    capture.told = 6_000_000
    one.tick(one.next_look())
    assert [event.event_type for event in writer.events[3:]] == ["net_connect", "net_close"]


def test_it_does_not_wait_for_ever(made, monkeypatch):
    monkeypatch.setattr(egressing, "_OWNER_S", 0.0)
    one, zygote, writer = made(Capture())
    zygote.tell(asked(1000))
    one.pump()
    one.tick(one.next_look())
    (event,) = writer.events
    assert event.body["proc"] is None


def test_a_close_is_of_who_made_the_connection(made):
    capture = Capture()
    capture.told = 1 << 60
    capture.ports[40000, 1] = OWNER
    one, zygote, writer = made(capture)
    zygote.tell(attempt(1000, 5))
    zygote.tell(closed(5))
    one.pump()
    one.tick(one.next_look())
    assert [(e.body["proc"], e.span_id) for e in writer.events] == [(7, "spn_7")] * 2
    assert writer.events[0].body["connection"] == writer.events[1].body["connection"]


def test_no_more_is_taken_than_may_wait(made, monkeypatch):
    monkeypatch.setattr(egressing, "_MOST_WAITING", 3)
    capture = Capture()
    one, zygote, writer = made(capture)
    for index in range(5):
        zygote.tell(asked(index))
    one.pump()
    socket = one._socket.fileno()
    assert (len(one._waiting), socket in one.fds()) == (3, False)
    capture.told = 1 << 60
    one.tick(one.next_look())
    assert socket in one.fds()
    one.pump()
    one.tick(one.next_look())
    assert len(writer.events) == 5


@pytest.mark.parametrize("capture", [None, Capture()])
def test_the_engine_looks_owners_up_where_capture_cannot_tell(made, capture):
    if capture is not None:
        capture.knows_ports = False
        capture.told = 1 << 60
        capture.pids[99] = OWNER
    one, zygote, writer = made(capture)
    assert zygote.rules["look_up_owners"] is True
    assert zygote.rules["first_pid"] == World.holder_pid
    zygote.tell(asked(1, pid=99, program="curl"))
    zygote.tell(asked(2))
    one.pump()
    one.tick(one.next_look())
    first, second = (event.body for event in writer.events)
    if capture is None:
        assert (first["proc"], first["host_pid"], first["program"]) == (None, 99, "curl")
    else:
        assert (first["proc"], "host_pid" in first) == (7, False)
    assert second["proc"] is None and "host_pid" not in second
    assert one._record is not None
    (coverage,) = one._record.coverage(looked_up=True)
    assert coverage.body["blind_spots"][1].startswith("whose 1 of 2 questions and connections")


def test_with_capture_nothing_is_looked_up_and_all_known_is_no_gap(made):
    one, zygote, _ = made(Capture())
    assert zygote.rules["look_up_owners"] is False
    assert one._record is not None
    assert one._record.coverage(looked_up=False) == []


# --- what was said


def test_a_long_stream_is_written_in_several_turns_and_in_its_place(made, monkeypatch):
    monkeypatch.setattr(egressing, "_A_TURN_S", 0.001)
    capture = Capture()
    capture.told = 1 << 60
    one, zygote, writer = made(capture, record_bytes=1 << 21, record_total_bytes=1 << 22)
    tape = Tapes(1 << 21, 1 << 22, zygote.end.send).begin(1, 0)
    tape.add(0, b'{"key": "v1"}, ' * 60_000, 1)
    zygote.tell(attempt(1, 1))
    sender = _thread.start_new_thread(tape.send, (1,))
    assert sender
    while (
        not one._streams
        or 1 not in one._streams._tapes
        or (len(one._streams._tapes[1].kept[0]) < 900_000)
    ):
        one.pump()
    zygote.tell(
        Closed(connection=1, time_us=9, bytes_in=0, bytes_out=900_000, duration_us=3, reason="")
    )
    zygote.tell(asked(3))
    one.pump()
    turns = 0
    while one.next_look() is not None:
        one.tick(one.next_look())
        turns += 1
    assert turns > 3
    kinds = [event.event_type for event in writer.events]
    assert kinds == ["net_connect", "net_close", "dns_query"]
    assert writer.events[1].body["stream_out"]["size"] == 900_000


@pytest.mark.parametrize(
    ("limit_s", "signals", "why"),
    [
        (0.2, [False], "it was not looked through for secrets within 0 s of the command's end"),
        (60.0, [True, True], "a signal came before it was looked through for secrets"),
        (60.0, [True, False], None),
    ],
)
def test_the_end_waits_neither_for_ever_nor_against_a_signal(
    made, monkeypatch, limit_s, signals, why
):
    """What was not looked through is not written. A signal that came before 2 s is not heeded."""
    monkeypatch.setattr(egressing, "_STREAMS_S", limit_s)
    monkeypatch.setattr(egressing, "_SURE_S", 0.0)
    one, zygote, writer = made(Capture(), record_bytes=1 << 20, record_total_bytes=1 << 20)
    tape = Tapes(1 << 20, 1 << 20, zygote.end.send).begin(1, 0)
    tape.add(0, b"key=abcdefghij1234; " * 30_000, 1)
    zygote.tell(attempt(1, 1))
    over = Closed(connection=1, time_us=9, bytes_in=0, bytes_out=600_000, duration_us=3, reason="")

    def tell():
        tape.send(1)
        zygote.tell(over)
        zygote.end.send(wire.encode(report.DONE, ()))

    assert _thread.start_new_thread(tell, ())
    one.pump()
    told = iter(signals)
    one.end(lambda: next(told, signals[-1]))
    (found,) = [e.body for e in writer.events if e.event_type == "net_close"]
    assert found["streams"]["out"].get("truncated") == why
    assert ("stream_out" in found) == (why is None)
    assert found["streams"]["out"]["recorded"] == (600_000 if why is None else 0)
    assert ("turns" in found["streams"]) == (why is None)


def test_a_tape_that_nobody_asked_for_is_refused(made):
    one, zygote, _ = made(Capture())
    Tapes(10, 10, zygote.end.send).begin(1, 0).send(1)
    with pytest.raises(wire.WireError, match="nothing is to be recorded"):
        one.pump()


# --- who, for people


def told(*reports):
    record = NetRecord("spn", 1)
    for found, owner in reports:
        assert isinstance(record.event(found, owner), Event)
    return [denial.text for denial in net_denials(record.refusals())]


def test_a_line_says_who_was_refused():
    assert told((asked(1), OWNER)) == [
        "curl (pid 12) was refused x.example: no; --allow x.example allows it"
    ]
    assert told((asked(1), None)) == [
        "the network refused x.example: no; --allow x.example allows it"
    ]
    assert told((asked(1, pid=99, program="wget"), None)) == [
        "wget (pid 99) was refused x.example: no; --allow x.example allows it"
    ]


def test_several_programs_are_counted():
    others = [Owner(proc=n, span=None, program=b"sh", pid=n) for n in (20, 21, 20)]
    assert told(*((asked(1), owner) for owner in (OWNER, *others[:1])))[0].startswith(
        "curl (pid 12) and another were refused x.example (2 times): "
    )
    assert told(*((asked(1), owner) for owner in (OWNER, *others)))[0].startswith(
        "curl (pid 12) and 2 others were refused x.example (4 times): "
    )


def test_a_name_of_a_program_cannot_act():
    evil = Owner(
        proc=1, span=None, program=b"a\x1b[2J was refused nothing\n\xff" + b"x" * 500, pid=3
    )
    refused = Refused(
        connection=1, time_us=1, protocol="tcp", client_port=1, domain="", ip="203.0.113.5", port=80, uid=0,
        reason="no",
    )  # fmt: skip
    (line,) = told((refused, evil))
    who = line.partition(" (pid 3) ")[0]
    assert who.startswith("a?[2J?was?refused?nothing??x") and len(who) == 64
