"""The cache of digests: what it keeps, and what it does not believe (digest_cache.py)."""

import hashlib
import os
import random

import pytest

from substrate.session import digest_cache
from substrate.session.digest_cache import SLOTS, key_of, open_cache


@pytest.fixture
def home(tmp_path):
    return os.fsencode(tmp_path)


def digest(text):
    return hashlib.sha256(text).hexdigest()


def test_what_was_kept_is_found_again(home):
    cache = open_cache(home)
    keys = [os.urandom(16) for _ in range(500)]
    for key in keys:
        cache.keep(key, digest(key))
    cache.close()
    cache = open_cache(home)
    assert [cache.find(key) for key in keys] == [digest(key) for key in keys]
    assert cache.find(os.urandom(16)) is None
    assert os.stat(home + digest_cache.NAME).st_mode & 0o777 == 0o600
    cache.close()


def test_a_full_place_takes_the_new_one(home):
    cache = open_cache(home)
    same = [b"\x01\0\0\0" + bytes([n]) + bytes(11) for n in range(32)]
    for key in same:
        cache.keep(key, digest(key))
    assert cache.find(same[-1]) == digest(same[-1])
    assert sum(cache.find(key) is not None for key in same) == digest_cache.WAYS
    cache.close()


def test_a_damaged_entry_is_not_there(home):
    cache = open_cache(home)
    keys = [os.urandom(16) for _ in range(200)]
    for key in keys:
        cache.keep(key, digest(key))
    cache.close()
    generator = random.Random(7)
    with open(home + digest_cache.NAME, "r+b") as file:
        data = bytearray(file.read())
        used = [at for at in range(0, len(data), 64) if any(data[at : at + 64])]
        for at in used:
            data[at + generator.randrange(56)] ^= 1 << generator.randrange(8)
        file.seek(0)
        file.write(data)
    cache = open_cache(home)
    assert [cache.find(key) for key in keys] == [None] * len(keys)
    cache.close()


@pytest.mark.parametrize("size", [0, 1, 64 * SLOTS - 1, 64 * SLOTS + 4096])
def test_a_file_of_another_size_is_taken_over(home, size):
    with open(home + digest_cache.NAME, "wb") as file:
        file.truncate(size)
    cache = open_cache(home)
    cache.keep(b"k" * 16, digest(b"x"))
    assert cache.find(b"k" * 16) == digest(b"x")
    cache.close()


def test_a_link_is_not_followed(home, tmp_path):
    os.symlink(tmp_path / "elsewhere", home + digest_cache.NAME)
    with pytest.raises(OSError, match="symbolic links"):
        open_cache(home)


def test_a_key_is_of_all_that_the_kernel_says(tmp_path):
    file = tmp_path / "f"
    file.write_text("a")
    before = os.stat(file)
    key = key_of("plain", b"/f", before)
    assert key == key_of("plain", b"/f", os.stat(file))
    assert key != key_of("keyed", b"/f", before)
    assert key != key_of("plain", b"/g", before)
    file.write_text("b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert key != key_of("plain", b"/f", os.stat(file))  # its ctime


def test_a_young_file_may_change_unseen(tmp_path):
    file = tmp_path / "f"
    file.write_text("a")
    status = os.stat(file)
    assert not digest_cache.is_settled(status, status.st_ctime_ns + 1_000_000)
    assert digest_cache.is_settled(status, status.st_ctime_ns + 3_000_000_000)
