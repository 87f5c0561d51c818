"""What a policy is, as values: the rules of one layer, and of all of them.

Not how they are written (TOML) nor how they decide. Invariant: everything here was checked when it
was read; whoever has one of these may trust it. Spec: policy.md §1.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ALLOW, AUDIT, ISOLATE, ASK, DENY = "allow", "audit", "isolate", "ask", "deny"
#: from the laxest to the strictest; `audit` lets through as `allow` does, and is always on the record
ACTIONS: Final = (ALLOW, AUDIT, ISOLATE, ASK, DENY)

#: of `without_terminal`, besides `deny` and `allow`: somebody may come who answers
WAIT = "wait"

#: the layers, in their order: a later one's rule wins over an earlier one, but for what is locked
BUILTIN, SYSTEM, USER, PROJECT, GIVEN = "builtin", "system", "user", "project", "given"


@value
class Test:
    """Command lines that a rule has to meet, and others that it must not; words as a shell splits
    them (shlex)."""

    match: tuple[str, ...] = ()
    not_match: tuple[str, ...] = ()


@value
class CommandRule:
    """One `[[command]]`. Of `match`, `program` and `sha256` at least one is there; all that are
    there have to meet. `match`: globs, one a word, `**` for any rest. `name`: how it is told of:
    `<layer> command[<n>]`, n from 1 in its file. `place`: file and line."""

    name: str
    place: str
    action: str
    match: tuple[bytes, ...] = ()
    program: bytes | None = None
    sha256: str | None = None
    reason: str = ""
    final: bool = False
    test: Test = Test()


@value
class NetRules:
    """`[net]`: rules as `--allow` and `--deny` take them, and groups `@name`."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@value
class FsRules:
    """`[fs]`: patterns with `$PWD` and `~` in them; `write` None where nothing is said."""

    write: tuple[bytes, ...] | None = None
    read_deny: tuple[bytes, ...] = ()


@value
class LimitRules:
    """`[limits]`; None where nothing is said."""

    runtime_s: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    egress_bytes: int | None = None
    execs: int | None = None


@value
class ApprovalRules:
    """`[approval]`: how long a question waits, and what is answered where nobody can be asked: `deny`,
    `allow`, or `wait`: the question waits as long as that, for who comes to `substrate approvals`.
    `webhook`: a URL that is asked where there is no terminal."""

    timeout_s: float | None = None
    without_terminal: str | None = None
    webhook: str | None = None


@value
class Layer:
    """What one file or profile says. `digest`: hex SHA-256 of its bytes. `trusted`: only of a
    project's. `final`: layers behind it may only tighten, and all its rules are locked."""

    kind: str
    name: str
    digest: str
    id: str = ""
    extends: str | None = None
    default_action: str | None = None
    commands: tuple[CommandRule, ...] = ()
    net: NetRules = NetRules()
    fs: FsRules = FsRules()
    limits: LimitRules = LimitRules()
    allow_operators: bool | None = None
    approval: ApprovalRules = ApprovalRules()
    require: tuple[str, ...] = ()
    trusted: bool | None = None
    final: bool = False


@value
class Policy:
    """All layers, in their order, and what is in force of them. `digest`: hex SHA-256 over the kinds
    and digests of the layers, and which are trusted, `sha256-`-less."""

    layers: tuple[Layer, ...]
    digest: str
    default_action: str
    net: NetRules
    fs: FsRules
    limits: LimitRules
    allow_operators: bool
    approval: ApprovalRules
    require: tuple[str, ...] = ()
    #: what was said and does not count, and why: for `policy check` and a warning
    ignored: tuple[str, ...] = ()


@value
class Subject:
    """What is about to run. `program`: the kernel's path of the file, b"" where it is not known yet
    (a command line that nobody has looked up). `interpreters`: of a script, the outermost last.
    `sha256`: hex, None where nobody looked."""

    argv: tuple[bytes, ...]
    program: bytes = b""
    name: bytes = b""
    interpreters: tuple[bytes, ...] = ()
    #: of a script: the words that the kernel puts before its name, interpreter and argument; () where
    #: they are not known
    before: tuple[bytes, ...] = ()
    cwd: bytes = b"/"
    #: of a dynamic loader: the kernel's path of what it is told to map, b"" where nobody has looked
    mapped: bytes = b""
    #: of an interpreter that is given a file: the kernel's path of that, b"" where nobody has looked
    script: bytes = b""
    sha256: str | None = None
    #: argv is longer than what is here
    cut: bool = False
    in_world: bool = True


@value
class Verdict:
    """What was decided, and why. `rule`: the name of the rule, None for the default action. `layer`: the
    name of its layer, or of the one whose default action it is; "" where it is neither. `risk`: low, medium, high or critical, with `risk_reason`; it decides nothing.
    `read_as`: the command lines that were matched: as given, then what wrappers in it run. `isolates`: what it
    changes is to be dropped, also where the answer is yes. `of_script`: it is said of the script that an
    interpreter is given, and not of the interpreter. `at_once`: it is asked for what a shell does itself, so
    that no exec would meet it. `is_cut`: there is more in it than was read."""

    action: str
    rule: str | None
    layer: str
    reason: str
    place: str = ""
    risk: str = "low"
    risk_reason: str = ""
    read_as: tuple[tuple[bytes, ...], ...] = ()
    isolates: bool = False
    of_script: bool = False
    at_once: bool = False
    is_cut: bool = False
