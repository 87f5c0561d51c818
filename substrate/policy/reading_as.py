"""What a command is read as: itself, what a script's interpreter runs, what the wrappers in it run.

A flat row of parts, outermost first. Invariants: bounded (MOST_DEPTH inwards, MOST_PARTS in all); what is too
deep is said so, never dropped in silence; the first part is the command as it was given. Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy.matching import CUT, MORE_OPERANDS, WHOLE
from substrate.policy.names import LOADERS, MULTI_CALL, goes_by, last_name
from substrate.policy.shell_text import read_text
from substrate.policy.wrappers import SHELLS, Inner, unwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from substrate.policy.argv import Reading
    from substrate.policy.rules import Subject

MOST_DEPTH: Final = 8
MOST_PARTS: Final = 256
#: words of an argv that are read; a gate has no more, a shim or a client may send some
MOST_WORDS: Final = 128 << 10

#: how a part came about
GIVEN, INTERPRETER, EXEC, IN_PROCESS, BUILTIN, SCRIPT = (
    "given",
    "interpreter",
    "exec",
    "in process",
    "builtin",
    "script",
)

#: where a system has its own shell. One that is busybox usually execs what it runs, as any other shell
_SYSTEM_SHELLS: Final = (b"/bin/sh", b"/usr/bin/sh", b"/bin/ash", b"/usr/bin/ash")

#: what a shell does itself; a rule may speak of it, the default action does not
BUILTINS: Final = frozenset(
    (
        *(
            b".",
            b":",
            b"[",
            b"[[",
            b"alias",
            b"bg",
            b"bind",
            b"break",
            b"builtin",
            b"caller",
            b"cd",
            b"command",
        ),
        *(
            b"compgen",
            b"complete",
            b"compopt",
            b"continue",
            b"declare",
            b"dirs",
            b"disown",
            b"echo",
            b"enable",
        ),
        *(
            b"eval",
            b"exec",
            b"exit",
            b"export",
            b"false",
            b"fc",
            b"fg",
            b"getopts",
            b"hash",
            b"help",
            b"history",
        ),
        *(
            b"jobs",
            b"kill",
            b"let",
            b"local",
            b"logout",
            b"mapfile",
            b"popd",
            b"printf",
            b"pushd",
            b"pwd",
            b"read",
        ),
        *(
            b"readarray",
            b"readonly",
            b"return",
            b"set",
            b"shift",
            b"shopt",
            b"source",
            b"suspend",
            b"test",
            b"time",
        ),
        *(
            b"times",
            b"trap",
            b"true",
            b"type",
            b"typeset",
            b"ulimit",
            b"umask",
            b"unalias",
            b"unset",
            b"wait",
        ),
    )
)


class Part:
    """A command line that is judged by itself. `program`: the kernel's path of its file, b"" where
    that is not known. `name`: the path that it is run by. `known`: how much of argv that is.
    `has_default`: where no rule meets the default action holds. `unclear`: there is more in it than could
    be read. `text`: of a shell's text that was read. `is_multi_call`: what it runs may be in the same
    program, which need not exec itself. `is_blind`: that, and which commands it runs is not known. `is_cut`: there
    is more in it than is read of anything."""

    __slots__ = (
        *(
            "argv",
            "called",
            "cwd",
            "depth",
            "has_default",
            "has_operators",
            "how",
            "is_blind",
            "is_cut",
            "is_multi_call",
            "known",
            "main",
            "name",
            "piped_from",
        ),
        *("program", "readings", "text", "too_deep", "unclear"),
    )

    def __init__(self, argv: tuple[bytes, ...], cwd: bytes, how: str, depth: int) -> None:
        self.argv = argv
        self.cwd = cwd
        self.how = how
        self.depth = depth
        self.program = self.name = self.piped_from = b""
        #: the last names of argv[0], and of what it is as a program: of its file, but of one that does
        #: what it is called that
        self.called = self.main = b""
        self.text: bytes | None = None
        self.known = WHOLE
        #: by the table that it was read by
        self.readings: dict[int, Reading] = {}
        self.has_default = True
        self.has_operators = self.too_deep = self.unclear = self.is_multi_call = False
        self.is_blind = self.is_cut = False

    def settle(self) -> None:
        """Names it, once its fields are set."""
        called = self.called = last_name(self.argv[0]) if self.argv else b""
        file = last_name(self.program)
        self.main = goes_by(file, called) if file else called or last_name(self.name)
        self.is_multi_call = self.is_multi_call or not MULTI_CALL.isdisjoint((file, self.main))


def parts_of(subject: Subject, *, whole: bool = True) -> list[Part]:
    """`whole`: also what is run by an exec of its own."""
    own = Part(subject.argv[:MOST_WORDS], subject.cwd, GIVEN, 0)
    own.program, own.name = subject.program, subject.name
    if subject.cut or len(subject.argv) > MOST_WORDS:
        own.known = CUT
    reader = _Reader(subject, whole)
    reader.take(own)
    if subject.interpreters:
        for part in _interpreters(subject):
            reader.take(part)
    return reader.parts


def _interpreters(subject: Subject) -> list[Part]:
    """What the kernel runs of a script: the interpreter, its argument, the script's name, the rest."""
    found = []
    words = (subject.name or subject.program, *subject.argv[1:])
    for number, program in enumerate(subject.interpreters):
        is_last = number == len(subject.interpreters) - 1
        argv = (*subject.before, *words) if is_last and subject.before else (program, *words)
        part = Part(argv, subject.cwd, INTERPRETER, 0)
        part.program = program
        if subject.cut or not subject.before:
            part.known = CUT  # an argument may stand in its first line
        found.append(part)
        words = argv
    return found


