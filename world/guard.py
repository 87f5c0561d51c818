"""What a command of a world without namespaces is put under, and who answers for it (`guard`).

Landlock keeps it to its copy of the workspace (landlock.py, private_copy.py), one filter refuses what
Landlock does not handle, another leaves calls to the world's first process (guard_filter.py,
answering.py). What this does not give, and session_start says so: processes, names and the loopback
of the host can be seen, and only descendants are known to belong to the world. Invariant: a command
is under all three before any code of its own runs, or it does not run. Spec: world.md §1, §6.
"""

from __future__ import annotations

import os
import select

from substrate.world import guard_filter, landlock, linux, script, wire
from substrate.world.egress import guide
from substrate.world.sockets_answered import Sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from substrate.world.answering import Answering
    from substrate.world.sockets_answered import Watch
    from substrate.world.spec import Frame, WorldSpec


def make_network(frame: Frame, end: _socket.socket) -> guide.Made | None:
    """What leads to egress, which the supervisor gets; None without a network. Raises OSError."""
    if frame.net != "filtered":
        return None
    made = guide.make()
    wire.send(end, wire.NETWORK, *made.sockets, fds=tuple(made.sockets.values()))
    for fd in made.sockets.values():
        os.close(fd)
    return made


class Guard:
    """One world's, in its first process."""

    def __init__(
        self,
        frame: Frame,
        spec: WorldSpec,
        made: guide.Made | None,
        answering: type[Answering],
    ) -> None:
        """Raises OSError where the kernel's Landlock cannot do it."""
        version = linux.landlock_abi()
        if version < landlock.LEAST_VERSION:
            raise OSError(
                0, f"version {landlock.LEAST_VERSION} is needed (Linux 6.12), this is {version}"
            )
        self._writable = tuple(map(os.path.realpath, spec.writable))
        self._ruleset = landlock.make_ruleset(self._writable, spec.readable)
        self._made, self._answering = made, answering
        with_network = made is not None
        self._hardening = guard_filter.build_hardening(
            with_network=with_network, allow_ptrace=frame.allow_ptrace
        )
        self._answered = guard_filter.build_answered(with_network=with_network)
        self._sockets: Sockets | None = None
        self._watch: Watch | None = None

    def begin(self, watch: Watch, processes: Callable[[], list[int]]) -> None:
        """`watch`: of the first process' loop; `processes`: all of the world."""
        self._watch = watch
        if self._made is not None:
            self._sockets = Sockets(self._made.door, self._made.places, watch, processes)

    def confine(self, to: _socket.socket, step: Callable[[str], None]) -> None:
        """In the child that becomes the command. Its listener goes to the first process, by `to`.
        Raises OSError."""
        step("landlock")
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict(self._ruleset)
        step("filter")
        listener = linux.install_filter(self._answered, script.LISTENER)
        linux.install_filter(self._hardening)
        wire.send(to, wire.HELLO, fds=(listener,))
        os.close(listener)

    def take_listener(self, end: _socket.socket) -> None:
        """Waits for what `confine` sends; nothing where the child has ended before."""
        message = wire.receive(end)
        end.close()
        if message is None or not message.fds:
            return
        fd = message.fds[0]
        answering = self._answering(fd, self._writable, self._sockets)
        watch = self._watch
        assert watch is not None

        def ready(events: int) -> None:
            if events & select.POLLIN:
                answering.ready()
            elif events & (select.POLLHUP | select.POLLERR):  # nobody is left under the filter
                watch(fd, 0, None)
                answering.listener.close()

        watch(fd, select.POLLIN, ready)
