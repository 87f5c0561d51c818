"""What the supervisor knows of a command that ended, put together for `denials`.

Reads the counters of the world's control groups, nothing else. Spec: world.md §2.
"""

from __future__ import annotations

import os

from substrate.session.denials import TAIL_BYTES, Denial, Seen, denials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.command_run import Ended
    from substrate.session.settings import Settings
    from substrate.session.streams import Streams
    from substrate.session.world_setup import HostView
    from substrate.world.cgroup import CgroupSet
    from substrate.world.spec import WorldSpec


def look(
    ended: Ended,
    status: int,
    streams: Streams,
    spec: WorldSpec,
    settings: Settings,
    host: HostView,
    cwd: bytes,
    state: bytes,
    withheld: tuple[bytes, ...],
    groups: CgroupSet | None,
    unreadable: tuple[bytes, ...] = (),
) -> tuple[Denial, ...]:
    """What was denied; `status` is the one that is handed back. Standard output is looked at only
    where the complaint of a failed command may stand there."""
    if spec.frame.backend == "none" or ended.failed is not None:
        return ()
    output = streams.stderr.tail(TAIL_BYTES)
    if status != 0 and (streams.joined or streams.terminal or not output):
        output += b"\n" + streams.stdout.tail(TAIL_BYTES)
    used = groups.usage() if groups is not None and groups.directories else None
    return denials(
        Seen(
            backend=spec.frame.backend,
            settings=settings,
            output=output,
            signal=status - 128 if 128 < status < 160 else None,
            uid=spec.frame.uid,
            cwd=cwd,
            home=host.user_home,
            hidden=(*spec.hidden_directories, *spec.hidden_files),
            read_only=(*spec.bound, *spec.read_only),
            asked=tuple(os.path.realpath(p) for p in (*settings.hide, *settings.ro)),
            unreadable=unreadable,
            state=state,
            withheld=withheld,
            memory_kills=(used and used.memory_kills) or 0,
            pids_refused=(used and used.pids_refused) or 0,
        )
    )
