"""Bare `substrate` at a terminal: the interactive shell, with what it needs of the command line.

Imported only for it: the editor is heavy. Where the settings name another shell than bash, or the
output is no terminal, the plain shell runs in a world instead (run.py). Spec: shell.md §2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from substrate.cli import messages
from substrate.cli.options import BY_NAME
from substrate.cli.run import load_for
from substrate.errors import SubstrateError
from substrate.session.ending_lines import ENDINGS, SAYS
from substrate.session.request import INTERACTIVE, RunRequest
from substrate.values import replace
from substrate.world.change import Change
from substrate.world.handle import Zygote

_OPEN: frozenset[int] = frozenset()
#: verbs behind `:`, besides `why`, `history`, `help` and `quit`
_VERBS = (
    "status", "log", "show", "diff", "apply", "discard", "undo", "snapshot", "rollback", "net", "trace",
    "config", "doctor",
)  # fmt: skip
#: those that want the session alone: no job may run
_ALONE = ("apply", "discard", "undo", "snapshot", "rollback")
_OWN = ("why", "history", "help", "quit")
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
    from substrate.shell.sitting import Sitting

    home = homes.open_home(homes.default_path(os.environb))
    workspace = find_workspace(os.getcwdb())
    zygote.close()  # the session's supervisor has one of its own
    first = [request]

    def begin() -> None:
        asked, first[0] = first[0], replace(request, fresh=False)
        _begin(asked)

    sitting = Sitting(begin, _named(request), fresh=request.fresh)
    told: set[str] = set()
    services = Services(
        tell=lambda outcome: _tell(outcome, told),
        fail=_fail,
        say=messages.say,
        pending=_pending,
        verb=_verb,
        verbs=(*_VERBS, *_OWN),
        alone=_ALONE,
        options=_options,
    )
    return Shell(
        shell,
        sitting,
        services,
        history=home.path + b"/history/" + workspace.key,
        net=loaded.settings.net,
        shell_only=loaded.settings.shell_only,
        start=_start_line(),
        colour=messages.has_colour(1),
    ).run()


def _named(request: RunRequest) -> bytes:
    """What SUBSTRATE_SESSION would say. Raises UsageError for a session that is none."""
    from substrate.session import join_client

    return join_client.named(request, os.environb)


def _begin(request: RunRequest) -> None:
    """Begins the session as the flags say; --fresh holds for the first time."""
    from substrate.cli.serve_session import launch

    launch([b"run", *_flag_words(request), b"--", b"true"])


def _flag_words(request: RunRequest) -> list[bytes]:
    """The flags of the call, as words."""
    words = []
    for flag in request.flags:
        option = BY_NAME[flag.name]
        text = flag.text
        if flag.name == "--limit":
            text = f"{flag.key.removeprefix('limits.')}={text}"
        bare = not option.metavar and text == option.sets
        words.append(os.fsencode(flag.name if bare else f"{flag.name}={text}"))
    if request.config is not None:
        words.append(b"--config=" + request.config)
    if request.fresh:
        words.append(b"--fresh")
    elif request.world is not None:
        words.append(b"--world=" + os.fsencode(request.world))
    return words


def _tell(outcome: Mapping[str, Any], told: set[str]) -> None:
    """What a line came to, besides its output."""
    how = outcome.get("ended_by")
    denials = outcome.get("denials", ())
    is_said = any(isinstance(each, dict) and each.get("code") in SAYS for each in denials)
    if how in ENDINGS and not is_said:
        messages.say(ENDINGS[how])
    elif not is_said and isinstance(outcome.get("error"), str):
        messages.say(f"substrate: {_clean(outcome['error'])}")
    for note in outcome.get("notes", ()):
        if isinstance(note, str) and note not in told:
            told.add(note)
            messages.say(f"substrate: note: {_clean(note)}")


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


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
    """Also what the newest layer holds while jobs live in it, as it is in this moment."""
    from substrate.cli.target import NothingFound, pending_target
    from substrate.world.diff import diff_pending

    try:
        target = pending_target(None)
        stack = target.world.stack(target.files)
    except NothingFound:
        return ()
    return diff_pending(stack, skip_gone=True)


def _verb(name: str, words: Sequence[str], cwd: bytes) -> int:
    from substrate.cli.verbs import run_verb

    if name == "help":
        for line in _HELP:
            messages.say(line)
        return 0
    if name == "why":
        return _why(words, cwd)
    if name not in _VERBS:
        from substrate.suggestion import nearest

        found = nearest(name, (*_VERBS, *_OWN))
        messages.say(
            f"substrate: :{name} is no command here"
            + (f"; did you mean :{found}?" if found else ": :help lists what is")
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
    + ", why PATH, history [N], quit. For example: :diff  :undo  :apply  :log",
    "jobs live on between lines (sleep 60 &, Ctrl-Z, jobs, fg, bg, wait, disown, kill %1) and end with this "
    "shell; !!, !$, !n and ^a^b mean what they mean in bash",
)
