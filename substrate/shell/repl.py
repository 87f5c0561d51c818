"""The loop at the terminal: read a line, run it in the world, keep its state, show where we stand.

It reads and shows; what a line does is line.py's, what the text means is bash's. The state and
the settings of the terminal belong to one line at a time. Invariants: nothing that was typed runs
on the host but our own verbs, behind `:`; whatever a line does, the next prompt comes, or the
shell ends with what it was told. Spec: shell.md §2, world.md §4.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from substrate.errors import SubstrateError
from substrate.session.request import RunRequest
from substrate.session.supervisor import Outcome
from substrate.shell import line as lines
from substrate.shell import prompt
from substrate.shell.completion import ShellCompleter
from substrate.shell.history import FileHistory
from substrate.shell.names import Names
from substrate.shell.reader import what_is_open
from substrate.shell.state import State
from substrate.world.change import Change

_INTERRUPTED = 130
_LOST = (
    "substrate: the line ended its shell without leaving its state (exec, a signal, or something that "
    "got in the way): what it set is lost, what was set before it holds"
)
_NOT_CARRIED = (
    "substrate: background jobs and open files end with their line; the rest is carried over"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the command line gives us, since it is above us. `run`: a request as a command;
    `tell`: what it came to; `fail`: an error; `pending`: what differs from the host; `verb`: one of
    `verbs` with its words and the directory, its status; `options`: the words that one takes."""

    run: lines.Run
    tell: Callable[[Outcome], None]
    fail: Callable[[Exception], int]
    say: Callable[[str], None]
    pending: Callable[[], Sequence[Change]]
    verb: Callable[[str, Sequence[str], bytes], int]
    verbs: Sequence[str]
    options: Callable[[str], Sequence[str]]


