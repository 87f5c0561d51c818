"""Opening after an unclean end: what is kept, moved away, refused (trace.md §5)."""

from __future__ import annotations

import hashlib
import os

import pytest

from substrate.errors import StateError, TraceCorrupt
from substrate.telemetry.trace.files import Durable, render_durable
from substrate.telemetry.trace.ids import new_span_id


def abandoned(session, synced: int = 3, unsynced: int = 2) -> bytes:
    """A session whose writer died; the bytes of its trace."""
    writer = session.create()
    writer.append([session.note(n) for n in range(synced)])
    writer.sync()
    writer.append([session.note(synced + n) for n in range(unsynced)])
    writer.close(clean=False)
    return session.trace.read_bytes()


def files_of(session) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in session.path.iterdir()}


def set_boot_of_lock(session, boot_id: str) -> None:
    (session.path / "lock").write_text(f"1 1 {boot_id}\n")


def test_an_unclean_end_is_recorded_and_loses_nothing(session) -> None:
    abandoned(session)
    writer, recovered = session.open()
    writer.append([session.note(5)])
    writer.close()
    assert recovered.acknowledged_lost == "no"
    assert recovered.torn == ()
    assert session.numbers() == [0, 1, 2, 3, 4, 5]
    assert session.types()[5] == "recovery"
    session.assert_verified()


def test_a_torn_tail_of_every_length_is_moved_away(session, new_session) -> None:
    whole = abandoned(session)
    last = whole[whole.rindex(b"\n", 0, -1) + 1 :]
    for cut in range(1, len(last)):
        other = new_session()
        for name, content in files_of(session).items():
            (other.path / name).write_bytes(content)
        os.truncate(other.trace, len(whole) - cut)
        torn = last[: len(last) - cut]
        writer, recovered = other.open()
        writer.close()
        assert [part.size for part in recovered.torn] == [len(torn)]
        assert (other.path / "trace.torn-1").read_bytes() == torn
        assert other.numbers() == [0, 1, 2, 3]
        body = other.objects()[4]["body"]
        assert body["torn_digest"] == hashlib.sha256(torn).hexdigest()
        other.assert_verified()


@pytest.mark.parametrize(
    "tail",
    [
        b"\0",
        b"\0" * 5000,
        b"{}\n",
        b"\n",
        b"garbage\nmore\n",
        b'{"body":{}\0\0\0\0',
        b"x" * 3_000_000,
        b"\xff\xfe\n",
    ],
    ids=lambda tail: repr(tail[:12]),
)
def test_what_is_no_line_behind_the_synced_position_is_moved_away(session, tail) -> None:
    whole = abandoned(session)
    with session.trace.open("ab") as file:
        file.write(tail)
    writer, recovered = session.open()
    writer.close()
    assert (session.path / recovered.torn[0].name).read_bytes() == tail
    assert session.trace.read_bytes().startswith(whole)
    session.assert_verified()


def test_all_from_the_first_bad_line_on_goes(session) -> None:
    whole = abandoned(session, synced=2, unsynced=3)
    lines = whole.split(b"\n")
    lines[3] = lines[3].replace(b'"n":3', b'"n":4')
    session.trace.write_bytes(b"\n".join(lines))
    writer, recovered = session.open()
    writer.close()
    # the changed line itself is canonical: the one after it shows that it is not what was
    assert recovered.torn[0].size == len(lines[4]) + 1
    session.assert_verified()


