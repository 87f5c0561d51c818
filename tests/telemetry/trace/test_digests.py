import hashlib
import hmac
import os
import stat
import subprocess
import sys
import tempfile
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import StateError
from substrate.telemetry.trace.digests import Digester, load_key, sha256_fd


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_a_digest_is_hmac_sha256(key, content):
    assert Digester(key).digest_bytes(content) == hmac.digest(key, content, "sha256").hex()


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 3 * 1024 * 1024])
def test_a_file_has_the_digest_of_its_bytes_and_keeps_its_position(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    digester = Digester(bytes(32))
    with (tmp_path / "f").open("rb") as file:
        file.seek(min(size, 7))
        assert digester.digest_fd(file.fileno()) == (digester.digest_bytes(content), size)
        assert sha256_fd(file.fileno()) == (hashlib.sha256(content).hexdigest(), size)
        assert file.tell() == min(size, 7)


@pytest.mark.parametrize("piece", [1, 1000, 65536, 65537, 400_000])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_stream_has_the_digest_of_its_pieces_joined(piece, count):
    content = os.urandom(piece * count)
    digester = Digester(bytes(32))
    stream = digester.stream()
    buffer = bytearray(piece)
    for number in range(count):  # the same buffer again and again, as a reader uses it
        buffer[:] = content[number * piece : (number + 1) * piece]
        stream.update(memoryview(buffer))
        so_far = content[: (number + 1) * piece]
        assert stream.hexdigest() == hmac.digest(bytes(32), so_far, "sha256").hex()
    assert stream.hexdigest() == digester.digest_bytes(content)


def test_openssl_is_loaded_when_much_was_hashed():
    program = (
        "import sys\n"
        "from substrate.telemetry.trace.digests import Digester\n"
        "digester = Digester(bytes(32))\n"
        "for number in range(10):\n"
        "    digester.digest_bytes(bytes(1000))\n"
        "few = 'hashlib' in sys.modules\n"
        "for number in range(1000):\n"
        "    digester.digest_bytes(bytes(1000))\n"
        "print(few, 'hashlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


def test_a_key_is_made_once_and_kept(tmp_path):
    key = load_key(str(tmp_path))
    path = tmp_path / "keys/digest.key"
    assert len(key) == 32
    assert load_key(str(tmp_path)) == key == path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "keys") == ["digest.key"]


def _load(home, queue):
    queue.put(load_key(home))


def test_processes_that_make_the_key_at_once_get_one_key(tmp_path):
    context = get_context("fork")
    queue = context.SimpleQueue()
    racers = [context.Process(target=_load, args=(str(tmp_path), queue)) for _ in range(8)]
    for racer in racers:
        racer.start()
    keys = {queue.get() for _ in racers}
    for racer in racers:
        racer.join()
    assert keys == {load_key(str(tmp_path))}
    assert os.listdir(tmp_path / "keys") == ["digest.key"]


def _spoil_size(path):
    path.write_bytes(bytes(31))


def _spoil_long(path):
    path.write_bytes(bytes(33))


def _spoil_empty(path):
    path.write_bytes(b"")


def _spoil_mode(path):
    path.chmod(0o640)


def _spoil_link(path):
    path.rename(path.with_name("other"))
    path.symlink_to(path.with_name("other"))


def _spoil_fifo(path):
    path.unlink()
    os.mkfifo(path, 0o600)


def _spoil_directory(path):
    path.unlink()
    path.mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (_spoil_size, "31 bytes", "put the right file back"),
        (_spoil_long, "33 bytes", "put the right file back"),
        (_spoil_empty, "0 bytes", "put the right file back"),
        (_spoil_mode, "mode 0640", "chmod 600"),
        (_spoil_link, "cannot be used", "symbolic link"),
        (_spoil_fifo, "not a regular file", "remove"),
        (_spoil_directory, "not a regular file", "remove"),
    ],
)
def test_a_key_that_cannot_be_trusted_is_refused_and_left_alone(tmp_path, spoil, message, hint):
    load_key(str(tmp_path))
    path = tmp_path / "keys/digest.key"
    spoil(path)
    before = _all_but_its_access_time(path)
    with pytest.raises(StateError, match=message) as problem:
        load_key(str(tmp_path))
    assert hint in problem.value.hint
    assert _all_but_its_access_time(path) == before


def _all_but_its_access_time(path):
    found = path.lstat()
    names = (n for n in dir(found) if n.startswith("st_") and not n.startswith("st_atime"))
    return {name: getattr(found, name) for name in names}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_key_of_somebody_else_is_refused(tmp_path):
    load_key(str(tmp_path))
    os.chown(tmp_path / "keys/digest.key", 12345, -1)
    with pytest.raises(StateError, match="belongs to uid 12345") as problem:
        load_key(str(tmp_path))
    assert "chown" in problem.value.hint


def test_a_home_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(StateError, match="cannot be used"):
        load_key(str(tmp_path / "home"))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 3), st.booleans()), min_size=1, max_size=6
    )
)
def test_a_file_with_holes_has_the_digest_of_its_bytes(pieces):
    digester = Digester(bytes(32))
    steps = []
    digester.between = lambda: steps.append(1)
    with tempfile.TemporaryFile() as file:
        for at, count, zeros in pieces:
            content = bytes(count * 4096) if zeros else os.urandom(count * 4096)
            os.pwrite(file.fileno(), content, at * 65536)
        whole = os.pread(file.fileno(), 1 << 24, 0)
        assert digester.digest_own(file.fileno()) == digester.digest_bytes(whole)
        assert len(steps) >= len(whole) // (256 * 1024)


def test_a_hole_is_not_read(tmp_path):
    with (tmp_path / "f").open("wb+") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
        file.flush()
        before = _read_bytes()
        found = Digester(bytes(32)).digest_own(file.fileno())
        assert _read_bytes() - before < 4 << 20
        assert found == Digester(bytes(32)).digest_fd(file.fileno())[0]


def _read_bytes():
    with open("/proc/self/io", "rb") as file:
        return int(file.readline().split()[1])
