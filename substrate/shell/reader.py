"""Whether what was typed is a whole command, so that Enter can run it: a small reader of bash.

Not a parser: it follows quotes, here-documents, brackets and the words that open and close a
compound command, and takes anything else as it comes. Where it errs, bash says what is wrong (it
was not finished), or the text can be sent all the same. Pure; runs nothing. Invariant: it ends,
and looks at each character a bounded number of times. Source: bash(1) "SHELL GRAMMAR", "QUOTING".
"""

from __future__ import annotations

import re

#: what can be open
QUOTE, HEREDOC, COMPOUND, OPERATOR, ESCAPE = "quote", "heredoc", "compound", "operator", "escape"

_OPENS = {
    "if": "fi", "case": "esac", "for": "done", "select": "done", "while": "done",
    "until": "done", "{": "}", "[[": "]]",
}  # fmt: skip
_CLOSES = frozenset(_OPENS.values()) - {"]]"}
#: behind these stands a command
_BEFORE_COMMAND = frozenset(
    ("if", "then", "elif", "else", "while", "until", "do", "{", "!", "time", "coproc")
)
_WORD_END = frozenset(" \t\n;&|()<>")
_FUNCTION = re.compile(r"\([ \t]*\)")
_ARRAY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\[[^]\n]*\])?\+?=\Z")
#: deeper than anybody nests
_DEPTH = 100


def what_is_open(text: str) -> str:
    """What of `text` is not finished; "" where it is a whole command, or none at all."""
    reader = _Reader(text)
    try:
        reader.commands("", 0)
    except _Open as found:
        return found.what
    return ""


