"""Flows as reports: begun once, over once, and only those that leave."""

from substrate.values import replace
from substrate.world.egress.addresses import parse_address
from substrate.world.egress.flow_book import FlowBook
from substrate.world.egress.flows import ENDED, RESET, Flow
from substrate.world.egress.reach import Policy
from substrate.world.egress.report import Attempt, Closed

OWN, OTHER = parse_address("100.127.0.1"), parse_address("203.0.113.7")
FLOW = Flow(
    protocol=6, source=OWN, source_port=4000, target=OTHER, port=443, reply_from=OTHER,
    id=b"abcd", tuple=b"tuple", state=1, packets_out=0, bytes_out=0, packets_in=0, bytes_in=0,
)  # fmt: skip
COUNTED = replace(FLOW, packets_out=3, bytes_out=300, packets_in=2, bytes_in=200)


class Told(FlowBook):
    def __init__(self, *deny):
        self.told, self.count = [], 0
        super().__init__((OWN,), Policy((), deny, (), ()), self.told.append, self._next)

    def _next(self):
        self.count += 1
        return self.count


def test_begun_and_over_once():
    book = Told()
    book.changed(FLOW, 10)
    book.changed(replace(FLOW, state=3), 20)
    book.over(COUNTED, 50, "the world ended")
    begun, over = book.told
    assert isinstance(begun, Attempt) and isinstance(over, Closed)
    assert (begun.protocol, begun.ip, begun.port, begun.client_port) == (
        "tcp",
        "203.0.113.7",
        443,
        4000,
    )
    assert (over.connection, over.bytes_in, over.bytes_out) == (begun.connection, 200, 300)
    assert (over.packets_in, over.packets_out) == (2, 3)
    assert (over.duration_us, over.reason) == (40, "the world ended")


def test_a_connection_that_was_ended_before():
    for state, why in ((ENDED, ""), (RESET, "reset")):
        book = Told()
        book.changed(FLOW, 10)
        book.changed(replace(FLOW, state=state), 25)
        book.over(COUNTED, 90, "the world ended")
        assert (book.told[1].duration_us, book.told[1].reason, book.told[1].time_us) == (
            15,
            why,
            25,
        )


def test_one_that_was_not_heard_of():
    book = Told()
    book.over(COUNTED, 90)
    begun, over = book.told
    assert (begun.time_us, over.duration_us, over.bytes_in) == (90, 0, 200)


def test_connections_from_one_port_to_one_place_have_their_numbers():
    book = Told()
    for n in range(3):
        flow = replace(FLOW, id=b"%d" % n, tuple=b"tuple %d" % n)
        book.changed(flow, n)
        book.over(flow, n)
    begun = [told for told in book.told if isinstance(told, Attempt)]
    assert [(b.turn, b.crowded, b.client_ip) for b in begun] == [
        (n, False, "100.127.0.1") for n in range(3)
    ]


def test_what_does_not_leave_is_not_told():
    book = Told()
    loopback = parse_address("127.0.0.1")
    for flow in (
        replace(FLOW, source=loopback, target=loopback),
        replace(FLOW, target=OWN),
        replace(FLOW, reply_from=loopback),  # a question that is led to the relay
        replace(FLOW, source=OTHER, target=OWN),
    ):
        book.changed(flow, 1)
        book.over(flow, 2)
    assert book.told == []


def test_denied_meanwhile():
    book = Told()
    book.changed(FLOW, 10)
    assert book.denied() == []
    book.policy = Policy((), ("203.0.113.0/24",), (), ())
    assert book.denied() == [FLOW]
    book.over(COUNTED, 20)
    assert book.told[1].reason == "203.0.113.7 is denied by 203.0.113.0/24"