class Shell:
    """See the module. `template`: the request that each line is one of; `start`: a line that is
    run before the first prompt; `net`: the mode of the network."""

    def __init__(
        self,
        template: RunRequest,
        services: Services,
        *,
        history: bytes,
        net: str,
        start: bytes = b"",
        colour: bool = True,
    ) -> None:
        self._template, self._services, self._net = template, services, net
        self._start = start
        self._state: State | None = None
        self._world: str | None = None
        self._cwd = os.getcwdb()
        self._status = 0
        self._ahead: list[str] = []  # typed while a line came to its end
        self._begun = ""  # and not sent yet
        self._told: set[str] = set()
        self._changes: Sequence[Change] = ()
        self._names = Names()
        self._history = FileHistory(history)
        self._dumb = os.environ.get("TERM", "dumb") in ("dumb", "")
        self._session: PromptSession[str] = PromptSession(
            history=self._history,
            completer=ShellCompleter(self._look, services.verbs, services.options),
            complete_while_typing=False,
            enable_system_prompt=False,
            enable_suspend=False,
            enable_open_in_editor=False,
            multiline=not self._dumb,
            prompt_continuation=_continuation,
            key_bindings=_keys(),
            output=_output(),
            color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
        )

    def run(self) -> int:
        """Until the user leaves; the status to leave with."""
        self._refresh()
        if self._start:
            self._run(self._start)
        while True:
            try:
                text = self._read()
            except KeyboardInterrupt:
                self._status = _INTERRUPTED
                continue
            except EOFError:
                return self._leave()
            if not text.strip():
                continue
            if text.startswith(":") and text[1:2].isalpha():
                if self._verb(text[1:].split()):
                    return self._leave()
            elif self._run(os.fsencode(text)):
                return self._status

    # --- reading

    def _read(self) -> str:
        """What is typed, up to the end of a command."""
        self._begin_line()
        default = ""
        begun, self._begun = self._begun, ""
        while self._ahead:
            default = f"{default}\n{self._ahead.pop(0)}" if default else self._ahead.pop(0)
            if not what_is_open(default):
                print_formatted_text(self._prompt(), default, output=self._session.output)
                self._history.append_string(default)
                return default
        self._session.editing_mode = (
            EditingMode.VI
            if self._state is not None and b"vi" in self._state.options
            else EditingMode.EMACS
        )
        text = self._session.prompt(
            self._prompt, default=f"{default}\n{begun}" if default else begun
        )
        while self._dumb and what_is_open(text):  # no editor there: line by line
            text += "\n" + self._session.prompt("> ")
        if self._history.problem is not None:
            self._once(f"substrate: {self._history.problem}")
        return text

    def _begin_line(self) -> None:
        """The prompt begins on a line of its own, also where output did not end one (zsh's way)."""
        if self._dumb:
            return
        columns = os.get_terminal_size(1).columns
        sys.stdout.write("\x1b[7m%\x1b[m" + " " * (columns - 1) + "\r \r")
        sys.stdout.flush()

    def _take_ahead(self, typed: bytes) -> None:
        """What was typed for us while a line ran, up to the last whole line; control keys of an
        editor had no editor."""
        text = typed.rpartition(b"\x03")[2].decode("utf-8", "replace")
        lines_typed = ["".join(c for c in part if c.isprintable()) for part in text.split("\n")]
        self._begun = lines_typed.pop()
        self._ahead += lines_typed

    def _prompt(self) -> FormattedText:
        standing = prompt.Standing(
            world=self._world,
            pending=len(self._changes),
            net=self._net,
            cwd=self._cwd,
            home=os.environb.get(b"HOME", b""),
            status=self._status,
            root=os.geteuid() == 0,
        )
        return FormattedText(prompt.parts(standing))

    def _look(self) -> tuple[State | None, Names, bytes]:
        return self._state, self._names, self._cwd

    # --- running

    def _run(self, text: bytes) -> bool:
        """Runs a line; whether the shell ends with it."""
        try:
            typed = lines.TypedAhead()
            size = os.get_terminal_size(1)
            ran = lines.run_line(text, self._state, self._template, self._services.run, size, typed)
        except (SubstrateError, OSError) as error:
            self._status = self._services.fail(error)
            self._refresh()
            return False
        except KeyboardInterrupt:
            self._status = _INTERRUPTED
            return False
        self._services.tell(ran.outcome)
        self._take_ahead(typed.text)
        self._status = ran.status
        if ran.outcome.ended.background_ended:
            self._once(_NOT_CARRIED)
        if ran.state is None:
            self._services.say(_LOST)
        else:
            self._state = ran.state
            if os.path.isabs(ran.state.cwd):
                self._cwd = ran.state.cwd
        self._world = ran.outcome.world
        if ran.outcome.changes:
            self._refresh()
        return ran.leaves

    def _verb(self, words: Sequence[str]) -> bool:
        """Carries out `:verb`; whether the user leaves."""
        if words[0] in ("quit", "q", "exit"):
            return True
        self._status = self._services.verb(words[0], words[1:], self._cwd)
        self._refresh()
        return False

    def _refresh(self) -> None:
        try:
            self._changes = self._services.pending()
        except (SubstrateError, OSError) as error:
            self._services.fail(error)
            return
        self._names = Names(self._changes)

    def _leave(self) -> int:
        """At the end of the input. A trap on EXIT runs then, as in any shell."""
        if self._state is not None and self._state.trap_exit:
            self._run(b"exit")
        return self._status

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._services.say(text)


def _output() -> Output:
    """The terminal is not asked where its cursor is: an answer that comes late would be typed into
    the next line, and we know (`_begin_line`)."""
    output = create_output()
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return output


def _continuation(width: int, number: int, is_soft_wrap: int) -> str:
    return "" if is_soft_wrap else "> ".rjust(width)


def _keys() -> KeyBindings:
    """Enter runs what is whole, else it goes on; Alt-Enter runs what there is."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.text
        if text.startswith(":") or not what_is_open(text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return keys
