"""Reads a shell's text as the simple commands in it, as far as that can be told without running it.

Not a shell: nothing is expanded, functions are not followed, aliases not known. Substitutions are read wherever
bash makes them: in words, arrays, `${…}`, arithmetic, here-documents. Where text cannot be read for sure it says so
(`unclear`), where a command may hide in what is not read, too (`is_cut`); what really runs is seen by the gate.
Where shells differ it is read as bash's. Invariants: it never raises, takes steps in proportion to the text,
and finds at most MOST_COMMANDS commands. Spec: policy.md §2;
POSIX.1-2017, XCU 2 (Shell Command Language); bash(1).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MOST_COMMANDS: Final = 256
#: bytes of a text that are read; with what is behind them it is unclear
MOST_TEXT: Final = 64 << 10
#: substitutions in substitutions
_MOST_DEPTH: Final = 16

#: in front of a command
_BEFORE: Final = frozenset(
    (b"if", b"then", b"elif", b"else", b"while", b"until", b"do", b"!", b"{", b"coproc")
)
#: behind one
_BEHIND: Final = frozenset((b"fi", b"done", b"esac", b"}"))
#: their words may be assignments
_DECLARING: Final = frozenset((b"declare", b"typeset", b"local", b"export", b"readonly"))
#: bytes that are looked ahead over in all, to tell arithmetic from a subshell in a subshell
_MOST_AHEAD: Final = 2 * MOST_TEXT
#: behind the name of a coprocess, that of a function: begins what it runs
_COMPOUND: Final = frozenset(
    (b"{", b"if", b"while", b"until", b"for", b"select", b"case", b"[[", b"((")
)
#: what follows, up to the next separator, is no command
_NO_COMMAND: Final = frozenset((b"for", b"select", b"case", b"in"))

_SPECIAL: Final = b" \t\n\\'\"$`;&|()<>#{}*?[~="


def _marks(special: bytes) -> bytes:
    return bytes(1 if byte in special else 0 for byte in range(256))


_PLAIN: Final = _marks(_SPECIAL)
_QUOTED: Final = _marks(b'"\\$`')
_ESCAPES: Final = {
    b"n": b"\n",
    b"t": b"\t",
    b"r": b"\r",
    b"\\": b"\\",
    b"'": b"'",
    b'"': b'"',
    b"a": b"\a",
}
_ESCAPES_MORE: Final = {
    b"b": b"\b",
    b"f": b"\f",
    b"v": b"\v",
    b"e": b"\x1b",
    b"E": b"\x1b",
    b"?": b"?",
}


class Simple:
    """One simple command. `is_unsure`: which program it runs depends on an expansion. `piped_from`: the
    first word of the command whose output it reads, b"" for none. `stdin_text`: its here-document."""

    __slots__ = ("is_unsure", "piped_from", "stdin_text", "words")

    def __init__(self, words: tuple[bytes, ...], is_unsure: bool, piped_from: bytes) -> None:
        self.words = words
        self.is_unsure = is_unsure
        self.piped_from = piped_from
        self.stdin_text: bytes | None = None


class ShellText:
    """What was found. `functions`: names that the text defines. `is_cut`: there is more of it than is read."""

    __slots__ = ("commands", "functions", "has_operators", "is_cut", "looked_ahead", "unclear")

    def __init__(self) -> None:
        self.commands: list[Simple] = []
        self.functions: set[bytes] = set()
        self.has_operators = False
        self.is_cut = self.unclear = False
        self.looked_ahead = 0

    def cut(self) -> None:
        """There may be a command in what is not read."""
        self.is_cut = self.unclear = True


def read_text(text: bytes) -> ShellText:
    found = ShellText()
    _Scan(text[:MOST_TEXT].replace(b"\0", b""), found, 0).run(0, False)
    if len(text) > MOST_TEXT:
        found.is_cut = found.unclear = found.has_operators = True
    if any(simple.words[0] == b"alias" for simple in found.commands):
        found.unclear = True
    return found


class _Scan:
    """One text; a substitution in backquotes is a text of its own."""

    def __init__(self, text: bytes, found: ShellText, depth: int) -> None:
        self.text = text
        self.marks = text.translate(_PLAIN)
        self.quoted_marks: bytes | None = None
        self.found = found
        self.depth = depth

    def run(self, at: int, in_parentheses: bool) -> int:
        """Reads commands up to the end, or up to the `)` that closes; gives the place behind."""
        if self.depth > _MOST_DEPTH:
            self.found.cut()
            return len(self.text)
        one = _Command(self.found)
        text, marks, end = self.text, self.marks, len(self.text)
        open_here = 0
        while at < end:
            if len(self.found.commands) >= MOST_COMMANDS:
                self.found.cut()
                return end
            stop = marks.find(1, at)
            if stop != at:
                stop = end if stop < 0 else stop
                one.add(text[at:stop])
                at = stop
                continue
            char = text[at : at + 1]
            if char in b" \t":
                one.end_word()
                at += 1
            elif char == b"\n":
                one.end_command()
                at = self._skip_documents(one, at + 1)
                one.is_behind_newline = True
            elif char == b"\\":
                if text[at + 1 : at + 2] != b"\n":
                    one.add(text[at + 1 : at + 2], quoted=True)
                at += 2
            elif char == b"'":
                close = text.find(b"'", at + 1)
                if close < 0:
                    self.found.unclear = True
                    close = end
                one.add(text[at + 1 : close], quoted=True)
                at = close + 1
            elif char == b'"':
                at = self._quoted(one, at + 1)
            elif char == b"$" or char == b"`":
                at = self._expansion(one, at, False)
            elif char == b"#":
                if one.has_word:
                    one.add(b"#")
                    at += 1
                else:
                    close = text.find(b"\n", at)
                    at = end if close < 0 else close
            elif one.is_test and one.word == b"]]" and char in b";&|)":
                one.end_word()  # the test ends; the same place again
            elif one.is_test and not (char in b"<>" and text[at + 1 : at + 2] == b"("):
                one.add(char)
                at += 1
            elif char in b"<>":
                at = self._redirection(one, at)
            elif char == b"&" and text[at + 1 : at + 2] == b">":
                self.found.has_operators = True
                one.end_word()
                at += 3 if text[at + 2 : at + 3] == b">" else 2
                one.skips = True
            elif char == b"=":
                one.add(b"=")
                at += 1
                if text[at : at + 1] == b"(" and one.is_assigning():
                    at = self._list(at + 1)
            elif char == b"(":
                behind = 0
                if text[at + 1 : at + 2] == b"(" and one.may_be_arithmetic():
                    behind = self._arithmetic(at + 2)
                if behind:
                    at = behind
                    one.add(b"((")
                    one.end_word()
                    continue
                rest = at + 1
                while text[rest : rest + 1] in (b" ", b"\t"):
                    rest += 1
                if text[rest : rest + 1] == b")" and one.defines():
                    at = rest + 1
                    continue
                self.found.has_operators = True
                one.end_command()
                open_here += 1
                at += 1
            elif char == b")":
                if not open_here and one.cases:
                    one.drop()  # a pattern of `case`
                    at += 1
                    continue
                one.end_command()
                if open_here:
                    open_here -= 1
                elif in_parentheses:
                    return at + 1
                at += 1
            elif char in b";&|":
                self.found.has_operators = True
                length = 2 if text[at + 1 : at + 2] == char or text[at : at + 2] == b"|&" else 1
                pipes = char == b"|" and text[at : at + 2] != b"||"
                one.end_command(pipes=pipes)
                at += length
            else:  # {}*?[~
                one.add(char)
                if char == b"{":
                    one.has_brace = True
                at += 1
        one.end_command()
        if in_parentheses:
            self.found.unclear = True  # nothing closed it
        return end

    def _quoted(self, one: _Command, at: int) -> int:
        """In double quotes, from behind the first one."""
        text, end = self.text, len(self.text)
        marks = self._marks_in_quotes()
        one.add(b"", quoted=True)
        while True:
            stop = marks.find(1, at)
            if stop < 0:
                self.found.unclear = True
                one.add(text[at:], quoted=True)
                return end
            one.add(text[at:stop], quoted=True)
            char = text[stop : stop + 1]
            if char == b'"':
                return stop + 1
            if char == b"\\":
                following = text[stop + 1 : stop + 2]
                if following != b"\n":
                    one.add(following if following in b'"\\$`' else b"\\" + following, quoted=True)
                at = stop + 2
            else:
                at = self._expansion(one, stop, True)

    def _expansion(self, one: _Command, at: int, in_quotes: bool) -> int:
        """`$…` and backquotes; gives the place behind."""
        text, end = self.text, len(self.text)
        if text[at : at + 1] == b"`":
            return self._backquoted(one, at, in_quotes)
        following = text[at + 1 : at + 2]
        if following == b"(":
            one.add(b"$()", unsure=True)
            behind = self._arithmetic(at + 3) if text[at + 2 : at + 3] == b"(" else 0
            if behind:
                return behind
            self.found.has_operators = True
            self.depth += 1
            stop = self.run(at + 2, True)
            self.depth -= 1
            return stop
        if following == b"{":
            return self._braced(one, at, in_quotes)
        if following == b"'" and not in_quotes:
            return self._escaped(one, at + 2)
        if following == b'"' and not in_quotes:
            return at + 1
        close = at + 1
        while close < end and (text[close] == 95 or text[close : close + 1].isalnum()):
            close += 1
        if close == at + 1:
            if following and following in b"?@#*!-$[":
                one.add(text[at : at + 2], unsure=True)
                return at + 2
            one.add(b"$", quoted=True)
            return at + 1
        one.add(text[at:close], unsure=True)
        return close

    def _braced(self, one: _Command, at: int, in_quotes: bool) -> int:
        """`${…}`, up to the first `}` that is not quoted; gives the place behind."""
        text, end = self.text, len(self.text)
        if self.depth >= _MOST_DEPTH or text[at + 2 : at + 3] in (b" ", b"\t", b"\n", b"|"):
            self.found.cut()  # the latter is a command (bash 5.3, ksh)
            self.found.has_operators = True
            if self.depth >= _MOST_DEPTH:
                return end
        aside = _Command(self.found)
        self.depth += 1
        place = at + 2
        while text[place : place + 1] in (b"!", b"#"):
            place += 1
        if text[place : place + 1] == b"$" and text[place + 1 : place + 2] not in (b"(", b"{"):
            place += 1  # the shell's pid
        while place < end:
            char = text[place : place + 1]
            following = text[place + 1 : place + 2]
            if char == b"}":
                break
            if char == b"\\":
                place += 2
            elif char == b"$" and following == b"'":
                place = self._escaped(aside, place + 2)
            elif char == b"$" or char == b"`":
                place = self._expansion(aside, place, in_quotes)
            elif char == b'"':
                place = self._quoted(aside, place + 1)
            elif char == b"'":
                place = self._apostrophe(place + 1, in_quotes)
            elif char in b"<>" and following == b"(" and not in_quotes:
                place = self._redirection(aside, place)
            else:
                place += 1
        else:
            self.found.unclear = True
        self.depth -= 1
        one.add(text[at : place + 1], unsure=True)
        return place + 1

    def _apostrophe(self, at: int, in_quotes: bool) -> int:
        """In `${…}`, from behind the first one. In double quotes it depends on operator and shell whether
        it quotes: bash looks for the second one in any case, and may still expand what is between."""
        text, end = self.text, len(self.text)
        first = text.find(b"'", at)
        if first < 0 and in_quotes:
            return at
        if not in_quotes:
            self.found.unclear = self.found.unclear or first < 0
            return end if first < 0 else first + 1
        aside = _Command(self.found)
        has_brace = has_quote = False
        while at < end:
            char = text[at : at + 1]
            if char == b"'":
                if has_brace and has_quote:
                    self.found.cut()  # for another shell all of this may have ended before
                return at + 1
            if char == b"$" or char == b"`":
                at = self._expansion(aside, at, True)
                continue
            has_brace = has_brace or char == b"}"
            has_quote = has_quote or char == b'"'
            at += 1
        self.found.cut()  # what is between was no substitution
        return end

    def _other(self, text: bytes) -> None:
        """What is expanded as in double quotes, and has none of its own."""
        if b"$" in text or b"`" in text:
            _Scan(text, self.found, self.depth + 1)._substitutions(0, len(text))

    def _substitutions(self, at: int, stop: int) -> None:
        """What is expanded as in double quotes, up to `stop`."""
        if self.depth >= _MOST_DEPTH:
            self.found.cut()
            return
        aside = _Command(self.found)
        marks = self._marks_in_quotes()
        self.depth += 1
        at = marks.find(1, at, stop)
        while at >= 0:
            char = self.text[at : at + 1]
            if char == b'"':
                at += 1
            elif char == b"\\":
                at += 2
            else:
                at = self._expansion(aside, at, True)
            at = marks.find(1, at, stop)
        self.depth -= 1

    def _marks_in_quotes(self) -> bytes:
        if self.quoted_marks is None:
            self.quoted_marks = self.text.translate(_QUOTED)
        return self.quoted_marks

    def _backquoted(self, one: _Command, at: int, in_quotes: bool) -> int:
        text, end = self.text, len(self.text)
        inside = bytearray()
        at += 1
        while at < end:
            char = text[at : at + 1]
            if char == b"`":
                break
            if char == b"\\" and (
                text[at + 1 : at + 2] in (b"`", b"\\", b"$")
                or (in_quotes and text[at + 1 : at + 2] == b'"')
            ):
                at += 1
                char = text[at : at + 1]
            inside += char
            at += 1
        else:
            self.found.unclear = True
        self.found.has_operators = True
        one.add(b"$()", unsure=True)
        _Scan(bytes(inside), self.found, self.depth + 1).run(0, False)
        return at + 1

    def _escaped(self, one: _Command, at: int) -> int:
        """$'…'"""
        text, end = self.text, len(self.text)
        made = bytearray()
        while at < end and text[at : at + 1] != b"'":
            char = text[at : at + 1]
            at += 1
            if char != b"\\":
                made += char
                continue
            letter = text[at : at + 1]
            at += 1
            plain = _ESCAPES.get(letter) or _ESCAPES_MORE.get(letter)
            if plain is not None:
                made += plain
                continue
            digits = b"01234567" if letter in b"01234567" else b"0123456789abcdefABCDEF"
            most = {b"x": 2, b"u": 4, b"U": 8}.get(letter, 3 if digits[-1:] == b"7" else 0)
            start = at - 1 if digits[-1:] == b"7" else at
            stop = start
            while (
                stop < end
                and stop - start < most
                and text[stop : stop + 1] in digits
                and stop < end
            ):
                stop += 1
            number = int(text[start:stop] or b"0", 8 if digits[-1:] == b"7" else 16)
            if stop == start or (letter in b"uU" and number > 0x10FFFF):
                self.found.unclear = True
                made += b"\\" + letter
                continue
            at = stop
            if letter in b"uU":
                made += chr(number).encode("utf-8", "replace")
            else:
                made.append(number & 255)
        one.add(bytes(made), quoted=True)
        return at + 1

    def _redirection(self, one: _Command, at: int) -> int:
        text = self.text
        self.found.has_operators = True
        if text[at + 1 : at + 2] == b"(":  # a process substitution
            one.add(b"/dev/fd/()", unsure=True)
            self.depth += 1
            stop = self.run(at + 2, True)
            self.depth -= 1
            return stop
        one.end_number()
        if text.startswith(b"<<<", at):
            one.skips = True
            return at + 3
        if text.startswith(b"<<", at):
            one.begins_document = True
            one.strips_tabs = text[at + 2 : at + 3] == b"-"
            one.skips = True
            return at + (3 if one.strips_tabs else 2)
        length = 1
        if text[at + 1 : at + 2] in (b">", b"|", b"&", b"<"):
            length = 2
        one.skips = True
        return at + length

    def _skip_documents(self, one: _Command, at: int) -> int:
        """Here-documents begin behind the line's end."""
        text = self.text
        for ends, is_quoted, strips_tabs, simple in one.documents:
            start = at
            is_joined = False  # to the line before, which ends in a backslash
            while True:
                if at >= len(text):
                    body = text[start:]
                    break
                stop = text.find(b"\n", at)
                line = text[at:] if stop < 0 else text[at:stop]
                following = len(text) if stop < 0 else stop + 1
                if (line.lstrip(b"\t") if strips_tabs else line) == ends and not is_joined:
                    body = text[start:at]
                    at = following
                    break
                is_joined = not is_quoted and (len(line) - len(line.rstrip(b"\\"))) % 2 == 1
                at = following
            if not is_quoted:
                self._other(body)
            if simple is not None:
                simple.stdin_text = body
        one.documents.clear()
        return at

    def _arithmetic(self, at: int) -> int:
        """From behind `((`: the place behind the `))` that closes, what is in between read; 0 where there is none:
        then it is a subshell in another, or in a substitution."""
        stop = self._end_of_arithmetic(at)
        if stop:
            self._substitutions(at, stop - 2)
        return stop

    def _end_of_arithmetic(self, at: int) -> int:
        text, end, start = self.text, len(self.text), at
        if self.found.looked_ahead > _MOST_AHEAD:
            self.found.cut()
            return 0
        stop, depth = 0, 2
        while at < end:
            char = text[at]
            if char == 40:
                depth += 1
            elif char == 41:
                depth -= 1
                if depth == 1:
                    stop = at + 2 if text[at + 1 : at + 2] == b")" else 0
                    break
            elif char == 92:
                at += 1
            elif char in (34, 39, 96):
                at = text.find(text[at : at + 1], at + 1)
                if at < 0:
                    at = end
            at += 1
        self.found.looked_ahead += at - start
        return stop

    def _list(self, at: int) -> int:
        """The words of an array, from behind its `(`: no commands, but for the substitutions in them."""
        text, end = self.text, len(self.text)
        aside = _Command(self.found)
        depth = 1
        while at < end:
            char = text[at : at + 1]
            if char == b")":
                depth -= 1
                at += 1
                if not depth:
                    return at
            elif char == b"(":
                depth += 1
                at += 1
            elif char == b"\\":
                at += 2
            elif char == b"'":
                close = text.find(b"'", at + 1)
                at = end if close < 0 else close + 1
            elif char == b'"':
                at = self._quoted(aside, at + 1)
            elif char == b"$" or char == b"`":
                at = self._expansion(aside, at, False)
            elif char in b"<>" and text[at + 1 : at + 2] == b"(":
                at = self._redirection(aside, at)
            elif char == b"#" and text[at - 1 : at] in (b"(", b" ", b"\t", b"\n"):
                close = text.find(b"\n", at)
                at = end if close < 0 else close
            else:
                at += 1
        self.found.unclear = True  # nothing closed it
        return end