def test_damage_below_the_synced_position_is_refused_and_nothing_changes(session) -> None:
    whole = abandoned(session)
    synced = len(b"\n".join(whole.split(b"\n")[:3])) + 1
    lines = [0]
    for _ in range(3):
        lines.append(whole.index(b"\n", lines[-1]) + 1)
    for place in range(0, synced, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        session.trace.write_bytes(damaged)
        before = files_of(session)
        with pytest.raises(TraceCorrupt) as caught:
            session.open()
        assert files_of(session) == before
        assert caught.value.offset is not None
        assert caught.value.seq is not None
        assert caught.value.offset <= synced


def test_a_zeroed_page_below_the_synced_position_is_refused(session) -> None:
    whole = abandoned(session, synced=60)
    damaged = whole[:4096] + bytes(4096) + whole[8192:]
    session.trace.write_bytes(damaged)
    with pytest.raises(TraceCorrupt):
        session.open()
    assert session.trace.read_bytes() == damaged


def test_a_file_shorter_than_durable_is_refused(session) -> None:
    abandoned(session, unsynced=0)
    size = session.trace.stat().st_size
    os.truncate(session.trace, size - 1)
    with pytest.raises(TraceCorrupt, match="E_DURABLE"):
        session.open()
    assert session.trace.stat().st_size == size - 1


def test_a_durable_that_names_another_line_is_refused(session) -> None:
    whole = abandoned(session)
    first = whole.index(b"\n") + 1
    for wrong in (
        Durable(size=first, head="0" * 64),
        Durable(size=first + 1, head=hashlib.sha256(whole[: first - 1]).hexdigest()),
    ):
        (session.path / "durable").write_bytes(render_durable(wrong))
        with pytest.raises(TraceCorrupt, match="E_DURABLE"):
            session.open()


def test_damage_is_found_after_a_clean_end_too_when_the_last_line_shows_it(session) -> None:
    writer = session.create()
    writer.append([session.note(n) for n in range(3)])
    writer.close()
    whole = session.trace.read_bytes()
    damaged = whole[:-20] + b"!" + whole[-19:]
    session.trace.write_bytes(damaged)
    with pytest.raises(TraceCorrupt):
        session.open()


@pytest.mark.parametrize("record", [None, b"", b"\0" * 86, b"12 garbled\n", b"1" * 86])
def test_without_a_readable_durable_the_loss_is_unknown(session, record) -> None:
    abandoned(session)
    if record is None:
        (session.path / "durable").unlink()
    else:
        (session.path / "durable").write_bytes(record)
    with session.trace.open("ab") as file:
        file.write(b'{"body":{"n"')
    writer, recovered = session.open()
    writer.close()
    assert recovered.acknowledged_lost == "unknown"
    assert session.numbers() == [0, 1, 2, 3, 4]
    session.assert_verified()


def test_without_a_readable_durable_a_bad_line_in_the_middle_is_refused(session) -> None:
    whole = abandoned(session)
    (session.path / "durable").unlink()
    damaged = bytearray(whole)
    damaged[whole.index(b"\n") + 30] ^= 1
    session.trace.write_bytes(damaged)
    with pytest.raises(TraceCorrupt):
        session.open()
    assert session.trace.read_bytes() == damaged


def test_after_another_boot_a_torn_tail_makes_the_loss_unknown(session) -> None:
    abandoned(session)
    set_boot_of_lock(session, "00000000-0000-0000-0000-000000000000")
    with session.trace.open("ab") as file:
        file.write(bytes(100))
    writer, recovered = session.open()
    writer.close()
    assert recovered.acknowledged_lost == "unknown"


def test_after_another_boot_a_whole_trace_has_lost_nothing(session) -> None:
    abandoned(session)
    set_boot_of_lock(session, "00000000-0000-0000-0000-000000000000")
    writer, recovered = session.open()
    writer.close()
    assert recovered.acknowledged_lost == "no"


def test_spans_left_open_are_closed(session) -> None:
    one, two = new_span_id(), new_span_id()
    writer = session.create()
    writer.append(
        [
            session.note(0, event_type="command_start", span_id=one),
            session.note(1, event_type="command_start", span_id=two),
            session.note(2, event_type="command_end", span_id=one),
        ]
    )
    writer.close(clean=False)
    writer, recovered = session.open()
    assert recovered.closed_spans == (two,)
    assert writer.open_spans == ()
    writer.close()
    *_, recovery, end = session.objects()
    assert recovery["body"]["closed_spans"] == [two]
    assert end["span_id"] == two
    assert end["body"]["ended_by"] == "recovery"
    session.assert_verified()


def test_a_second_recovery_takes_the_next_number(session) -> None:
    abandoned(session)
    for number in (1, 2):
        with session.trace.open("ab") as file:
            file.write(b"torn %d" % number)
        (session.path / "lock").write_bytes(b"unclean")
        writer, recovered = session.open()
        writer.close()
        assert [part.name for part in recovered.torn] == [f"trace.torn-{number}"]
    assert (session.path / "trace.torn-1").read_bytes() == b"torn 1"
    assert (session.path / "trace.torn-2").read_bytes() == b"torn 2"
    session.assert_verified()


def test_a_torn_file_that_no_event_names_yet_is_named_by_the_next_recovery(session) -> None:
    """A death between the cut and the `recovery` event."""
    abandoned(session)
    (session.path / "trace.torn-1").write_bytes(b"moved away before the death")
    writer, recovered = session.open()
    writer.close()
    assert [part.name for part in recovered.torn] == ["trace.torn-1"]
    assert session.objects()[5]["body"]["torn_file"] == "trace.torn-1"
    (session.path / "lock").write_bytes(b"unclean")
    writer, recovered = session.open()
    writer.close()
    assert recovered.torn == ()


def test_a_session_without_a_whole_line_never_began(session) -> None:
    session.create().close(clean=False)
    with pytest.raises(StateError, match="never began"):
        session.open()


def test_a_sealed_trace_is_cleaned_of_its_tail_and_stays_closed(session) -> None:
    writer = session.create()
    seal = {"count": 1, "head_hash": "", "root": "", "drops": 0, "key_id": None, "sealed_by": "x"}
    writer.append([session.note(0, event_type="session_end")])
    writer.append([session.note(1, event_type="chain_seal", body=seal)])
    writer.sync()
    writer.close(clean=False)
    whole = session.trace.read_bytes()
    session.trace.write_bytes(whole + b"behind the seal")
    with pytest.raises(StateError, match="E_AFTER_SEAL"):
        session.open()
    assert session.trace.read_bytes() == whole
    assert (session.path / "trace.torn-1").read_bytes() == b"behind the seal"


def test_a_log_drop_after_a_clean_end_goes_on_counting(session) -> None:
    def drop(count: int, cumulative: int) -> object:
        body = {
            "count": count,
            "bytes": 1,
            "reason": "buffer_full",
            "per_producer": [],
            "cumulative": cumulative,
        }
        return session.note(0, event_type="log_drop", body=body)

    writer = session.create()
    writer.append([drop(3, 3), session.note(0)])
    writer.close()
    writer, _ = session.open()
    assert writer.drops == 3
    writer.append([drop(2, 5)])
    writer.close()
    session.assert_verified()
