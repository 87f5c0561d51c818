"""What a world's resolver answers, and what it tells of that."""

import struct

from substrate.world.egress import dns
from substrate.world.egress.answers import Answers
from substrate.world.egress.fakes import Fakes
from substrate.world.egress.rules import Rules, parse_rule


def question(name, qtype=dns.A):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", qtype, 1)


def answers(*allow, lead=lambda _: None):
    return Answers(Rules([parse_rule(text, "allow") for text in allow], []), Fakes(lead=lead))


def test_what_is_no_question_is_counted():
    tried = answers("a.example")
    for packet in (b"?", question("a.example")[:-4], question("a.example", dns.OPT)):
        assert tried.answer(packet, "udp", ("127.0.0.1", 1), 2)[1] is None
    assert (tried.malformed.count, tried.malformed.first) == (3, "1 bytes are no DNS message")
    assert tried.answer(question("a.example"), "udp", ("127.0.0.1", 1), 2)[1] is not None
    assert tried.malformed.count == 3


def test_a_name_whose_address_cannot_be_led_has_no_answer():
    """Else a program would be refused at an address that it was given."""
    fail = [OSError(12, "nf_tables: Cannot allocate memory")]

    def lead(_address):
        if fail:
            raise fail.pop()

    tried = answers("a.example", lead=lead)
    answer, told = tried.answer(question("a.example"), "udp", ("127.0.0.1", 1), 2)
    assert (answer[3] & 15, answer[6:8]) == (dns.SERVFAIL, b"\0\0")
    assert (told.rcode, told.answer, told.allowed) == ("SERVFAIL", "", True)
    assert "Cannot allocate memory" in told.reason
    answer, told = tried.answer(question("a.example"), "udp", ("127.0.0.1", 1), 2)
    assert answer[-4:] == bytes((198, 18, 0, 1))
    assert (told.rcode, told.answer) == ("NOERROR", "198.18.0.1")
