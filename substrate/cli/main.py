"""The command `substrate`: run forms go the short way, verbs the long one.

Hot path up to the run: click, rich and the verbs are imported only for a verb. Invariants:
substrate's own failure of a run form is 125 (2 for a wrong call) and says so behind
`substrate: `; a verb gives the status of its error (errors.py); a bug gives its traceback.
Spec: shell.md §1 "Exit status".
"""

from __future__ import annotations

import gc
import os
import sys

from substrate.errors import StateError, SubstrateError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from substrate.world.handle import Zygote

FAILED = 125
_INTERRUPTED = 130


def main() -> int:
    """Runs the command line of this process; returns its exit status."""
    gc.disable()  # what a short run allocates is not worth looking through
    closed = hold_closed_fds()
    words = [os.fsencode(word) for word in sys.argv[1:]]
    try:
        if words[:1] == [b"hook"] and not {b"--help", b"-h"} & set(words):
            from substrate.cli.hook import run_hook  # twice a tool call: without click

            return run_hook(words[1:])
        if words[:1] == [b"--as-shim"]:
            from substrate.cli.as_shim import run_as_shim

            run_as_shim(words[1:], closed)
        if is_verb(words):
            gc.enable()
            from substrate.cli.verbs import run_verb

            return run_verb([os.fsdecode(word) for word in words])
        return run_form(words, closed)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _stop_writing()
        return 0


def leave(status: int) -> NoReturn:
    """Ends the process. Not by sys.exit: taking the interpreter apart costs a short run some
    milliseconds, and there is nothing left to take apart."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # Python leaves it out where the fd was closed
            try:
                stream.flush()
            except OSError:  # whoever reads our output has gone
                status = status or 1
    os._exit(status)


def hold_closed_fds() -> frozenset[int]:
    """Which of 0, 1, 2 are closed; /dev/null holds their places, so that nothing that is
    opened later is taken for a standard stream."""
    closed = []
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            closed.append(fd)
    for fd in closed:
        got = os.open("/dev/null", os.O_RDWR)
        if got != fd:
            os.dup2(got, fd)
            os.close(got)
    return frozenset(closed)


def is_verb(words: Sequence[bytes]) -> bool:
    """Whether click has to look at this: a verb but `run`, or a word that asks for help."""
    if not words:
        return False
    first = os.fsdecode(words[0])
    if first == "-h" and len(words) == 1:  # with more, it is the shell's hashall
        return True
    if first in ("--help", "--version", "help"):
        return True
    if first in ("", "run") or first[0] == "-":  # by far the most, and the table takes time to load
        return False
    from substrate.cli.options import VERBS

    return first in VERBS


def run_form(words: Sequence[bytes], closed: frozenset[int]) -> int:
    """`-c`, `-f`, a script, `run`, or an interactive shell: by the supervisor that holds the session,
    else by one of our own."""
    from substrate.session.join_client import may_join

    if may_join(words, os.environb):
        from substrate.cli.join import join_form

        joined = join_form(words, closed)
        if joined is not None:
            return joined
    from substrate.world.handle import Zygote

    # before anything large is loaded, any file is opened and any lock is held
    zygote = Zygote()
    try:
        return _run_form(words, closed, zygote)
    finally:
        zygote.close()


def _run_form(words: Sequence[bytes], closed: frozenset[int], zygote: Zygote) -> int:
    from substrate.cli.arguments import HelpWanted, parse_run
    from substrate.cli.messages import say_error

    try:
        request = parse_run(
            words,
            os.environb,
            terminal=0 not in closed and os.isatty(0),
            stdin_open=0 not in closed,
        )
    except HelpWanted as help_wanted:
        from substrate.cli.verbs import run_verb

        asked = [help_wanted.verb, help_wanted.word] if help_wanted.verb else [help_wanted.word]
        return run_verb(asked)
    except SubstrateError as error:
        say_error(error)
        return status_of(error)

    from substrate.cli.run import run_request

    try:
        return run_request(request, closed, zygote)
    except SubstrateError as error:
        say_error(error)
        return status_of(error)
    except KeyboardInterrupt:
        raise
    except OSError as error:  # EPIPE too: who reads the command's output is not told by it
        known = host_error(error)
        if known is None:
            return _bug()
        say_error(known)
        return FAILED
    except Exception:  # noqa: BLE001 - the edge of the process: a bug is 125, not 1
        return _bug()


def status_of(error: SubstrateError) -> int:
    """The exit status of a run form that failed: a wrong call is 2, all else 125."""
    return 2 if isinstance(error, UsageError) else FAILED


def host_error(error: OSError) -> SubstrateError | None:
    """An error of the host as a message; None where it looks like a bug of ours."""
    import errno

    hints = {
        errno.ENOSPC: "make room, or set SUBSTRATE_HOME to a directory on another disk; what was "
        "recorded until then is kept",
        errno.EDQUOT: "make room in your quota, or set SUBSTRATE_HOME to another disk",
        errno.EROFS: "set SUBSTRATE_HOME to a directory that can be written",
        errno.EIO: "the disk fails: look at `dmesg`",
        errno.EMFILE: "raise the limit: ulimit -n",
        errno.ENFILE: "the host has no file descriptors left",
        errno.ENOMEM: "the host has no memory left",
        errno.EAGAIN: "no more processes can be started: ulimit -u, or the cgroup's pids.max",
        errno.EACCES: "look at the owner and the mode of that place",
        errno.EPERM: "look at the owner and the mode of that place",
        errno.ENOSYS: "this kernel lacks the call, or a seccomp filter on this process hides it: "
        "substrate needs Linux 5.12 or later; `substrate doctor` tries what worlds need",
        errno.EPIPE: "a process of substrate was killed; run the command again",
    }
    if error.errno == errno.ENOENT and _was_ours(error.filename):
        return StateError(
            f"{os.fsdecode(error.filename)} was removed while substrate worked with it",
            hint="SUBSTRATE_HOME belongs to substrate alone; its changes were lost with it",
        )
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP) and _is_of_a_session(
        error.filename
    ):
        return StateError(
            f"{os.fsdecode(error.filename)} is not what substrate put there: {error.strerror}",
            hint="SUBSTRATE_HOME belongs to substrate alone; put it back, or use --fresh for a new "
            "world",
        )
    if error.errno not in hints:
        return None
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return StateError(f"{where}{error.strerror}", hint=hints[error.errno])


def _was_ours(path: str | bytes | int | None) -> bool:
    """Whether a path lies in $SUBSTRATE_HOME."""
    from substrate.session.home import default_path

    if not isinstance(path, (str, bytes)):
        return False
    return os.fsencode(path).startswith(default_path(os.environb) + b"/")


def _is_of_a_session(path: str | bytes | int | None) -> bool:
    """Whether a file is one of ours; those of a session are opened by their names in it."""
    return _was_ours(path) or (isinstance(path, (str, bytes)) and os.fsencode(path)[:1] != b"/")


def _bug() -> int:
    import traceback

    try:
        traceback.print_exc()
    except OSError:
        return FAILED  # nobody reads it
    return FAILED


def _stop_writing() -> None:
    """Who reads our output has gone: the interpreter must not flush into it at its end."""
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
