"""Connections from one port to one place are numbered, or it is said that they may not be."""

from substrate.world.egress.turns import Turns

A, B = bytes((198, 18, 0, 1)), bytes((198, 18, 0, 2))


def test_each_place_of_each_port_has_its_own_numbers():
    turns = Turns()
    assert [turns.of(("127.0.0.1", 7), A, 443) for _ in range(3)] == [
        (0, True),
        (1, True),
        (2, True),
    ]
    assert turns.of(("127.0.0.1", 8), A, 443) == (0, True)
    assert turns.of(("127.0.0.1", 8), A, 443) == (1, True)


def test_a_port_that_leads_to_several_places_is_not_sure():
    turns = Turns()
    assert turns.of(("127.0.0.1", 7), A, 443) == (0, True)
    assert turns.of(("127.0.0.1", 7), A, 80) == (0, False)
    assert turns.of(("127.0.0.1", 7), A, 443) == (1, False)
    assert turns.of(("127.0.0.1", 8), B, 443) == (0, True)


def test_what_was_missed_or_forgotten_is_not_sure():
    turns = Turns(most=2)
    turns.of(("127.0.0.1", 7), A, 443)
    turns.miss(("127.0.0.1", 7))
    assert turns.of(("127.0.0.1", 7), A, 443) == (1, False)
    for port in (1, 2, 3):
        turns.of(("127.0.0.1", port), A, 443)
    assert turns.of(("127.0.0.1", 1), A, 443) == (0, False)
    assert turns.of(("127.0.0.1", 3), A, 443) == (1, True)
    turns.lose()
    assert turns.of(("127.0.0.1", 3), A, 443) == (0, False)


def test_addresses_of_one_port_are_told_apart():
    turns = Turns()
    one, other = ("127.0.0.1", 7), ("127.0.0.2", 7)
    assert [turns.of(one, A, 443)[0], turns.of(other, A, 443)[0]] == [0, 0]
    assert turns.of(other, B, 443) == (0, False)
    assert turns.of(one, A, 443) == (1, True)


def test_no_more_addresses_and_ports_are_known_than_that():
    """A world has sixteen million addresses to bind to."""
    turns = Turns(clients=3)
    found = [turns.of((f"127.0.0.{n}", 7), A, 443) for n in range(5)]
    assert found == [(0, True)] * 3 + [(0, False)] * 2
    turns = Turns(clients=3)
    for n in range(4):
        turns.miss((f"127.0.0.{n}", 7))
    assert turns.of(("127.0.0.9", 7), A, 443) == (0, False)
