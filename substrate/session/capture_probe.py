"""Which capture backends work on this host, found out by capturing something (capture.md §2).

Never by versions: a child of ours installs the filters, waits, is attached to and makes a few
calls, and what the records say of them is compared with what it did. The first that works is
remembered by boot id, kernel, user, home and substrate's version. Invariant: a backend that did
not show what a known process does is not chosen.
"""

from __future__ import annotations

import os
import select

from substrate import __version__
from substrate.telemetry.capture import backends, engine, records
from substrate.telemetry.capture.backend import CaptureError
from substrate.values import value
from substrate.world import linux, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from substrate.session.home import Home
    from substrate.telemetry.capture.backends import AnyBackend
    from substrate.telemetry.capture.bpf_layout import Offsets

_CACHE = b"/capture"
#: the backends that were asked for by name and worked, with commas between
_ASKED = b"/capture-asked"
#: where this kernel keeps what `bpf` reads: 7 ms to find out
_OFFSETS = b"/capture-offsets"
#: what `auto` takes, best first; `notify` sees no results, so it is the last. `bpf` is asked for by
#: name (docs/adr/0014)
ORDER = ("hybrid", "ptrace", "python", "notify")
#: in a few words, for `doctor`
TELLS = {
    "hybrid": "everything, with the results of what changes something",
    "ptrace": "everything with results, slower",
    "python": "as ptrace, without the compiled engine, and many times slower",
    "notify": "what was tried; no results, and no ends of processes",
    "bpf": "everything with results, at nearly no cost; asked for by name, as it can lose records",
}
_TIMEOUT_MS = 5000
_LISTENER = 1 << 3 | 1 << 5
#: what the child of a probe does: a call that only reads, one that changes something
_READ, _CHANGED = "/proc/self/comm", "/proc/substrate-probe"


@value
class CaptureProbe:
    """One backend on this host; `step` and `why` are empty where it works."""

    backend: str
    works: bool
    step: str = ""
    why: str = ""


def choose(home: Home, *, debuggers: bool = False) -> str | None:
    """The best backend that works here, remembered; None where none does. `debuggers`: the command
    traces processes of its own, which have no room for a second tracer."""
    if debuggers:
        return "notify" if check(home, "notify").works else None
    key = _key()
    remembered = _recall(home, _CACHE, key)
    if remembered in ORDER:
        return remembered
    for backend in ORDER:
        if probe(backend).works:
            _remember(home, _CACHE, f"{key} {backend}\n")
            return backend
    return None


def choose_without_listener(home: Home) -> str | None:
    """The best backend that has no seccomp listener of its own, and works here."""
    return next((name for name in ("ptrace", "python") if check(home, name).works), None)


def check(home: Home, backend: str) -> CaptureProbe:
    """Whether the backend that is asked for works here; remembered where it does."""
    key = _key()
    known = [name for name in _recall(home, _ASKED, key).split(",") if name in backends.NAMES]
    if backend in known:
        return CaptureProbe(backend=backend, works=True)
    found = probe(backend)
    if found.works:
        _remember(home, _ASKED, f"{key} {','.join([*known, backend])}\n")
    return found


def kernel_offsets(home: Home) -> Offsets:
    """What `bpf` needs to know of this kernel, remembered. Raises CaptureError."""
    from substrate.telemetry.capture import bpf, bpf_layout

    key = _key()
    found = bpf_layout.parse_offsets(_recall(home, _OFFSETS, key))
    if found is None:
        found = bpf.load_offsets()
        _remember(home, _OFFSETS, f"{key} {bpf_layout.offsets_to_text(found)}\n")
    return found


def _recall(home: Home, name: bytes, key: str) -> str:
    """The last word of this file, "" where it is of another boot, version or user."""
    try:
        with open(home.path + name, encoding="utf-8") as file:
            known, _, word = file.read(4096).rstrip("\n").rpartition(" ")
    except FileNotFoundError:
        return ""  # nothing is remembered yet
    return word if known == key else ""


