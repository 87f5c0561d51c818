"""What is said of a command that did not end by itself, to whoever called it.

Said by a run of our own (cli/run.py) and by the supervisor of a session to a joined client (command_end.py). Not what the
world or the policy denied (denials.py, gating_lines.py). Spec: shell.md §1.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from substrate.session.command_run import Ended
    from substrate.session.denials import Denial

#: by `ended_by`
ENDINGS: Final = {
    "timeout": "substrate: the command was ended: its time was up (124): --timeout TIME gives it more",
    "limit": "substrate: the command was ended: its layer reached the disk limit (124): "
    "--limit disk=SIZE raises it",
    "halt": "substrate: the command was ended: it did more than could be written down (--overflow halt)",
    "supervisor": "substrate: the world ended under the command: its first process was killed",
}
#: codes of denials that say it by themselves
SAYS: Final = ("execs_limit", "runtime_limit", "disk_limit")


def ending_line(ended: Ended, denials: Sequence[Denial]) -> str:
    """Empty for one that ended by itself. A denial that says it stands in its place."""
    said = [denial.text for denial in denials if denial.code in SAYS]
    if said:
        return f"substrate: {said[0]}"
    if ended.ended_by in ENDINGS:
        return ENDINGS[ended.ended_by]
    if ended.failed is not None:
        return f"substrate: {ended.failed[0]}: {ended.failed[2]}"
    return ""
