"""The ids of a world with shifted owners: who is mapped where, and whom it keeps away from."""

import itertools

import pytest

from substrate.errors import HostUnsupported
from substrate.world import idmap
from substrate.world.idmap import RANGE, choose_extents, is_mapped, parse_subordinate

#: an account of the system, a person, of LDAP, of a subordinate range, made from a SID
OWNERS = (0, 1, 1000, 65534, 65535, 65536, 99999, 165535, 1_000_000, 2_000_199_999)


@pytest.mark.parametrize("number", [1, 2, 999, 2047, 2048, 10_000_000])
def test_every_owner_of_a_host_has_an_id(number):
    extents = choose_extents(number, ())
    assert all(is_mapped(extents, owner) for owner in OWNERS)


def test_what_is_mapped_is_nobody_s_on_the_host():
    for number in range(1, 4096):
        extents = choose_extents(number, ())
        spans = sorted((host, host + count) for _, host, count in extents)
        assert spans[0][0] >= 1 << 31
        assert spans[-1][1] <= (1 << 32) - 1  # the last one is no id
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        inside = sorted((world, world + count) for world, _, count in extents)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(inside))


def test_neighbours_have_ranges_of_their_own():
    bases = [choose_extents(number, ())[0][1] for number in range(1, 1500)]
    assert len(set(bases)) == len(bases)
    assert all((a - b) % RANGE == 0 for a, b in itertools.pairwise(bases))


def test_subordinate_ranges_are_kept_away_from():
    (_, base, _), _ = choose_extents(7, ())
    own, far = choose_extents(7, [(base + 5, 1)])
    assert own[1] != base
    assert far[0] == RANGE
    # of the upper half that somebody gives away, nothing is taken for far owners
    (alone,) = choose_extents(7, [((1 << 31) + 500_000, 65536)])
    assert alone == (0, base, RANGE)
    assert not is_mapped((alone,), 70_000)


def test_nothing_is_left():
    with pytest.raises(HostUnsupported, match="every range"):
        choose_extents(1, [(1 << 31, 1 << 31)])


def test_lines_of_subuid():
    text = b"ann:100000:65536\nbob:165536:65536\n\n# x\nbad:line\nx:1:2:3\nann:9:x\n"
    assert parse_subordinate(text) == ((100000, 65536), (165536, 65536))


def test_the_ranges_of_worlds_and_far_owners_do_not_meet():
    assert idmap._FIRST_BASE == (1 << 31) + idmap._FAR_END
    assert idmap._BASES >= 2000