def forget(home: Home) -> None:
    """Drops what is remembered, after a capture with it could not begin."""
    for name in (_CACHE, _ASKED, _OFFSETS):
        try:
            os.unlink(home.path + name)
        except FileNotFoundError:
            continue


def _key() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot_id = file.read().strip()
    built = "built" if engine.is_built() else "plain"
    return f"1 {boot_id} {os.uname().release} {__version__} {os.geteuid()} {built}"


def _remember(home: Home, name: bytes, text: str) -> None:
    temporary = home.path + name + b".%d" % os.getpid()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, home.path + name)


def probe_all() -> list[CaptureProbe]:
    """Every backend, each really tried."""
    return [probe(backend) for backend in backends.NAMES]


def probe(backend: str) -> CaptureProbe:
    """Captures a child of ours."""
    step = "load"
    try:
        capture = backends.make(backend, "files")
    except CaptureError as error:
        return CaptureProbe(backend=backend, works=False, step=step, why=str(error))
    try:
        return _probe(backend, capture)
    except CaptureError as error:
        return CaptureProbe(backend=backend, works=False, step=error.step, why=error.text)
    finally:
        capture.close()


def _probe(backend: str, capture: AnyBackend) -> CaptureProbe:
    programs = engine.programs_of(backend, "files")
    capture.fileno()  # bpf has loaded what it needs then: no thread of it goes on beside the fork
    ours, theirs = wire.pair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _act(programs, theirs)
        finally:
            os._exit(1)
    theirs.close()
    try:
        hello = wire.receive(ours)
        if hello is None or hello.kind == wire.FAILED:
            why = "the child ended early" if hello is None else hello.text(2)
            os.waitpid(pid, 0)
            return CaptureProbe(backend=backend, works=False, step="filter", why=why)
        capture.attach(pid, hello.fds[0] if hello.fds else None)
        ours.send(b"g")
        seen = _drain(capture)
    finally:
        ours.close()
        _reap(pid)
    missing = [path for path in (_READ, _CHANGED) if path.encode() not in seen]
    if missing:
        why = f"what a process did was not seen ({', '.join(missing)})"
        return CaptureProbe(backend=backend, works=False, step="records", why=why)
    return CaptureProbe(backend=backend, works=True)


def _act(programs: engine.Programs, theirs: _socket.socket) -> None:
    try:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        fds: tuple[int, ...] = ()
        if programs.notify:
            fds = (linux.install_filter(programs.notify, _LISTENER),)
        wire.send(theirs, wire.HELLO, fds=fds)
        for fd in fds:
            os.close(fd)
        if theirs.recv(1) != b"g":
            os._exit(1)
        if programs.trace:
            linux.install_filter(programs.trace)
    except OSError as error:
        wire.send(theirs, wire.FAILED, "filter", error.errno or 0, error.strerror or str(error))
        os._exit(1)
    os.close(os.open(_READ, os.O_RDONLY))
    try:
        os.mkdir(_CHANGED)
    except OSError:
        os._exit(0)  # nobody makes a directory in /proc
    os._exit(0)


def _drain(capture: AnyBackend) -> set[bytes]:
    """The paths of all calls that were seen."""
    seen: set[bytes] = set()
    poll = select.poll()
    for fd in (capture.fileno(), capture.soft_fileno()):
        poll.register(fd, select.POLLIN)
    while not capture.finished():
        if not poll.poll(_TIMEOUT_MS):
            raise CaptureError("wait", 0, "the process did not end")
        data = capture.drain()
        for head, at, end in records.read_records(data):
            if head[1] == records.CALL:
                items = records.read_items(data, at, end)
                seen.update(text for tag, _, text in items if tag == records.PATH)
    return seen


def _reap(pid: int) -> None:
    """The tracer may have been told of its end already: it is in our process."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return
