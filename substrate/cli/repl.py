"""Bare `substrate` at a terminal: the interactive shell, with what it needs of the command line.

Imported only for it: the editor is heavy. Where the settings name another shell than bash, or the
output is no terminal, the plain shell runs in a world instead (run.py). Spec: shell.md §2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from substrate.cli import messages
from substrate.cli.run import SAYS, load_for, say_how_it_failed
from substrate.errors import SubstrateError
from substrate.session.request import INTERACTIVE, RunRequest
from substrate.session.settings import Settings
from substrate.session.supervisor import Outcome, run_one_shot
from substrate.values import replace
from substrate.world.change import Change
from substrate.world.handle import Zygote

_OPEN: frozenset[int] = frozenset()
#: verbs behind `:`, besides `why`, `help` and `quit`
_VERBS = (
    "status", "log", "show", "diff", "apply", "discard", "undo", "snapshot", "rollback", "net", "trace",
    "config", "doctor",
)  # fmt: skip
_STARTS = ("/etc/bash.bashrc", "~/.bashrc")


def is_possible(closed: frozenset[int]) -> bool:
    """Whether somebody can type and see."""
    return not closed & {0, 1, 2} and os.isatty(0) and os.isatty(1)


def run(request: RunRequest, zygote: Zygote) -> int:
    """Runs the shell; returns its exit status. Raises SubstrateError, OSError."""
    from substrate.cli.run import run_request

    loaded = load_for(request, _OPEN)
    shell = request.file or loaded.settings.shell
    if os.path.basename(shell) != b"bash":
        return run_request(replace(request, kind=INTERACTIVE), _OPEN, zygote)
    for warning in loaded.warnings:
        messages.warn(warning)
    from substrate.session import home as homes
    from substrate.session.workspace import find_workspace
    from substrate.shell.repl import Services, Shell

    home = homes.open_home(homes.default_path(os.environb))
    workspace = find_workspace(os.getcwdb())
    runner = _Runner(zygote, request)
    try:
        services = Services(
            run=runner.run,
            tell=runner.tell,
            fail=_fail,
            say=messages.say,
            pending=_pending,
            verb=_verb,
            verbs=(*_VERBS, "why", "help", "quit"),
            options=_options,
        )
        return Shell(
            replace(request, file=shell),
            services,
            history=home.path + b"/history/" + workspace.key,
            net=loaded.settings.net,
            start=_start_line(),
            colour=messages.has_colour(1),
        ).run()
    finally:
        runner.close()


class _Runner:
    """Runs lines, one after the other, by one zygote that is kept."""

    def __init__(self, zygote: Zygote, request: RunRequest) -> None:
        zygote.keep()
        self._zygote = zygote
        self._first: Zygote | None = zygote  # whose end is its maker's
        self._fresh = request.fresh
        self._notes: set[str] = set()

    def run(self, request: RunRequest) -> Outcome:
        settings: Settings = load_for(request, _OPEN).settings
        try:
            outcome = run_one_shot(
                replace(request, fresh=self._fresh),
                settings,
                self._zygote,
                _OPEN,
                None,
                messages.say,
            )
        except BaseException:
            self._renew()
            raise
        self._fresh = False
        return outcome

    def _renew(self) -> None:
        """After a failure nobody knows what the zygote still has to say."""
        self.close()
        self._zygote = Zygote()
        self._zygote.keep()

    def close(self) -> None:
        """Ends the zygote, but for the first one, which is not ours."""
        if self._zygote is self._first:
            self._zygote.socket.close()
        else:
            self._zygote.close()

    def tell(self, outcome: Outcome) -> None:
        """What a line came to, besides its output."""
        say_how_it_failed(outcome)
        for denial in outcome.denials:
            if denial.code in SAYS:  # which is said already
                continue
            messages.say(f"substrate: {denial.text}")
        for note in outcome.notes:
            if note not in self._notes:
                self._notes.add(note)
                messages.say(f"substrate: note: {note}")


def _fail(error: Exception) -> int:
    from substrate.cli.main import FAILED, host_error, status_of

    known = error if isinstance(error, SubstrateError) else None
    if isinstance(error, OSError):
        known = host_error(error)
    if known is None:
        raise error
    messages.say_error(known)
    return status_of(known) if isinstance(error, SubstrateError) else FAILED


def _start_line() -> bytes:
    """What an interactive bash reads first, where it is there."""
    there = [path for path in _STARTS if os.path.exists(os.path.expanduser(path))]
    return os.fsencode("; ".join(f". {path}" for path in there))


def _pending() -> Sequence[Change]:
    from substrate.cli.target import NothingFound, pending_target
    from substrate.world.diff import diff_pending

    try:
        stack, _ = pending_target(None).frozen_stack()
    except NothingFound:
        return ()
    return diff_pending(stack, skip_gone=True)


def _verb(name: str, words: Sequence[str], cwd: bytes) -> int:
    from substrate.cli.verbs import run_verb

    if name == "help":
        messages.say(_HELP)
        return 0
    if name == "why":
        return _why(words, cwd)
    if name not in _VERBS:
        from substrate.suggestion import nearest

        found = nearest(name, (*_VERBS, "why", "help", "quit"))
        messages.say(
            f"substrate: :{name} is no command here"
            + (f"; did you mean :{found}?" if found else "")
        )
        return 2
    if name == "net" and words[:1] == ["allow"]:
        messages.say(
            "substrate: no command runs now: give the rule to the shell: substrate --allow HOST"
        )
        return 1
    return run_verb([name, *words])


def _why(words: Sequence[str], cwd: bytes) -> int:
    """Which commands changed a path."""
    from substrate.cli.log import command_text
    from substrate.cli.output import put_visible
    from substrate.cli.target import readable_target
    from substrate.session.history import load_history
    from substrate.telemetry.trace.octets import bytes_of

    if len(words) != 1:
        messages.say("substrate: :why takes one path, for example :why src/main.c")
        return 2
    try:
        history = load_history(readable_target(None).files)
    except SubstrateError as error:
        messages.say_error(error)
        return error.exit_status
    path = os.path.normpath(os.path.join(cwd, os.fsencode(words[0])))
    found = 1
    for span in history.spans:
        for diff in (*span.diffs, *span.softs):
            for entry in diff["body"].get("entries", ()):
                if bytes_of(entry["path"]) == path:
                    put_visible(f"{span.ordinal}  {entry['kind']}  {command_text(span)}")
                    found = 0
    if found:
        messages.say("substrate: no command here changed it")
    return found


def _options(verb: str) -> Sequence[str]:
    """The options of a verb, and the names of those below it."""
    from substrate.cli.verbs import root

    if verb not in _VERBS:
        return ()
    context = click.Context(root)
    command = root.get_command(context, verb)
    if command is None:
        return ()
    found = [name for param in command.params for name in param.opts if name.startswith("--")]
    if isinstance(command, click.Group):
        found += command.list_commands(context)
    return found


_HELP = (
    "lines run in the world, each as a command of its own; behind `:` stand "
    + ", ".join(_VERBS)
    + ", why PATH, quit. For example: :diff  :undo  :apply  :log"
)