class _Open(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.documents: list[tuple[str, bool]] = []  # (delimiter, tabs are taken off)

    def commands(self, closer: str, depth: int) -> None:
        """Reads up to `closer`, ")" or "", and over it. Raises _Open."""
        if depth > _DEPTH:
            raise _Open(COMPOUND)
        opened: list[str] = []
        start, operator, naming = True, False, ""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in " \t":
                self.at += 1
            elif char == "\n":
                self.at += 1
                self._read_documents()
                start = start or not opened or opened[-1] != "]]"
            elif char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text.startswith("\\\n", self.at):
                self._escape()
            elif char == ")" and opened and opened[-1] == "esac":
                self.at += 1  # the end of a pattern
                start = True
            elif char == ")":
                self.at += 1
                if closer and not opened:
                    return
                # else bash complains
            elif char == "(":
                operator = False
                start = self._bracket(start, opened, depth)
            elif char in "<>":
                self._redirection()
            elif char in ";&|":
                operator = self._operator()
                start = True
            else:
                operator = False
                word = self._word(depth)
                start, naming = self._grammar(word, start, naming, opened)
        self._read_documents(at_end=True)
        if opened or closer:
            raise _Open(COMPOUND)
        if operator:
            raise _Open(OPERATOR)

    def _operator(self) -> bool:
        """Over `;`, `&`, `|` and their pairs; whether a command has to follow."""
        two = self.text[self.at : self.at + 2]
        self.at += 2 if two in ("&&", "||", "|&", ";;", ";&", "&>") else 1
        return two in ("&&", "||", "|&") or two[0] == "|"

    def _bracket(self, start: bool, opened: list[str], depth: int) -> bool:
        """At `(`: a subshell, arithmetic, a function's parentheses, or a pattern of `[[` and
        `case`. Whether a command may follow."""
        if opened and opened[-1] == "]]":
            self.at += 1
            return False
        if start and opened and opened[-1] == "esac":
            self.at += 1  # the optional one before a pattern
            return True
        found = _FUNCTION.match(self.text, self.at)
        if not start and found:
            self.at = found.end()
            self._body()
            return True
        if self.text.startswith("((", self.at):
            self._arithmetic(depth)
            return False
        self.at += 1
        if not start:
            return False  # bash complains
        self.commands(")", depth + 1)
        return False

    def _body(self) -> None:
        """A function's body has to come, perhaps on the next line."""
        if not self.text[self.at :].strip():
            raise _Open(COMPOUND)

    def _grammar(self, word: str, start: bool, naming: str, opened: list[str]) -> tuple[bool, str]:
        """What a word does; (whether a command may follow, what the next word is the name of)."""
        if opened and opened[-1] == "]]":
            if word == "]]":
                opened.pop()
            return False, ""
        if naming == "function":
            self._body()
            return True, ""
        if not start:
            return word == "do" and naming == "for", naming if naming == "for" else ""
        if word in _OPENS:
            opened.append(_OPENS[word])
            return word in _BEFORE_COMMAND, "for" if word in ("for", "select") else ""
        if word in _CLOSES and opened and opened[-1] == word:
            opened.pop()
            return False, ""
        if word == "function":
            return False, "function"
        return word in _BEFORE_COMMAND, ""

    # --- pieces

    def _word(self, depth: int) -> str:
        """Over one word; its text where nothing in it is quoted, else something no keyword is."""
        begin, plain = self.at, True
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in _WORD_END:
                if char == "(" and self.at > begin and self._is_group(begin):
                    self.at += 1
                    self._array(depth)
                    plain = False
                    continue
                break
            if char in "'\"`\\$":
                plain = plain and char == "$"
                self._special(depth)
            else:
                self.at += 1
        return self.text[begin : self.at] if plain else "'"

    def _is_group(self, begin: int) -> bool:
        """Whether the `(` here belongs to the word: an array, or a pattern of extglob."""
        before = self.text[begin : self.at]
        return before[-1] in "?*+@!" or bool(_ARRAY.match(before))

    def _array(self, depth: int) -> None:
        """Words up to `)`."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == ")":
                self.at += 1
                return
            if char == "#" and self.text[self.at - 1] in " \t\n(":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif char == "(":
                self.at += 1
                if depth > _DEPTH:
                    break
                self._array(depth + 1)
            elif char in "'\"`\\$":
                self._special(depth)
            else:
                self.at += 1
        raise _Open(COMPOUND)

    def _special(self, depth: int) -> None:
        """Over a quoted piece or an expansion."""
        char = self.text[self.at]
        if char == "\\":
            self._escape()
        elif char == "'":
            self._until("'", escapes=False)
        elif char == '"':
            self.at += 1
            self._double(depth)
        elif char == "`":
            self._until("`", escapes=True)
        else:
            self._dollar(depth)

    def _escape(self) -> None:
        """Over a backslash and what it quotes."""
        newline = self.text[self.at + 1 : self.at + 2] in ("", "\n")
        self.at += 2
        if newline and self.at >= len(self.text):
            raise _Open(ESCAPE)

    def _until(self, end: str, *, escapes: bool) -> None:
        self.at += 1
        while self.at < len(self.text):
            if self.text[self.at] == end:
                self.at += 1
                return
            self.at += 2 if escapes and self.text[self.at] == "\\" else 1
        raise _Open(QUOTE)

    def _double(self, depth: int) -> None:
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return
            if char == "\\":
                self.at += 2
            elif char in "`":
                self._until("`", escapes=True)
            elif char == "$" and self.text[self.at + 1 : self.at + 2] in ("(", "{"):
                self._dollar(depth)
            else:
                self.at += 1
        raise _Open(QUOTE)

    def _dollar(self, depth: int) -> None:
        after = self.text[self.at + 1 : self.at + 3]
        if after == "((":
            self.at += 1
            self._arithmetic(depth)
        elif after[:1] == "(":
            self.at += 2
            kept, self.documents = self.documents, []
            self.commands(")", depth + 1)
            self.documents = kept + self.documents
        elif after[:1] == "{":
            self.at += 2
            self._braces(depth)
        elif after[:1] == "'":
            self.at += 1
            self._until("'", escapes=True)
        elif after[:1] == '"':
            self.at += 2
            self._double(depth)
        else:
            self.at += 1

    def _braces(self, depth: int) -> None:
        """Up to the `}` of `${`."""
        if depth > _DEPTH:
            raise _Open(QUOTE)
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "}":
                self.at += 1
                return
            if char == "$" and self.text[self.at + 1 : self.at + 2] not in ("(", "{", "'", '"'):
                self.at += 1
            elif char in "'\"`\\$":
                self._special(depth + 1)
            else:
                self.at += 1
        raise _Open(QUOTE)

    def _arithmetic(self, depth: int) -> None:
        """From `((` up to its `))`; where it turns out to be two subshells, that is the same."""
        level = 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "(":
                level += 1
            elif char == ")":
                level -= 1
            if char in "'\"`\\" or (char == "$" and self.text[self.at + 1 : self.at + 2] == "{"):
                self._special(depth)
                continue
            self.at += 1
            if level == 0:
                return
        raise _Open(COMPOUND)

    # --- here-documents

    def _redirection(self) -> None:
        rest = self.text[self.at : self.at + 3]
        if rest[1:2] == "(":  # a process' output or input
            self.at += 2
            self.commands(")", 1)
        elif rest == "<<<" or not rest.startswith("<<"):
            self.at += len(rest) if rest == "<<<" else 1
        else:
            tabs = rest == "<<-"
            self.at += 3 if tabs else 2
            while self.text[self.at : self.at + 1] in (" ", "\t"):
                self.at += 1
            begin = self.at
            self._word(0)
            word = self.text[begin : self.at]
            self.documents.append((re.sub(r"\\(.)|['\"]", r"\1", word), tabs))

    def _read_documents(self, *, at_end: bool = False) -> None:
        """The bodies that begin here."""
        waiting, self.documents = self.documents, []
        if waiting and at_end:
            raise _Open(HEREDOC)
        for delimiter, tabs in waiting:
            while True:
                if self.at >= len(self.text):
                    raise _Open(HEREDOC)
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                self.at = min(end + 1, len(self.text))
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    break
