"""What the exec gate may answer by a program's path and names alone (telemetry.capture.gate).

For each name and path that a rule speaks of: all that could come out, whatever the words are. Where
that is one thing the table says it, else it says ASK, and whoever is asked decides by the words. Invariant: the
table never lets through what `Compiled.decide(subject, whole=False)` would not, and refuses only what that
refuses. What a wrapper runs by an exec of its own is left to that exec. Spec: policy.md §4.
"""

from __future__ import annotations

from substrate.policy.globs import has_glob
from substrate.policy.names import BY_NAME, MULTI_CALL, also_called
from substrate.policy.programs import TABLE_OF
from substrate.policy.rules import ACTIONS, ALLOW, AUDIT, DENY
from substrate.policy.wrappers import OF_TEXT, READERS, SHELLS, UNSEEN
from substrate.telemetry.capture import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final, TypeAlias

    from substrate.policy.decide import Compiled, Entry

    #: how strict, and whether that was said of all programs alike
    _Outcome: TypeAlias = tuple[int, bool]

_ALLOW: Final = ACTIONS.index(ALLOW)
_AUDIT: Final = ACTIONS.index(AUDIT)
_DENY: Final = ACTIONS.index(DENY)
#: programs of every day: where strangers are asked about, these need not be
_USUAL: Final = frozenset(
    (
        *TABLE_OF,
        *(
            b"ls",
            b"true",
            b"false",
            b"test",
            b"[",
            b"echo",
            b"printf",
            b"pwd",
            b"head",
            b"tail",
            b"wc",
            b"sort",
        ),
        *(
            b"uniq",
            b"cut",
            b"tr",
            b"grep",
            b"egrep",
            b"fgrep",
            b"rg",
            b"diff",
            b"cmp",
            b"date",
            b"sleep",
            b"stat",
        ),
        *(
            b"basename",
            b"dirname",
            b"readlink",
            b"realpath",
            b"uname",
            b"id",
            b"whoami",
            b"hostname",
            b"which",
        ),
        *(
            b"seq",
            b"expr",
            b"yes",
            b"md5sum",
            b"sha1sum",
            b"sha256sum",
            b"comm",
            b"join",
            b"paste",
            b"fold",
            b"od",
        ),
        *(
            b"mktemp",
            b"df",
            b"du",
            b"file",
            b"less",
            b"more",
            b"gzip",
            b"gunzip",
            b"bzip2",
            b"xz",
            b"zstd",
            b"unzip",
        ),
        *(
            b"gcc",
            b"g++",
            b"cc",
            b"c++",
            b"clang",
            b"clang++",
            b"ld",
            b"as",
            b"ar",
            b"nm",
            b"ranlib",
            b"strip",
        ),
        *(
            b"cc1",
            b"cc1plus",
            b"collect2",
            b"lto-wrapper",
            b"cmake",
            b"ninja",
            b"rustc",
            b"javac",
            b"java",
            b"tsc",
        ),
        *(
            b"jq",
            b"nproc",
            b"tput",
            b"stty",
            b"clear",
            b"locale",
            b"getconf",
            b"pkg-config",
            b"ps",
            b"free",
        ),
    )
)


def make_table(compiled: Compiled) -> tuple[dict[bytes, int], int]:
    """Path or last name to gate.ALLOW, DENY or ASK, and the answer for all else."""
    default = compiled.default_of(True)
    holds_back = any(entry.wide for entry in compiled.rules)
    otherwise = _answer(_outcomes(_for_strangers(compiled), default), of_strangers=True)
    if otherwise == gate.DENY and any(entry.wide for entry in compiled.globbed):
        otherwise = gate.ASK  # an argv[0] that such a rule is for is in no table
    table: dict[bytes, int] = {}
    names = set(compiled.named)
    for name in compiled.named:
        names.update(also_called(name))
    if otherwise == gate.ASK:
        names.update(_USUAL)
    for name in names:
        table[name] = _answer(_outcomes(_for_name(compiled, name), default))
    asks: set[bytes] = set()
    if otherwise != gate.ALLOW:
        asks.update(BY_NAME)
    for name, inner in UNSEEN.items():
        if (holds_back or default != _ALLOW) if inner is None else _is_spoken_of(compiled, inner):
            asks.update((name, *also_called(name)))
    for entry in compiled.rules:
        match = entry.rule.match
        if entry.wide and match[:1] == (b"git",) and len(match) > 1 and not has_glob(match[1]):
            asks.add(b"git-" + match[1])
    if not compiled.policy.allow_operators:
        asks.update(SHELLS, MULTI_CALL, *(also_called(shell) for shell in SHELLS))
    for name in asks:
        if table.get(name) != gate.DENY:
            table[name] = gate.ASK
    # what an interpreter is given to read may be what a rule is for
    if any(entry.wide and not entry.is_for_any for entry in compiled.rules):
        for reader in READERS:
            for name in (reader, *also_called(reader)):
                if table.get(name, otherwise) == gate.ALLOW:
                    table[name] = gate.ASK_FILE if reader in OF_TEXT else gate.ASK
    for path in _paths(compiled):
        if _answer(_outcomes(_for_path(compiled, path), default)) == gate.DENY:
            table[path] = gate.DENY
    # of what the table does not know an argv[0] says nothing, but where all is asked
    same = () if otherwise == gate.DENY else (otherwise,)
    return {key: answer for key, answer in table.items() if answer not in same}, otherwise


