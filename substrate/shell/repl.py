"""The loop at the terminal: read a line, run it in the world, keep its state, show where we stand.

It reads and shows; what a line does is line.py's, what the text means is bash's. The state and
the settings of the terminal belong to one line at a time. Invariants: nothing that was typed runs
on the host but our own verbs, behind `:`; whatever a line does, the next prompt comes, or the
shell ends with what it was told. Spec: shell.md §2, world.md §4.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from substrate.errors import SubstrateError
from substrate.shell import boot, events, prompt
from substrate.shell import line as lines
from substrate.shell.completion import ShellCompleter
from substrate.shell.history import FileHistory
from substrate.shell.holding import Report
from substrate.shell.joined import Held
from substrate.shell.keeping import Jobs
from substrate.shell.names import Names
from substrate.shell.reader import what_is_open
from substrate.shell.sitting import Sitting
from substrate.shell.state import State
from substrate.shim import packets
from substrate.values import replace
from substrate.world.change import Change

#: of a verb that is told of
_MOST_VERB = 40
_INTERRUPTED = 130
#: what keys send us while the terminal is not raw, between a line's end and the prompt: to nobody. Not
#: ignored, or lines would inherit that.
_KEYS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)
_LOST = (
    "substrate: the line ended its shell without leaving its state (exec, a signal, or something that "
    "got in the way): what it set is lost, what was set before it holds"
)
_JOBS_THERE = "substrate: there are jobs, and they end with this shell (`jobs` lists them): leave again to leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the command line gives us, since it is above us. `tell`: what a line came to, as of
    `--json-status`; `fail`: an error; `pending`: what differs from the host; `verb`: one of
    `verbs` with its words and the directory, its status; `alone`: those that want the session alone;
    `options`: the words that one takes."""

    tell: Callable[[Mapping[str, Any]], None]
    fail: Callable[[Exception], int]
    say: Callable[[str], None]
    pending: Callable[[], Sequence[Change]]
    verb: Callable[[str, Sequence[str], bytes], int]
    verbs: Sequence[str]
    alone: Sequence[str]
    options: Callable[[str], Sequence[str]]


