"""What an agent's shell tool puts around a command, told from the command, for those who read it.

Claude Code runs `source SNAPSHOT 2>/dev/null || true && … && eval 'CMD' < /dev/null && pwd -P >| FILE`,
Gemini CLI `{ CMD; }; __code=$?; pgrep -g 0 >FILE 2>&1; exit $__code;`. A person wants to see CMD.

Theory of operation. A text is taken apart only if it consists of these pieces in their order, each of
them one of a few fixed texts but for what is kept beside the command: the snapshot, the note's file. A
command that looks alike but has anything more in it is no scaffolding, and is shown whole. So nothing
can hide in it: from what is shown, the whole can be put together again. Not a judgement of what is run,
and the record has the whole text beside (argv, blob).

Invariant: all of the text that is not fixed is in what is shown; of Claude Code's, `command` is what eval
gets, since the quoting is read as bash(1) "QUOTING" has it and what bash would expand is not taken. Pure;
hot path. Spec: shell.md §4.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

CLAUDE: Final = "claude-code"
GEMINI: Final = "gemini-cli"
#: between the snapshot and the command, by versions and shells
_SETTINGS: Final = (
    b"shopt -u extglob 2>/dev/null || true && ",
    b"setopt NO_EXTENDED_GLOB 2>/dev/null || true && ",
    b"setopt NO_EXTENDED_GLOB NO_BARE_GLOB_QUAL 2>/dev/null || true && ",
    b"{ shopt -u extglob || setopt NO_EXTENDED_GLOB; } >/dev/null 2>&1 || true && ",
    b"{ shopt -u extglob || setopt NO_EXTENDED_GLOB NO_BARE_GLOB_QUAL; } >/dev/null 2>&1 || true && ",
    b"{ \\builtin unalias -- 'unsetenv'; \\builtin unset -f -- 'unsetenv'; } >/dev/null 2>&1 || true && ",
)
_NO_INPUT: Final = (b" < /dev/null && ", b" \\< /dev/null && ")
_NOTE: Final = b"pwd -P >| "
_GEMINI_SETTINGS: Final = (
    b"shopt -u promptvars nullglob extglob nocaseglob dotglob; ",
    b"shopt -u nullglob; ",
)
_PATH: Final = frozenset(b"/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+@%-")
_BARE: Final = _PATH | frozenset(b":=,")
_HEX: Final = frozenset(b"0123456789abcdef")
_LOWER: Final = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyz")
_DIGITS: Final = frozenset(b"0123456789")


@value
class Scaffolding:
    """`by`: whose. `command`: what it runs by eval. `snapshot`: the file that is sourced before, None where
    none is; `note`: the file that is written behind it for the agent."""

    by: str
    command: bytes
    snapshot: bytes | None
    note: bytes


def find_scaffolding(text: bytes) -> Scaffolding | None:
    """Takes a text of `-c` apart; None where it is none, or not one to the last byte."""
    if b" && pwd -P >| " in text:
        return _claude(text)
    if b"; __code=$?; pgrep -g 0 >" in text:
        return _gemini(text)
    return None


def command_in(text: bytes) -> bytes:
    """What a text of `-c` runs, without scaffolding."""
    found = find_scaffolding(text)
    return text if found is None else found.command


def note_of(text: bytes | None) -> tuple[bytes, ...]:
    """The file that the agent reads afterwards, where a text of `-c` has one."""
    found = None if text is None else find_scaffolding(text)
    return () if found is None else (found.note,)


def _claude(text: bytes) -> Scaffolding | None:
    snapshot, at = None, 0
    if text.startswith(b"source "):
        end = text.find(b" ", 7)
        snapshot = text[7:end]
        if not _is_snapshot(snapshot):
            return None
        at = end
        for ending in (b" 2>/dev/null || true && ", b" && "):
            if text.startswith(ending, at):
                at += len(ending)
                break
        else:
            return None
    for setting in _SETTINGS:
        if text.startswith(setting, at):
            at += len(setting)
    if not text.startswith(b"eval ", at):
        return None
    read = _word(text, at + 5)
    if read is None:
        return None
    command, at = read
    for ending in (*_NO_INPUT, b" && "):
        if text.startswith(ending, at):
            at += len(ending)
            break
    else:
        return None
    if not text.startswith(_NOTE, at):
        return None
    note = text[at + len(_NOTE) :]
    if not _is_claude_note(note):
        return None
    return Scaffolding(by=CLAUDE, command=command, snapshot=snapshot, note=note)


def _gemini(text: bytes) -> Scaffolding | None:
    """The command stands in it as it is. What comes before and behind is fixed, so all of the rest is shown,
    whatever the shell makes of it."""
    at = next((len(setting) for setting in _GEMINI_SETTINGS if text.startswith(setting)), 0)
    body, sign, rest = text[at:].rpartition(b" }; __code=$?; pgrep -g 0 >")
    note, _, ending = rest.partition(b" ")
    if not sign or not body.startswith(b"{ ") or ending != b"2>&1; exit $__code;":
        return None
    if not _is_gemini_note(note):
        return None
    command = body[2:].removesuffix(b";")
    return Scaffolding(by=GEMINI, command=command, snapshot=None, note=note)


def _word(text: bytes, at: int) -> tuple[bytes, int] | None:
    """(what one word of the shell is, where it ends); None where it is none that bash takes as it is.

    Quoted in '…', in "…" without an expansion, or bare; adjoining parts are one word."""
    found, begin = bytearray(), at
    while at < len(text):
        sign = text[at]
        if sign == 0x27:  # '
            end = text.find(b"'", at + 1)
            if end < 0:
                return None
            found += text[at + 1 : end]
            at = end + 1
        elif sign == 0x22:  # "
            at += 1
            while True:
                if at >= len(text) or text[at] in b"$`":
                    return None
                if text[at] == 0x22:
                    at += 1
                    break
                if text[at] == 0x5C and text[at + 1 : at + 2] in (b"$", b"`", b'"', b"\\"):
                    at += 1
                elif text[at] == 0x5C and text[at + 1 : at + 2] == b"\n":
                    return None  # bash joins the lines
                found += text[at : at + 1]
                at += 1
        elif sign == 0x5C:  # backslash
            if text[at + 1 : at + 2] in (b"", b"\n"):
                return None
            if text[at + 1 : at + 2] == b"<" and text[at - 1 : at] == b" ":
                break  # a word of its own: eval's redirection
            found += text[at + 1 : at + 2]
            at += 2
        elif sign in _BARE:
            found.append(sign)
            at += 1
        else:
            break
    return (bytes(found), at) if at > begin else None


def _is_snapshot(path: bytes) -> bool:
    """`…/shell-snapshots/snapshot-bash-1787645352430-itq4da.sh`, absolute and in plain letters."""
    directory, _, name = path.rpartition(b"/")
    if not _is_plain(path) or not directory.endswith(b"/shell-snapshots"):
        return False
    parts = name.removesuffix(b".sh").split(b"-")
    return (
        name.endswith(b".sh")
        and len(parts) == 4
        and parts[0] == b"snapshot"
        and parts[1] in (b"bash", b"zsh", b"sh")
        and _are(parts[2], _DIGITS)
        and _are(parts[3], _LOWER)
    )


def _is_claude_note(path: bytes) -> bool:
    """`/tmp/claude-1a2b-cwd`, in whatever directory."""
    name = path.rpartition(b"/")[2]
    inner = name.removeprefix(b"claude-").removesuffix(b"-cwd")
    return _is_plain(path) and name == b"claude-" + inner + b"-cwd" and _are(inner, _HEX)


def _is_gemini_note(path: bytes) -> bool:
    """`/tmp/shell_pgrep_94c442b09777.tmp`, or in a directory of its own (`/tmp/gemini-shell-x/pgrep.tmp`)."""
    directory, _, name = path.rpartition(b"/")
    inner = name.removeprefix(b"shell_pgrep_").removesuffix(b".tmp")
    own = directory.rpartition(b"/")[2].startswith(b"gemini-shell-") and name == b"pgrep.tmp"
    return _is_plain(path) and (
        own or (name == b"shell_pgrep_" + inner + b".tmp" and _are(inner, _HEX))
    )


def _is_plain(path: bytes) -> bool:
    return path.startswith(b"/") and _PATH.issuperset(path) and b".." not in path.split(b"/")


def _are(text: bytes, letters: frozenset[int]) -> bool:
    return bool(text) and letters.issuperset(text)