def _for_strangers(compiled: Compiled) -> Iterator[tuple[Entry, bool]]:
    """Of a program that no literal name is for."""
    for entry in sorted((*compiled.nameless, *compiled.globbed), key=_number):
        yield entry, entry.is_for_all


def _for_name(compiled: Compiled, name: bytes) -> Iterator[tuple[Entry, bool]]:
    """The entries that could meet, and whether they do so in any case."""
    for entry in compiled.entries_of(name):
        yield entry, entry.meets_any and not entry.is_narrow


def _for_path(compiled: Compiled, path: bytes) -> Iterator[tuple[Entry, bool]]:
    for entry in compiled.entries_of(path.rpartition(b"/")[2]):
        met = entry.meets_any and entry.sha256 is None
        for given in (entry.path, entry.program):
            met = met and (given is None or given == path)
        yield entry, met


def _paths(compiled: Compiled) -> set[bytes]:
    given = (path for entry in compiled.rules for path in (entry.path, entry.program))
    return {path for path in given if isinstance(path, bytes) and path[:1] == b"/"}


def _is_spoken_of(compiled: Compiled, names: Iterable[bytes]) -> bool:
    return any(entry.wide for name in names for entry in compiled.entries_of(name))


def _outcomes(entries: Iterable[tuple[Entry, bool]], default: int) -> set[_Outcome]:
    """All that `decide._combine` could say of those entries, in the order of the layers, where some
    meet in any case and the others may."""
    found: set[_Outcome] = {(default, True)}
    layers: dict[int, list[tuple[Entry, bool]]] = {}
    for entry, meets in entries:
        layers.setdefault(entry.layer, []).append((entry, meets))
    floors: set[_Outcome | None] = {None}
    for _, here in sorted(layers.items()):
        met = max((entry.strictness for entry, meets in here if meets), default=-1)
        may = {
            _outcome(entry)
            for entry, meets in here
            if entry.strictness > met or (meets and entry.strictness == met)
        }
        if here[0][0].tightens:
            # what is already as strict stays
            after = {old for old in found if met <= old[0]}
            after |= {new for new in may for old in found if new[0] > old[0]}
            found = after
        else:
            found = may if met >= 0 else found | may
        for entry, meets in here:
            if entry.is_final and not entry.tightens:
                new = _outcome(entry)
                raised: set[_Outcome | None] = {
                    new if floor is None or new[0] > floor[0] else floor for floor in floors
                }
                floors = raised if meets else floors | raised
    return {
        floor if floor is not None and floor[0] > one[0] else one
        for one in found
        for floor in floors
    }


def _outcome(entry: Entry) -> _Outcome:
    return entry.strictness, entry.is_for_all


def _answer(outcomes: set[_Outcome], *, of_strangers: bool = False) -> int:
    """`audit` for all is on the record as processes are; for one program it is written down. A name may
    be only an argv[0]: then what is said of all programs is no answer."""
    if all(one == _ALLOW or (one == _AUDIT and for_all) for one, for_all in outcomes):
        return gate.ALLOW
    if all(one == _DENY and (of_strangers or not for_all) for one, for_all in outcomes):
        return gate.DENY
    return gate.ASK


def _number(entry: Entry) -> int:
    return entry.number