class _Command:
    """The command that is being read."""

    def __init__(self, found: ShellText) -> None:
        self.found = found
        self.words: list[bytes] = []
        self.word = bytearray()
        self.has_word = False
        self.is_quoted = self.is_unsure = self.has_brace = False
        self.first_is_unsure = False
        #: the next word is no word of the command
        self.skips = self.begins_document = self.strips_tabs = False
        self.is_no_command = self.is_test = self.is_coprocess = False
        self.is_behind_newline = False
        self.piped_from = b""
        #: how many `case` are open
        self.cases = 0
        #: what ends each, whether nothing in it is expanded, whether tabs before its lines count for nothing
        self.documents: list[tuple[bytes, bool, bool, Simple | None]] = []
        self.own_documents: list[tuple[bytes, bool, bool]] = []

    def add(self, piece: bytes, *, quoted: bool = False, unsure: bool = False) -> None:
        self.word += piece
        self.has_word = True
        if quoted:
            self.is_quoted = True
        if unsure:
            self.is_unsure = True

    def end_number(self) -> None:
        """Before `<` or `>`: a number is the descriptor, and no word."""
        if self.has_word and not self.is_quoted and not self.is_unsure and self.word.isdigit():
            self._clear_word()
        else:
            self.end_word()

    def end_word(self) -> None:
        if not self.has_word:
            return
        word, quoted, unsure = bytes(self.word), self.is_quoted, self.is_unsure
        brace = self.has_brace and not quoted and b"," in word
        self._clear_word()
        if brace:
            self.found.unclear = True
        if self.skips:
            if self.begins_document:
                self.own_documents.append((word, quoted, self.strips_tabs))
                if unsure:  # taken by the shell as it is written, and here not
                    self.found.cut()
            self.skips = self.begins_document = False
            return
        if self.is_coprocess and len(self.words) == 1 and not quoted and word in _COMPOUND:
            self.words.clear()
        if not self.words and not quoted and not self.is_no_command:
            if word in _BEFORE or word in _BEHIND:
                self.is_coprocess = word == b"coproc"
                if word == b"esac" and self.cases:
                    self.cases -= 1
                return
            if word in _NO_COMMAND or word == b"((":
                self.is_no_command = True
                if word == b"case":
                    self.cases += 1
                return
            if word == b"[[":
                self.is_test = True
        if not self.words and _is_assignment(word):
            if unsure:
                self.found.unclear = self.found.unclear or b"$()" in word
            return
        if self.is_test and word == b"]]":
            self.is_test = False
        if not self.words:
            self.first_is_unsure = unsure or brace
        self.words.append(word)
        if word == b"{" and self.words[0] == b"function":
            self.found.functions.add(self.words[1])
            self.words.clear()

    def end_command(self, *, pipes: bool = False) -> None:
        self.end_word()
        simple = None
        words = self.words
        if words and words[0] == b"function" and len(words) == 2:
            self.found.functions.add(words[1])
        elif words and not self.is_no_command:
            simple = Simple(tuple(words), self.first_is_unsure, self.piped_from)
            if self.is_behind_newline and self.found.commands:
                self.found.has_operators = True
            self.found.commands.append(simple)
        self.documents += [(*document, simple) for document in self.own_documents]
        self.own_documents.clear()
        self.piped_from = words[0] if pipes and words else b""
        self.words = []
        self.first_is_unsure = self.is_no_command = self.is_test = self.is_coprocess = False
        self.skips = self.begins_document = False

    def drop(self) -> None:
        self._clear_word()
        self.words = []
        self.first_is_unsure = self.is_no_command = self.is_coprocess = False

    def is_assigning(self) -> bool:
        declares = not self.words or self.words[0] in _DECLARING
        return declares and not self.is_quoted and _is_assignment(bytes(self.word))

    def may_be_arithmetic(self) -> bool:
        return not self.has_word and not self.words

    def defines(self) -> bool:
        """Whether `()` here follows a function's name; then it is noted, and no word."""
        self.end_word()
        if self.words and self.words[0] == b"function" and len(self.words) == 2:
            del self.words[0]
        if len(self.words) != 1:
            return False
        self.found.functions.add(self.words.pop())
        return True

    def _clear_word(self) -> None:
        self.word.clear()
        self.has_word = self.is_quoted = self.is_unsure = self.has_brace = False


def _is_assignment(word: bytes) -> bool:
    name, equals, _ = word.partition(b"=")
    if not equals or not name:
        return False
    if name[-1:] == b"+":
        name = name[:-1]
    bracket = name.find(b"[")
    if bracket > 0 and name[-1:] == b"]":
        name = name[:bracket]
    return name.replace(b"_", b"a").isalnum() and not name[:1].isdigit()
