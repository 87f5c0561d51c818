"""The process of a session that lives on its own: what `world start` makes, and leaves.

`launch` starts it and waits until it can be joined; `main` is its life: a session of processes of its own, no terminal,
nothing of its caller's but the directory and the environment. Where it fails at its start, its caller is told. Not
what it does then (session/daemon.py). Spec: shell.md §2.
"""

from __future__ import annotations

import os
import sys

from substrate.errors import SessionBusy, StateError, SubstrateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_CODE = "from substrate.cli.serve_session import main; main()"
_MOST_ANSWER = 65536


def launch(words: Sequence[bytes]) -> dict[str, Any]:
    """Starts it with the flags of a run (`words`), and gives what it says of itself: session, world, pid.
    Raises StateError with what it failed by, SessionBusy where somebody holds the session."""
    import json

    reading, writing = os.pipe()
    null, pid = os.open("/dev/null", os.O_RDWR), 0
    try:
        argv = [
            *(sys.executable, "-P", "-c", _CODE, str(writing)),
            *(os.fsdecode(word) for word in words),
        ]
        os.set_inheritable(writing, True)
        pid = os.posix_spawn(
            sys.executable,
            argv,
            os.environb,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)],
            setsid=True,
        )
        os.close(writing)
        writing = -1
        answer = b""
        # a line: its zygote holds the pipe, too
        while len(answer) < _MOST_ANSWER and not answer.endswith(b"\n"):
            more = os.read(reading, 4096)
            if not more:
                break
            answer += more
    finally:
        os.close(null)
        os.close(reading)
        if writing >= 0:
            os.close(writing)
        if pid:
            os.waitpid(pid, 0)  # only begins it
    found: dict[str, Any] = (
        json.loads(answer) if answer else {"error": "it ended early", "hint": ""}
    )
    if "error" in found:
        kind = SessionBusy if found.get("busy") else StateError
        raise kind(found["error"], hint=found["hint"] or "look at the log of the session")
    return found


def main() -> None:
    """The life of the process. Never returns."""
    import gc

    if os.fork():  # else whoever began it would have it as a zombie when it has ended
        os._exit(0)
    os.setsid()

    from substrate.world import linux

    gc.disable()
    told = 3
    if int(sys.argv[1]) != told:
        os.dup2(int(sys.argv[1]), told)
    os.set_inheritable(told, False)
    linux.close_range(told + 1)  # a pipe of our caller's would never end for its reader
    words = [os.fsencode(word) for word in sys.argv[2:]]
    from substrate.world.handle import Zygote

    zygote = Zygote()  # before anything large is loaded and any lock is held
    status = 125
    try:
        status = _serve(words, zygote, told)
    finally:
        zygote.close()
        os._exit(status)


def _serve(words: Sequence[bytes], zygote: Any, told: int) -> int:
    import gc
    import json

    from substrate.cli.arguments import parse_run
    from substrate.cli.run import load_for
    from substrate.session.daemon import Daemon
    from substrate.session.live_session import LiveSession
    from substrate.session.signals import SignalPipe
    from substrate.session.workspace import current_directory

    arriving = SignalPipe()
    daemon: Daemon | None = None
    try:
        try:
            request = parse_run(words, os.environb, terminal=False, stdin_open=True)
            loaded = load_for(request, frozenset((0, 1, 2)))
            session = LiveSession(loaded.settings, zygote, arriving, current_directory())
            daemon = Daemon(request, loaded.settings, zygote, arriving, session)
            daemon.open()
        except (SubstrateError, OSError) as error:
            text = (error.strerror if isinstance(error, OSError) else "") or str(error)
            hint = error.hint if isinstance(error, SubstrateError) else ""
            busy = isinstance(error, SessionBusy)
            said = json.dumps({"error": text, "hint": hint, "busy": busy})
            os.write(told, said.encode() + b"\n")
            return 125
        os.write(told, json.dumps(daemon.reception.status()).encode() + b"\n")
        os.close(told)
        gc.enable()
        gc.freeze()
        try:
            daemon.serve()
        except Exception as error:
            daemon.log(f"ended: {error!r}")
            raise
        return 0
    finally:
        if daemon is not None:
            daemon.close()