def _is_blind(part: Part) -> bool:
    """Whether it does by itself what nobody has read."""
    if part.how == BUILTIN:
        return part.unclear or part.main in (b".", b"source")
    if part.main not in SHELLS:
        return False
    is_system = part.how in (GIVEN, INTERPRETER) and (part.name or part.argv[0]) in _SYSTEM_SHELLS
    return not is_system and (part.unclear or part.text is None)


class _Reader:
    def __init__(self, subject: Subject, whole: bool) -> None:
        self.parts: list[Part] = []
        self.in_world = subject.in_world
        self.mapped, self.script = subject.mapped, subject.script
        self.whole = whole

    def take(self, part: Part) -> None:
        self.parts.append(part)
        part.settle()
        argv, called, name = part.argv, part.called, part.main
        if not argv:
            return
        inners = unwrap(name, argv, part.readings) if name else []
        if called != name:
            inners += unwrap(called, argv, part.readings)
        for inner in inners:
            self._enter(part, inner)
        if part.is_multi_call:
            part.is_blind = _is_blind(part)

    def _enter(self, part: Part, inner: Inner) -> None:
        if inner.text is not None:
            self._read(part, inner)
        elif self.whole or inner.in_process or inner.is_script or part.is_multi_call:
            how = SCRIPT if inner.is_script else IN_PROCESS if inner.in_process else EXEC
            has_default = not inner.is_other_name
            if part.how == BUILTIN and inner.argv[0] in BUILTINS:  # `builtin source x`
                how, has_default = BUILTIN, False
            self._add(part, inner.argv, how, inner.has_more, has_default)

    def _add(
        self,
        outer: Part,
        argv: Sequence[bytes],
        how: str,
        has_more: bool,
        has_default: bool,
        piped_from: bytes = b"",
    ) -> Part | None:
        if outer.depth >= MOST_DEPTH or len(self.parts) >= MOST_PARTS:
            outer.unclear = outer.is_cut = True
            outer.too_deep = outer.too_deep or outer.depth >= MOST_DEPTH
            return None
        part = Part(tuple(argv), outer.cwd, how, outer.depth + 1)
        part.piped_from = piped_from
        part.has_default = has_default
        part.is_multi_call = outer.is_multi_call
        if self.mapped and outer.main in LOADERS:
            part.program, part.name, self.mapped = self.mapped, argv[0], b""
        elif how == SCRIPT and self.script:
            part.program, part.name, self.script = self.script, argv[0], b""
        elif argv and argv[0][:1] == b"/":
            part.program = argv[0]
        if has_more or outer.known != WHOLE:
            part.known = MORE_OPERANDS if outer.known == WHOLE else outer.known
        self.take(part)
        return part

    def _read(self, outer: Part, inner: Inner) -> None:
        """A shell's text."""
        assert inner.text is not None
        found = read_text(inner.text)
        outer.text = inner.text
        if self.whole or inner.in_process:
            outer.has_operators = outer.has_operators or found.has_operators
        outer.unclear = outer.unclear or found.unclear
        outer.is_cut = outer.is_cut or found.is_cut
        if not (self.whole or outer.is_multi_call):
            return
        for simple in found.commands:
            words = simple.words
            if simple.is_unsure:
                outer.unclear = True
                if self.in_world:
                    continue
            name = words[0]
            if name in found.functions:
                continue
            is_builtin = name in BUILTINS
            made = self._add(
                outer,
                words,
                BUILTIN if is_builtin else EXEC,
                inner.has_more,
                not is_builtin,
                simple.piped_from,
            )
            if made is None:
                continue
            if simple.stdin_text is not None and name in SHELLS and len(words) == 1:
                self._document(made, simple.stdin_text)

    def _document(self, outer: Part, text: bytes) -> None:
        """What a shell reads from a here-document."""
        self._read(outer, Inner(text=text))
