"""What a question of the policy is, and its answer, as values.

Not how somebody is asked. Invariant: a `Held` that can be joined with another names everything that
decides what runs: file, content, argv, directory. Spec: policy.md §3, trace.md §4 (`policy_decision`).
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from substrate.policy.rules import Verdict

#: what a person may say; `REST`: no to this, and to whatever else the command asks
ONCE, SESSION, ALWAYS = "once", "session", "always"
DENY, NEVER, REST = "deny", "never", "rest"
CHOICES: Final = (ONCE, SESSION, ALWAYS, DENY, NEVER, REST)
ALLOWING: Final = (ONCE, SESSION, ALWAYS)
#: choices that need to recognise it another time
LASTING: Final = (SESSION, ALWAYS, NEVER)

#: `approved_for_us` of what holds as long as its session or its rule is there
NO_END_US: Final = (1 << 53) - 1

#: how an answer came about
BY_PERSON, EARLIER, TIMEOUT, NOBODY = "person", "earlier", "timeout", "nobody"
FLOOD, FAILED, ENDED = "flood", "failed", "ended"


@value
class Held:
    """Exactly what is asked about; an approval is for this and nothing else.

    `program`: the kernel's path of the file, `interpreters`: of a script, the outermost last.
    `digests`: hex SHA-256 of the content of the program and of each interpreter, in that order, ""
    where it could not be read. `script`: the file that an interpreter is given as a word, which is what runs;
    `script_digest`: of its content, as those. `cut`: argv is longer than what is here. `variables`: `NAME=value` of those that
    change what it does (gating_environ.py), None where they could not be read."""

    argv: tuple[bytes, ...]
    program: bytes
    cwd: bytes
    interpreters: tuple[bytes, ...] = ()
    digests: tuple[str, ...] = ()
    cut: bool = False
    variables: tuple[bytes, ...] | None = ()
    script: bytes = b""
    script_digest: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the same can be recognised when it comes again."""
        return (
            not self.cut
            and bool(self.argv)
            and bool(self.program)
            and len(self.digests) == 1 + len(self.interpreters)
            and all(self.digests)
            and bool(self.script) == bool(self.script_digest)
            and self.variables is not None
        )

    def packed(self) -> bytes:
        """Bytes that are equal where two of these are, and only there."""
        fields = [b"%d" % len(self.argv), *self.argv, self.program, self.cwd]
        fields += [*self.interpreters, *(digest.encode() for digest in self.digests)]
        variables = self.variables or ()
        fields += [b"%d" % len(variables), *variables]
        if self.script:
            fields += [self.script, self.script_digest.encode()]
        return b"".join(b"%d:%s" % (len(field), field) for field in fields)


#: kinds of questions: whether a program may run; whether a world may have what goes beyond it
EXEC, SCOPE = "exec", "scope"


@value
class Asked:
    """`ticket`: of whoever asks, unique among those that wait. `action`: the span of the command that a
    user gave. `span`: of the process. `procs`: its number in the trace, then its parents'. `chain`: the
    parents' command lines, nearest first. `touches`: hosts and paths, as far as known. `kind`: EXEC, SCOPE. `leads`:
    which programs each line of `verdict.read_as` may run, by the kernel's paths."""

    ticket: object
    action: str
    held: Held
    verdict: Verdict
    policy_digest: str
    span: str = ""
    procs: tuple[int, ...] = ()
    chain: tuple[bytes, ...] = ()
    touches: tuple[str, ...] = ()
    kind: str = EXEC
    leads: tuple[frozenset[bytes], ...] = ()


@value
class Question:
    """One that is put to somebody. `deadline`: of the clock that the state is given."""

    number: int
    asked: Asked
    put_at: float
    deadline: float


@value
class Answer:
    """`line`: for the user, empty where there is nothing to tell. `approved_by`, `approved_for_us` and
    `extra` as they come to the trace. Everything but `allowed` is a denial."""

    ticket: object
    allowed: bool
    how: str
    number: int = 0  # of the question, 0: none was put
    scope: str = ONCE
    line: str = ""
    hint: str = ""
    approved_by: str | None = None
    approved_for_us: int | None = None
    extra: tuple[tuple[str, object], ...] = ()


@value
class Peer:
    """Who is at the other end of a socket, as the kernel says (SO_PEERCRED)."""

    uid: int
    pid: int

    def named(self, channel: str) -> str:
        return f"{channel} uid={self.uid} pid={self.pid}"


@value
class Approval:
    """An answer that holds for a session. `key`: of what it is for (keyed digest, no raw words);
    `shown`: that, for people, without secrets. `by`, `at_us`: who said so, and when."""

    number: int
    key: str
    allowed: bool
    scope: str
    shown: str
    by: str
    at_us: int


@value
class Kept:
    """What a session keeps: its approvals, in the order of their questions, and the next number."""

    next_number: int = 1
    approvals: tuple[Approval, ...] = ()
