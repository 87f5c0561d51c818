"""What Tab proposes: commands, files as the world has them, variables, our own verbs.

Reads names; runs nothing, neither in the world nor outside. Invariant: what is proposed is
quoted, so that a file's name is one word of the shell and acts on nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from substrate.shell.names import Names
from substrate.shell.state import State

_BUILTINS = [
    "alias",
    "bg",
    "bind",
    "break",
    "builtin",
    "caller",
    "cd",
    "command",
    "compgen",
    "complete",
    "continue",
    "declare",
    "dirs",
    "disown",
    "echo",
    "enable",
    "eval",
    "exec",
    "exit",
    "export",
    "false",
    "fc",
    "fg",
    "getopts",
    "hash",
    "help",
    "history",
    "jobs",
    "kill",
    "let",
    "local",
    "logout",
    "mapfile",
    "popd",
    "printf",
    "pushd",
    "pwd",
    "read",
    "readonly",
    "return",
    "set",
    "shift",
    "shopt",
    "source",
    "suspend",
    "test",
    "times",
    "trap",
    "true",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unalias",
    "unset",
    "wait",
    "if",
    "then",
    "else",
    "elif",
    "fi",
    "case",
    "esac",
    "for",
    "while",
    "until",
    "do",
    "done",
    "in",
    "function",
    "select",
    "time",
]
#: the last word: what does not end it, or what a backslash quotes
_WORD = re.compile(r"(?:\\.|[^\s;&|()<>\"'`\\])*\Z", re.DOTALL)
_QUOTED = re.compile(r"([^\w@%+=:,./~-])")
_BEFORE_COMMAND = re.compile(
    r"(?:\A|[;&|(`\n]|\b(?:then|do|else|if|while|until|!|time|sudo|exec)\s)\s*\Z"
)
_MOST = 300


class ShellCompleter(Completer):
    """`look`: the present state and names; `options`: the words that a verb takes."""

    def __init__(
        self,
        look: Callable[[], tuple[State | None, Names, bytes]],
        verbs: Sequence[str],
        options: Callable[[str], Sequence[str]],
    ) -> None:
        self._look, self._verbs, self._options = look, verbs, options

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        before = document.text_before_cursor
        if before.startswith(":"):
            yield from self._verb(before[1:])
            return
        state, names, cwd = self._look()
        found = _WORD.search(before)
        word = found.group() if found else ""
        head = before[: len(before) - len(word)]
        if word.startswith("$"):
            brace = "{" if word.startswith("${") else ""
            known = [] if state is None else [os.fsdecode(n) for n in state.names]
            yield from _offer(word, (f"${brace}{name}" for name in sorted(known)))
            return
        if "/" not in word and not word.startswith("~") and _BEFORE_COMMAND.search(head):
            yield from _offer(word, sorted(self._commands(state, names)))
            return
        yield from _files(word, names, cwd)

    def _verb(self, text: str) -> Iterable[Completion]:
        verb, space, rest = text.partition(" ")
        if not space:
            yield from _offer(verb, sorted(self._verbs))
            return
        word = rest.rpartition(" ")[2]
        yield from _offer(word, sorted(self._options(verb)))

    def _commands(self, state: State | None, names: Names) -> set[str]:
        search = os.environb.get(b"PATH", b"") if state is None else state.path
        found = {os.fsdecode(name) for name in names.programs(search)}
        if state is not None:
            found.update(os.fsdecode(n) for n in (*state.function_names, *state.alias_names))
        return {_quote(name) for name in found}.union(_BUILTINS)


def _offer(word: str, texts: Iterable[str]) -> Iterable[Completion]:
    count = 0
    for text in texts:
        if text.startswith(word) and text != word:
            yield Completion(text, start_position=-len(word), display=_shown(text))
            count += 1
            if count == _MOST:
                return


def _files(word: str, names: Names, cwd: bytes) -> Iterable[Completion]:
    plain = re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)
    directory, slash, start = plain.rpartition("/")
    path = directory + slash
    if path == "~/" or path.startswith("~/"):
        path = os.path.expanduser("~") + path[1:]
    where = os.path.normpath(os.path.join(cwd, os.fsencode(path)))
    shown = _quote(directory + slash)
    for raw, is_directory in sorted(names.entries(where).items()):
        name = os.fsdecode(raw)
        if not name.startswith(start) or (name.startswith(".") and not start):
            continue
        end = "/" if is_directory else ""
        text = shown + _quote(name) + end
        yield Completion(text, start_position=-len(word), display=_shown(name + end))


def _quote(name: str) -> str:
    """As a part of a word of the shell. A newline can only be quoted in another way."""
    if not name.isprintable():
        return "$'" + "".join(_octal(character) for character in name) + "'"
    return _QUOTED.sub(r"\\\1", name)


def _octal(character: str) -> str:
    if character.isprintable() and character not in "'\\":
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
