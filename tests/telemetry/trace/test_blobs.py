"""The blob pack on real files: what goes in comes out, is shared, is erased."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import StateError, TraceCorrupt
from substrate.telemetry.trace.blob_reader import BlobReader
from substrate.telemetry.trace.blobs import BlobPack
from substrate.telemetry.trace.pack import HEADER_BYTES, INDEX_ENTRY_BYTES, parse_header

KEY = bytes(range(32))
TEXT = b"a line of text that deflates well\n" * 100


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def pack(dir_fd: int) -> Iterator[BlobPack]:
    made = BlobPack.create(dir_fd, KEY)
    yield made
    made.close()


def reopened(pack: BlobPack, dir_fd: int) -> BlobPack:
    pack.close()
    return BlobPack.open(dir_fd, KEY)


def test_content_comes_back(pack: BlobPack) -> None:
    ref = pack.put(TEXT, "text/plain")
    assert pack.read(ref.commitment) == TEXT
    assert (ref.size, ref.media_type, ref.encoding) == (len(TEXT), "text/plain", "zlib")


def test_random_bytes_are_stored_as_they_are(pack: BlobPack) -> None:
    content = os.urandom(5000)
    ref = pack.put(content, "application/octet-stream")
    assert ref.encoding == "identity"
    assert pack.read(ref.commitment) == content


def test_equal_contents_share_one_record(pack: BlobPack, tmp_path: Path) -> None:
    one = pack.put(TEXT, "text/plain")
    size = (tmp_path / "blobs").stat().st_size
    two = pack.put(TEXT, "application/json")
    assert two.commitment == one.commitment
    assert (tmp_path / "blobs").stat().st_size == size


def test_equal_content_in_chunks_shares_and_leaves_no_tail(pack: BlobPack, tmp_path: Path) -> None:
    one = pack.put(TEXT, "text/plain")
    two = pack.put(iter([TEXT[:100], b"", TEXT[100:]]), "text/plain")
    assert two.commitment == one.commitment
    pack.put(b"next", "text/plain")
    pack.sync()
    again = reopened(pack, tmp_path_fd := os.open(tmp_path, os.O_RDONLY))
    assert len(again.commitments()) == 2
    again.close()
    os.close(tmp_path_fd)


def test_commitments_of_one_content_differ_between_sessions(tmp_path: Path) -> None:
    found = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        fd = os.open(tmp_path / name, os.O_RDONLY)
        made = BlobPack.create(fd, KEY)
        found.add(made.put(TEXT, "text/plain").commitment)
        made.close()
        os.close(fd)
    assert len(found) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=400), st.integers(1, 30_000).map(lambda n: b"x" * n))))
def test_chunks_come_back_whatever_they_are(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    fd = os.open(tmp_path_factory.mktemp("pack"), os.O_RDONLY)
    made = BlobPack.create(fd, KEY)
    ref = made.put(iter(chunks), "text/plain")
    assert made.read(ref.commitment) == b"".join(chunks)
    assert made.put(b"after", "text/plain").size == 5
    made.sync()
    made.close()
    again = BlobPack.open(fd, KEY)
    assert again.read(ref.commitment) == b"".join(chunks)
    again.close()
    os.close(fd)


def test_a_stream_that_stops_deflating_is_stored_plain(pack: BlobPack) -> None:
    content = b"x" * 200 + os.urandom(3_000_000)
    ref = pack.put(iter([content[:200], content[200:]]), "application/octet-stream")
    assert ref.encoding == "identity"
    assert pack.read(ref.commitment) == content


def test_contents_are_found_after_reopening(pack: BlobPack, dir_fd: int) -> None:
    ref = pack.put(TEXT, "text/plain")
    pack.sync()
    again = reopened(pack, dir_fd)
    assert again.read(ref.commitment) == TEXT
    assert again.put(TEXT, "text/plain").commitment == ref.commitment
    again.close()


def test_records_without_an_index_entry_are_found_and_shared(pack: BlobPack, dir_fd: int) -> None:
    ref = pack.put(TEXT, "text/plain")
    again = reopened(pack, dir_fd)
    assert again.put(TEXT, "text/plain").commitment == ref.commitment
    again.close()


def test_a_deleted_index_is_made_anew(pack: BlobPack, dir_fd: int, tmp_path: Path) -> None:
    refs = [pack.put(b"content %d" % n, "text/plain") for n in range(5)]
    pack.sync()
    before = (tmp_path / "blobs.idx").read_bytes()
    (tmp_path / "blobs.idx").unlink()
    again = reopened(pack, dir_fd)
    assert again.put(b"content 3", "text/plain").commitment == refs[3].commitment
    again.sync()
    assert (tmp_path / "blobs.idx").read_bytes() == before
    again.close()


@pytest.mark.parametrize("cut", range(1, INDEX_ENTRY_BYTES))
def test_a_cut_index_is_completed(pack: BlobPack, dir_fd: int, tmp_path: Path, cut: int) -> None:
    refs = [pack.put(b"content %d" % n, "text/plain") for n in range(3)]
    pack.sync()
    whole = (tmp_path / "blobs.idx").read_bytes()
    os.truncate(tmp_path / "blobs.idx", len(whole) - cut)
    again = reopened(pack, dir_fd)
    assert again.commitments() == [ref.commitment for ref in refs]
    again.put(b"more", "text/plain")
    again.sync()
    assert (tmp_path / "blobs.idx").read_bytes()[: len(whole)] == whole
    again.close()


def test_a_forged_index_entry_does_not_make_contents_share(
    pack: BlobPack, dir_fd: int, tmp_path: Path
) -> None:
    one = pack.put(b"the first content", "text/plain")
    two = pack.put(b"the second content", "text/plain")
    pack.sync()
    entries = (tmp_path / "blobs.idx").read_bytes()
    swapped = entries[:32] + entries[104:136] + entries[64:104] + entries[32:64] + entries[136:]
    (tmp_path / "blobs.idx").write_bytes(swapped)
    again = reopened(pack, dir_fd)
    got = again.put(b"the first content", "text/plain")
    assert got.commitment not in (one.commitment, two.commitment)
    assert again.read(got.commitment) == b"the first content"
    again.close()


@pytest.mark.parametrize("left", [1, 50, 95, 96, 97, 150])
def test_an_unfinished_record_is_cut_off(
    pack: BlobPack, dir_fd: int, tmp_path: Path, left: int
) -> None:
    first = pack.put(b"the first", "text/plain")
    pack.sync()
    whole = (tmp_path / "blobs").stat().st_size
    pack.put(os.urandom(200), "application/octet-stream")
    os.truncate(tmp_path / "blobs", whole + left)
    again = reopened(pack, dir_fd)
    again.recover()
    assert again.commitments() == [first.commitment]
    assert (tmp_path / "blobs").stat().st_size == whole
    assert again.read(again.put(b"next", "text/plain").commitment) == b"next"
    again.close()


def test_a_header_that_was_never_written_is_an_unfinished_record(
    pack: BlobPack, dir_fd: int, tmp_path: Path
) -> None:
    first = pack.put(b"the first", "text/plain")
    with (tmp_path / "blobs").open("ab") as file:
        file.write(bytes(HEADER_BYTES) + b"content that came before its header")
    again = reopened(pack, dir_fd)
    again.recover()
    assert again.commitments() == [first.commitment]
    again.close()


def test_a_damaged_header_is_refused_and_nothing_is_cut(
    pack: BlobPack, dir_fd: int, tmp_path: Path
) -> None:
    pack.put(b"the first", "text/plain")
    pack.put(b"the second", "text/plain")
    raw = bytearray((tmp_path / "blobs").read_bytes())
    raw[8] ^= 1
    (tmp_path / "blobs").write_bytes(raw)
    again = reopened(pack, dir_fd)
    with pytest.raises(TraceCorrupt) as caught:
        again.recover()
    assert caught.value.offset == 0
    assert (tmp_path / "blobs").read_bytes() == raw
    again.close()


def test_a_zeroed_header_before_whole_records_is_no_unfinished_tail(
    pack: BlobPack, dir_fd: int, tmp_path: Path
) -> None:
    pack.put(b"the first", "text/plain")
    pack.put(b"the second", "text/plain")
    raw = bytes(HEADER_BYTES) + (tmp_path / "blobs").read_bytes()[HEADER_BYTES:]
    (tmp_path / "blobs").write_bytes(raw)
    again = reopened(pack, dir_fd)
    with pytest.raises(TraceCorrupt):
        again.recover()
    assert (tmp_path / "blobs").read_bytes() == raw
    again.close()


@pytest.mark.parametrize("place", [24, 30, 56, 60, 96, 100])
def test_a_changed_salt_commitment_or_content_is_refused(
    pack: BlobPack, dir_fd: int, tmp_path: Path, place: int
) -> None:
    ref = pack.put(TEXT, "text/plain")
    pack.sync()
    raw = bytearray((tmp_path / "blobs").read_bytes())
    raw[place] ^= 1
    (tmp_path / "blobs").write_bytes(raw)
    with pytest.raises(TraceCorrupt):
        reader = BlobReader(dir_fd)
        reader.read(ref.commitment)


def test_a_missing_blob_is_told(pack: BlobPack) -> None:
    with pytest.raises(StateError, match="BLOB_MISSING"):
        pack.read("0" * 64)
    assert pack.state("0" * 64) == "missing"


def test_redaction_destroys_content_salt_and_digest(
    pack: BlobPack, dir_fd: int, tmp_path: Path
) -> None:
    secret = os.urandom(20_000)
    keep = pack.put(b"kept", "text/plain")
    ref = pack.put(secret, "application/octet-stream")
    after = pack.put(b"after", "text/plain")
    pack.sync()
    salt = (tmp_path / "blobs").read_bytes()[100 + 24 : 100 + 56]
    blocks = (tmp_path / "blobs").stat().st_blocks
    pack.redact(ref.commitment)
    raw = (tmp_path / "blobs").read_bytes()
    assert salt not in raw
    assert all(secret[n : n + 16] not in raw for n in range(0, len(secret) - 16, 100))
    assert (tmp_path / "blobs").stat().st_blocks < blocks
    index = (tmp_path / "blobs.idx").read_bytes()
    assert index[72 + 32 : 72 + 64] == bytes(32)
    again = reopened(pack, dir_fd)
    assert again.state(ref.commitment) == "redacted"
    with pytest.raises(StateError, match="BLOB_REDACTED"):
        again.read(ref.commitment)
    assert again.read(keep.commitment) == b"kept"
    assert again.read(after.commitment) == b"after"
    again.close()


def test_redacted_content_put_again_is_a_new_blob(pack: BlobPack) -> None:
    ref = pack.put(TEXT, "text/plain")
    pack.redact(ref.commitment)
    pack.redact(ref.commitment)
    again = pack.put(TEXT, "text/plain")
    assert again.commitment != ref.commitment
    assert pack.read(again.commitment) == TEXT


def test_the_lengths_survive_a_redaction(pack: BlobPack, tmp_path: Path) -> None:
    ref = pack.put(TEXT, "text/plain")
    pack.redact(ref.commitment)
    header = parse_header((tmp_path / "blobs").read_bytes()[:HEADER_BYTES])
    assert header is not None
    assert (header.size, header.salt) == (len(TEXT), bytes(32))


def test_a_reader_sees_the_pack_while_it_is_written(pack: BlobPack, dir_fd: int) -> None:
    one = pack.put(b"one", "text/plain")
    pack.sync()
    two = pack.put(b"two", "text/plain")
    reader = BlobReader(dir_fd)
    assert reader.read(one.commitment) == b"one"
    assert reader.read(two.commitment) == b"two"
    reader.close()


def test_a_bomb_does_not_fill_the_memory(pack: BlobPack, dir_fd: int, tmp_path: Path) -> None:
    ref = pack.put(b"y" * 1000, "text/plain")
    pack.sync()
    raw = (tmp_path / "blobs").read_bytes()
    header = parse_header(raw[:HEADER_BYTES])
    assert header is not None
    bomb = zlib.compress(bytes(50_000_000))[: header.stored_size]
    (tmp_path / "blobs").write_bytes(raw[:HEADER_BYTES] + bomb.ljust(header.stored_size, b"\0"))
    reader = BlobReader(dir_fd)
    with pytest.raises(TraceCorrupt):
        reader.read(ref.commitment)
    reader.close()


def test_files_are_private(pack: BlobPack, tmp_path: Path) -> None:
    pack.put(TEXT, "text/plain")
    for name in ("blobs", "blobs.idx"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_link_in_place_of_the_pack_is_refused(dir_fd: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "blobs").symlink_to("elsewhere")
    with pytest.raises(StateError, match="symbolic link"):
        BlobPack.open(dir_fd, KEY).put(TEXT, "text/plain")
