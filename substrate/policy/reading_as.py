"""What a command is read as: itself, what a script's interpreter runs, what the wrappers in it run.

Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy.matching import CUT, WHOLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.policy.rules import Subject


class Part:
    """A command line that is judged by itself. `program`: the kernel's path of its file, b"" where
    that is not known. `name`: the path that it is run by. `known`: how much of argv that is.
    `has_default`: where no rule meets the default action holds."""

    __slots__ = (
        *("argv", "cwd", "has_default", "has_operators", "how", "known", "name", "piped_from"),
        *("program", "too_deep", "unclear"),
    )

    def __init__(self, argv: tuple[bytes, ...], cwd: bytes, how: str = "") -> None:
        self.argv = argv
        self.cwd = cwd
        self.how = how
        self.program = self.name = self.piped_from = b""
        self.known = WHOLE
        self.has_default = True
        self.has_operators = self.too_deep = self.unclear = False


def parts_of(subject: Subject, *, whole: bool = True) -> list[Part]:
    own = Part(subject.argv, subject.cwd)
    own.program, own.name = subject.program, subject.name
    if subject.cut:
        own.known = CUT
    return [own]
