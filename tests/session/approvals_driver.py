"""A run with questions, without a world: what the tests start on a terminal.

`python -m tests.session.approvals_driver DIRECTORY SCRIPT COMMAND…` runs COMMAND behind a terminal
of its own, as `-c` does (real Streams, real HostTerminal), and asks as SCRIPT says, JSON:
`questions` (argv lists; asked when the command has printed `ask`), `approval` (of the policy), `before`
(asked by `ask_now` before the command starts). Answers are written as lines to DIRECTORY/answers.
"""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from substrate.session.approving import ask_now
from substrate.session.streams import Streams
from substrate.session.terminal import HostTerminal, is_foreground
from substrate.telemetry.trace.digests import Digester
from tests.session.approvals_scene import Place, asked


def main() -> None:
    directory, script, *command = sys.argv[1:]
    what = json.loads(script)
    place = Place(Path(directory))
    hung_up = []
    signal.signal(signal.SIGHUP, lambda *_: hung_up.append(1))
    log = open(f"{directory}/answers", "w", buffering=1)
    streams = None
    digester = Digester(b"k" * 32)
    piped = what.get("piped", False)
    approving = place.approving(
        terminal=True, door=True, paused=lambda: streams, **what.get("approval", {})
    )

    def tell(answers):
        for answer in answers:
            found = {"ticket": answer.ticket, "allowed": answer.allowed, "how": answer.how}
            log.write(json.dumps({**found, "by": answer.approved_by, "line": answer.line}) + "\n")

    host = None
    try:
        if "before" in what:
            watch, writing = os.pipe()
            os.set_blocking(writing, False)
            signal.set_wakeup_fd(writing)
            signal.signal(signal.SIGTERM, lambda *_: None)
            tell([ask_now(approving, asked("before", *what["before"]), watch=watch, gone=_yes)])
            return
        streams = Streams(1 << 20, digester.stream, None, terminal=not piped, closed=frozenset())
        pid, master = _start(command, streams, piped)
        if not piped and is_foreground(0):
            host = HostTerminal(0)
            host.copy_settings_to(master)
            streams.attach_terminal(master, lambda typed: typed)
            host.make_raw()
        begun = False
        while True:
            now = time.monotonic()
            poll = select.poll()
            for fd, events in approving.fds():
                poll.register(fd, events)
            wants = {}
            for pump in streams.pumps:
                wanted = pump.wants()
                if wanted is not None:
                    wants.setdefault(wanted[0], []).append(pump)
                    poll.register(wanted[0], wanted[1])
            look = approving.next_look()
            limit = 0.2 if look is None else min(0.2, max(0.0, look - now))
            ready = poll.poll(limit * 1000 + 1)
            for fd, _ in ready:
                for pump in wants.get(fd, ()):
                    if not pump.done:
                        pump.step()
            if not begun and b"ask" in bytes(streams.stdout.kept):
                begun = True
                for number, argv in enumerate(what["questions"]):
                    answer = approving.ask(asked(number, *argv), time.monotonic())
                    tell([answer] if answer is not None else [])
            approving.pump(time.monotonic())
            tell(approving.answers())
            if hung_up and not approving.state.open_questions():
                os.kill(pid, signal.SIGHUP)
            if streams.outputs_done():
                break
        os.waitpid(pid, 0)
    finally:
        approving.close()
        tell(approving.answers())
        if host is not None:
            host.restore()
        place.close()
        try:
            print("driver over", flush=True)
        except OSError:
            sys.stdout = None  # the terminal was hung up


def _yes() -> bool:
    return True


def _start(command, streams, piped):
    """(pid, master of its terminal or -1)."""
    master = slave = -1
    if not piped:
        master, slave = os.openpty()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        given = [streams.passed[n] if n >= 0 else slave for n in streams.stdio]
        for fd, source in enumerate(given):
            os.dup2(source if source >= 0 else os.open("/dev/null", os.O_RDWR), fd)
        os.closerange(3, 256)
        os.execvp(command[0], command)
    streams.close_passed()
    if slave >= 0:
        os.close(slave)
    return pid, master


main()
