"""What is looked up of a process that is held: where its words lead, what it hands over."""

import ctypes
import os
import signal
import struct
import subprocess
import sys

import pytest

from substrate.session.gating_environ import _Unreadable, _Words, is_listed, listed, variables_of
from substrate.session.gating_looks import Looks

LOOKS = Looks()


@pytest.fixture
def process(tmp_path):
    """One that waits, in `tmp_path`."""
    running = subprocess.Popen(["sleep", "60"], cwd=tmp_path, stdin=subprocess.DEVNULL)
    yield running.pid
    running.kill()
    running.wait()


def test_a_word_leads_where_the_process_would_find_it(process, tmp_path):
    (tmp_path / "deploy").touch()
    (tmp_path / "x").symlink_to("deploy")
    here = os.fsencode(os.path.realpath(tmp_path))
    words = (b"x", b"./x", here + b"/x", b"/proc/self/cwd/x", b"/proc/self/root" + here + b"/x")
    for word in (*words, b"deploy", b"/proc/thread-self/cwd//x"):
        assert LOOKS.path_of(process, word) == here + b"/deploy"
    assert LOOKS.path_of(process, b"/dev/fd/0") == b"/dev/null"
    assert LOOKS.path_of(process, b"/proc/self/exe") == os.readlink(f"/proc/{process}/exe").encode()
    for word in (b"missing", b"", b"a\0b", b"x" * 5000, b"/proc/self/fd/99", b"/proc/self/fd/0/x"):
        assert LOOKS.path_of(process, word) in (None, here)
    assert LOOKS.path_of(1 << 30, b"x") is None


def test_a_name_leads_to_all_that_its_path_has(process, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "git").touch()
    here = os.fsencode(os.path.realpath(tmp_path))
    both = frozenset({here + b"/a/git", here + b"/b/git"})
    assert LOOKS.leads_to(process, b"git", here + b"/a:b:/none") == both
    assert LOOKS.leads_to(process, b"a/git", b"/none") == {here + b"/a/git"}
    assert LOOKS.leads_to(process, b"git", b"") == frozenset()


@pytest.mark.parametrize(
    "name",
    ["GIT_DIR", "LD_PRELOAD", "PATH", "KUBECONFIG", "NPM_CONFIG_REGISTRY", "https_proxy", "NODE_OPTIONS",
     "BASH_ENV", "CARGO_REGISTRIES_X_INDEX", "XDG_CONFIG_HOME"],
)  # fmt: skip
def test_what_changes_what_a_command_does_is_listed(name):
    assert is_listed(name.encode())


def test_the_rest_is_not_and_order_says_nothing():
    assert listed([b"TERM=x", b"GIT_B=1", b"GIT_A=2", b"GIT_B=1", b"x"]) == (b"GIT_A=2", b"GIT_B=1")
    assert not any(map(is_listed, (b"TERM", b"PWD", b"SHLVL", b"_", b"COLUMNS", b"")))


def test_of_a_process_that_execs_nothing_there_is_none(process):
    assert variables_of(process) is None
    assert variables_of(1 << 30) is None


def test_what_we_exec_ourselves_is_known():
    looks = Looks({7: ((b"GIT_DIR", b"/x"), (b"TERM", b"y"))})
    assert looks.variables_of(7) == (b"GIT_DIR=/x",)


def test_words_are_read_out_of_memory_and_bounded():
    words = [b"GIT_DIR=" + b"x" * 9000, b"TERM=" + b"y" * 9000, b"PATH=/bin", b""]
    texts = [ctypes.create_string_buffer(word) for word in words]
    array = ctypes.create_string_buffer(
        b"".join(struct.pack("=Q", ctypes.addressof(text)) for text in texts) + bytes(8)
    )
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        found = _Words(memory, 8).read(ctypes.addressof(array))
        assert [word[:200] for word in found] == [word[:200] for word in words]
        assert found[0] == words[0]  # on the list: whole
        assert _Words(memory, 8).read(0) == []
        endless = ctypes.create_string_buffer(
            struct.pack("=Q", ctypes.addressof(texts[3])) * (17 << 10)
        )
        with pytest.raises(_Unreadable):
            _Words(memory, 8).read(ctypes.addressof(endless))
        with pytest.raises((OSError, _Unreadable)):
            _Words(memory, 8).read(8)
    finally:
        os.close(memory)


def test_what_an_exec_hands_over_is_read_where_it_points_to(tmp_path):
    """Stopped by ptrace at the entry of execve, as a gate holds it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    code = (
        "import ctypes, os, signal\n"
        "ctypes.CDLL(None).ptrace(0, 0, 0, 0)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "os.execve('/bin/true', ['true'], {'GIT_DIR': '/other', 'TERM': 'x', 'PATH': '/bin'})\n"
    )
    child = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", code], os.environ)
    try:
        os.waitpid(child, 0)
        for _ in range(10_000):
            assert libc.ptrace(24, child, None, None) == 0  # PTRACE_SYSCALL
            _, status = os.waitpid(child, 0)
            assert os.WIFSTOPPED(status)
            found = variables_of(child)
            if found is not None:
                break
        assert found == (b"GIT_DIR=/other", b"PATH=/bin")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
