"""Which capture backends work here, and what is remembered of it (capture_probe.py)."""

import os
import sys

import pytest

import substrate.telemetry.capture
from substrate.session import capture_probe
from substrate.session.home import open_home
from substrate.telemetry.capture import bpf, bpf_layout, bpf_types, engine


@pytest.fixture
def home(tmp_path):
    opened = open_home(os.fsencode(tmp_path / "home"))
    yield opened
    os.close(opened.fd)


@pytest.mark.parametrize("backend", engine.NAMES)
def test_each_backend_is_really_tried(backend):
    before = set(os.listdir("/proc/self/fd"))
    found = capture_probe.probe(backend)
    assert (found.works, found.step, found.why) == (True, "", "")
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_best_is_remembered(home):
    chosen = capture_probe.choose(home)
    assert chosen == capture_probe.ORDER[0]
    with open(home.path + b"/capture") as file:
        assert file.read().split()[-1] == chosen
    capture_probe.forget(home)
    assert not os.path.exists(home.path + b"/capture")
    capture_probe.forget(home)


def test_what_was_remembered_of_another_boot_is_tried_again(home):
    with open(home.path + b"/capture", "w") as file:
        file.write("1 another boot notify\n")
    assert capture_probe.choose(home) == capture_probe.ORDER[0]


def test_what_was_asked_for_is_tried_once(home, monkeypatch):
    assert capture_probe.check(home, "ptrace").works
    tried = []
    really = capture_probe.probe
    monkeypatch.setattr(capture_probe, "probe", lambda b: tried.append(b) or really(b))
    assert capture_probe.check(home, "ptrace").works
    assert capture_probe.check(home, "notify").works
    assert capture_probe.check(home, "ptrace").works  # both are remembered
    assert tried == ["notify"]
    capture_probe.forget(home)
    assert capture_probe.check(home, "notify").works
    assert tried == ["notify", "notify"]


def test_debuggers_have_room(home):
    assert capture_probe.choose(home, debuggers=True) == "notify"


def test_a_backend_that_sees_nothing_does_not_work(monkeypatch):
    """Filters that send nothing: everything installs, and nothing is seen."""
    nothing = engine.Programs(notify=b"", trace=b"")
    monkeypatch.setattr(engine, "programs_of", lambda *_, **__: nothing)
    found = capture_probe.probe("ptrace")
    assert not found.works
    assert found.step == "records"


def test_without_the_engine_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "substrate.telemetry.capture._engine", None)
    monkeypatch.delattr(substrate.telemetry.capture, "_engine", raising=False)
    assert not engine.is_built()
    found = capture_probe.probe("hybrid")
    assert not found.works and found.step == "load"


@pytest.mark.skipif(os.geteuid() != 0, reason="bpf(2) is not to be had: another user than root")
def test_where_the_kernel_keeps_what_bpf_reads_is_found_once(home, monkeypatch):
    found = capture_probe.kernel_offsets(home)
    assert found == bpf_layout.find_offsets(bpf_types.Types())
    monkeypatch.setattr(bpf, "load_offsets", lambda: pytest.fail("it was found before"))
    assert capture_probe.kernel_offsets(home) == found
    capture_probe.forget(home)
    with pytest.raises(pytest.fail.Exception):
        capture_probe.kernel_offsets(home)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("pid=", "pid=-"),
        lambda text: text.replace("pid=", "pid=7777777"),
        lambda text: text + ",more=1",
        lambda text: text.replace("pid=", "pid=\u0663"),
    ],
)
def test_offsets_that_are_not_whole_are_none(spoil):
    text = ",".join(f"{name}={8 * n}" for n, name in enumerate(bpf_layout.Offsets.__annotations__))
    whole = bpf_layout.parse_offsets(text)
    assert whole is not None
    assert bpf_layout.offsets_to_text(whole) == text
    assert bpf_layout.parse_offsets(spoil(text)) is None