class Shell:
    """See the module. `shell`: the bash; `start`: a line that is run before the first prompt;
    `net`: the mode of the network; `shell_only`: the workspace is the host's own."""

    def __init__(
        self,
        shell: bytes,
        sitting: Sitting,
        services: Services,
        *,
        history: bytes,
        net: str,
        shell_only: bool = False,
        start: bytes = b"",
        colour: bool = True,
    ) -> None:
        self._shell, self._sitting, self._services, self._net = shell, sitting, services, net
        self._jobs = Jobs(services.say, self._lend)
        self._shell_only = shell_only
        self._warned = False  # that jobs end with us
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
        before = {number: signal.signal(number, _nothing) for number in _KEYS}
        try:
            self._sitting.attend()
            self._world = self._sitting.world
            self._refresh()
            if self._start:
                self._run(self._start)
            while not self._turn():
                continue
            return self._status
        finally:
            self._jobs.close()
            self._sitting.leave()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _turn(self) -> bool:
        """One line; whether the user leaves with it."""
        self._jobs.look()
        try:
            text = self._read()
        except KeyboardInterrupt:
            self._status = _INTERRUPTED
            return False
        except EOFError:
            return self._may_leave() and self._leave()
        if not text.strip():
            return False
        if _is_verb(text):
            self._history.keep(text)
            words = text[1:].split()
            if words[0] in ("quit", "q", "exit"):
                return self._may_leave() and self._leave()
            self._verb(words)
            return False
        meant = self._expanded(text)
        if meant is None:
            return False
        text = meant
        order = self._jobs.order_of(text)
        if order is not None:
            self._set_status(self._jobs.carry_out(order))
            if order.verb in ("fg", "wait", "kill"):
                self._refresh()
            return False
        if self._run(os.fsencode(self._jobs.with_last_pid(text))):
            return self._may_leave()
        self._warned = False
        return False

    def _expanded(self, text: str) -> str | None:
        """What a line means with the history; None where it is not to run."""
        if self._state is not None and b"histexpand" not in self._state.options:
            self._history.keep(text)
            return text
        found = events.expand(text, self._history.known(), self._shell)
        if found.problem:
            self._services.say(f"substrate: {found.problem}")
            self._status = 1
            return None
        if found.changed:
            print_formatted_text(found.text, output=self._session.output)
        self._history.keep(found.text)
        return found.text if found.runs else None

    def _may_leave(self) -> bool:
        if not self._jobs.are_there or self._warned:
            return True
        self._warned = True
        self._services.say(_JOBS_THERE)
        return False

    def _set_status(self, status: int) -> None:
        """$? of the next line, too."""
        self._status = status
        if self._state is not None:
            self._state = replace(self._state, status=status, pipe_statuses=(status,))

    # --- reading

    def _read(self) -> str:
        """What is typed, up to the end of a command."""
        self._begin_line()
        default = ""
        while self._ahead:
            default = f"{default}\n{self._ahead.pop(0)}" if default else self._ahead.pop(0)
            if not what_is_open(default):
                print_formatted_text(self._prompt(), default, output=self._session.output)
                return default
        begun, self._begun = self._begun, ""
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
        editor had no editor. A world says what that was: it can have its lines run in the world again,
        and no verb, which acts on the host."""
        text = typed.rpartition(b"\x03")[2].decode("utf-8", "replace")
        lines_typed = ["".join(c for c in part if c.isprintable()) for part in text.split("\n")]
        lines_typed[0] = self._begun + lines_typed[0]
        verbs = [line.split()[0] for line in lines_typed if _is_verb(line)]
        if verbs:
            shown = verbs[0][:_MOST_VERB]
            self._services.say(f"substrate: {shown} came while a line ran: type it at the prompt")
        *whole, self._begun = ["" if _is_verb(line) else line for line in lines_typed]
        self._ahead += whole

    def _prompt(self) -> FormattedText:
        standing = prompt.Standing(
            world=self._world,
            pending=len(self._changes),
            net=self._net,
            cwd=self._cwd,
            home=os.environb.get(b"HOME", b""),
            status=self._status,
            root=os.geteuid() == 0,
            shell_only=self._shell_only,
            jobs=self._jobs.counts,
        )
        return FormattedText(prompt.parts(standing))

    def _look(self) -> tuple[State | None, Names, bytes]:
        return self._state, self._names, self._cwd

    # --- running

    def _run(self, text: bytes) -> bool:
        """Runs a line; whether the shell ends with it."""
        try:
            ran = lines.run_line(
                text,
                self._state,
                self._shell,
                self._sitting.connect,
                self._services.say,
                number=self._jobs.next_number(),
                size=os.get_terminal_size(1),
            )
        except (SubstrateError, OSError) as error:
            self._status = self._services.fail(error)
            self._jobs.look()
            self._refresh()
            return boot.is_exit(text)  # whoever cannot run anything can leave
        except KeyboardInterrupt:
            self._status = _INTERRUPTED
            return False
        self._world = self._sitting.world
        if ran.ending is not None and ran.ending.kind != packets.ENDED:
            why = ran.ending.text.removeprefix("substrate: ")
            self._services.say(f"substrate: {why}")
            if ran.ending.hint:
                self._services.say(f"hint: {ran.ending.hint}")
            self._set_status(ran.ending.status)
            return boot.is_exit(text)
        self._services.tell(ran.outcome)
        if ran.state is None:
            self._services.say(_LOST)
        else:
            self._state = ran.state
            self._take_ahead(ran.state.typed_ahead)
            if os.path.isabs(ran.state.cwd):
                self._cwd = ran.state.cwd
        self._status = ran.status
        if ran.held is not None and ran.report is not None:
            self._jobs.keep(ran.held, ran.report)
        if ran.held is not None or any(ran.outcome.get("changes", {"unknown": 1}).values()):
            self._refresh()
        return ran.leaves

    def _lend(self, held: Held, order: bytes) -> Report | None:
        """Gives the terminal to a job."""
        report = held.foreground(order, self._services.say)
        if report is not None:
            self._take_ahead(report.ahead)
        return report

    def _verb(self, words: Sequence[str]) -> None:
        """Carries out `:verb`."""
        if words[0] == "history":
            self._status = self._show_history(words[1:])
            return
        if words[0] in self._services.alone:
            if self._jobs.are_there:
                self._services.say(
                    f"substrate: :{words[0]} has to wait until no job runs: `jobs` lists them; "
                    "end one by kill %1, or fg it to its end"
                )
                self._status = 1
                return
            self._sitting.leave()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self._status = self._services.verb(words[0], words[1:], self._cwd)
        except KeyboardInterrupt:
            self._status = _INTERRUPTED
        finally:
            signal.signal(signal.SIGINT, _nothing)
        self._refresh()

    def _show_history(self, words: Sequence[str]) -> int:
        known = self._history.known()
        if words and not (words[0].isascii() and words[0].isdigit()):
            self._services.say(
                "substrate: :history takes a number of lines, for example :history 20"
            )
            return 2
        count = int(words[0]) if words else len(known)
        for number, text in [*enumerate(known, 1)][max(0, len(known) - count) :]:
            print_formatted_text(f"{number:5}  {text}", output=self._session.output)
        return 0

    def _refresh(self) -> None:
        try:
            self._changes = self._services.pending()
        except (SubstrateError, OSError) as error:
            self._services.fail(error)
            return
        self._names = Names(self._changes)

    def _leave(self) -> bool:
        """At the end of the input. A trap on EXIT runs then, as in any shell."""
        if self._state is not None and self._state.trap_exit:
            self._run(b"exit")
        return True

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._services.say(text)


def _is_verb(text: str) -> bool:
    """Whether a line is for us, and not for the world."""
    return text.startswith(":") and text[1:2].isalpha()


def _nothing(_number: int, _frame: object) -> None:
    return


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
