"""The text that a line's shell runs: what was left is restored, the line runs, its state is saved.

Pure: bytes in, bytes out; nothing of it is ever run on the host. Theory of operation. The text
comes in on an fd and is, behind a command that has bash remember nothing, one compound command, parsed whole before anything of the user's is there:
no alias reaches it. Restoring goes in this order, since each step could stand in the way of the
next: options that reading needs, variables, settings; then, in one `eval` with the line, functions
(no alias yet, or their bodies would be expanded again), aliases by assignment (no builtin is
called once functions are there), traps and options that would show or break what is done here,
$?, and at last functions with the names of builtins. The line's own text stands on lines of its
own, as it would be read from a terminal, and what is left behind it is the mark that it came to its
end, with $?, $_ and PIPESTATUS. The state's fd is closed while the line runs: its programs do not
inherit it.

The shell is an interactive one (`-i`): errors of a line end that line and not its shell. Where the
shell itself ends (`exit`, `set -e`, Ctrl-C in a list), a trap on EXIT saves; a trap of the user's
takes its place. Spec: world.md §4; bash(1) "INVOCATION", "SIGNALS".
"""

from __future__ import annotations

import re

from substrate.shell.holding import AGAIN, HELD, HOLD
from substrate.shell.saver import (
    FORGET,
    IN_FD,
    ORDERS_FD,
    OUT_FD,
    REPORTS_FD,
    SAVE_AT_END,
    SAVE_AT_EXIT,
    TOKEN,
)
from substrate.shell.state import State

#: where a line's shell finds its text
TEXT_PATH = b"/dev/fd/%d" % IN_FD
#: where bash keeps OUT_FD while it is closed for the line: the first that is free from 10 on
#: (redir.c). A shell that ends within the line does not put it back.
_FIND_KEPT = rb"""__substrate_kept=10
while [[ -e /dev/fd/$__substrate_kept ]]; do (( ++__substrate_kept )); done"""
_AT_EXIT = b'__substrate_end=("$?" "$_" "${PIPESTATUS[@]}")'
#: options of `set` that must not hold while a state is restored
_LATE = (b"errexit", b"nounset", b"verbose", b"xtrace", b"posix", b"noexec", b"onecmd", b"keyword")
#: that a shell sets by itself
_OWN = (b"history", b"histexpand", b"monitor", b"restricted", b"privileged")
#: that are on in a new shell
_ON = (b"braceexpand", b"hashall", b"interactive-comments")
_OWN_SHOPT = (b"login_shell", b"restricted_shell")
#: a line that leaves, whatever it leaves with: behind one that Ctrl-C ended that is 130, too
_EXIT = re.compile(rb"\s*(?:exit|logout)(?:\s+\d+)?\s*;?\s*")
_MAYBE_INTERRUPTED = b"[[ $__substrate_status != 130 ]] || __substrate_how=interrupt\n"
_MARK = b"{ " + _AT_EXIT + b"; } >/dev/null 2>&1"
_QUIET = b" >/dev/null 2>&1"
#: how often Ctrl-C and Ctrl-Z may meet a shell that only has jobs yet
_MOST_INTERRUPTS = 100
#: behind the compound command: where Ctrl-C has thrown a shell out of its line, and there may be jobs
_TAIL = (
    b"{\n"
    + _AT_EXIT
    + b"\n{\n__substrate_status=${__substrate_fell:-${__substrate_end[0]}} __substrate_fell= __substrate_how=interrupt\n[[ ${" + HELD + b"-} ]] || {\n"
    + SAVE_AT_EXIT.encode()
    + b"\n\\trap - EXIT\n\\set +o history\n}\n} >/dev/null 2>&1\n"
    + HOLD
    + b"\n}"
)  # fmt: skip
_TAIL_HELD = b"{\n" + AGAIN + b"\n" + HOLD + b"\n}"
#: those that are over are there until they are listed once more
_FORGET_JOB = (
    rb"{ \builtin jobs; \builtin jobs; \builtin trap - DEBUG; \builtin : %s; } >/dev/null 2>&1"
)
_RETURN = b"""__substrate_was() {
\\builtin unset -f __substrate_was
\\builtin return %d
}
__substrate_was %s"""
#: a command of its own, since bash remembers what it reads before it runs it; `exec` would save the rest
_NO_HISTORY = rb"\builtin set +o history; \builtin history -d -1"
_CLOSED = b" %d>&- %d<&- %d>&-" % (OUT_FD, ORDERS_FD, REPORTS_FD)


def command_words(shell: bytes) -> tuple[bytes, ...]:
    """argv of a line's shell."""
    name = shell.rpartition(b"/")[2]
    return (name, b"--noprofile", b"--norc", b"-i", TEXT_PATH)


def is_exit(line: bytes) -> bool:
    """Whether a line only leaves the shell."""
    return _EXIT.fullmatch(line) is not None


def quote(text: bytes) -> bytes:
    """One word of a shell."""
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def compose(
    line: bytes, state: State | None, *, finished: bool = True, size: tuple[int, int] = (80, 24)
) -> bytes:
    """The text for `line` in `state`; None: the first one. `finished`: nothing in the line is left
    open, such as a here-document (reader.py). `size`: columns and rows of the terminal."""
    restore, before, user_exit = b"set -o emacs", b"", b""  # as a shell at a terminal has
    if state is not None:
        restore, before = _restore(state, size), _before(state)
        user_exit = state.trap_exit
    mark = b"\n" + _MARK if finished else b""
    parts = (
        _NO_HISTORY,
        b"{",
        rb"BASH_ARGV0=bash",
        rb"\exec %d<&-" % IN_FD,
        b"__substrate_span=${SUBSTRATE_PARENT_SPAN-}",
        rb"\builtin eval " + quote(restore) + _QUIET,
        b"[[ -n $__substrate_span ]] && SUBSTRATE_PARENT_SPAN=$__substrate_span",
        b"[[ -v __substrate_gone ]] && "
        rb"\builtin printf 'substrate: %s is gone: back in %s\n' "
        b'"$__substrate_gone" "$PWD" >&2',
        rb"\builtin unset -v __substrate_span __substrate_gone",
        _FIND_KEPT,
        rb"\builtin trap "
        + quote(_AT_EXIT + b" __substrate_kept=")
        + b'"$__substrate_kept"'
        + quote(_exit_trap(user_exit, exits=is_exit(line)))
        + b" EXIT",
        rb"\builtin unset -v __substrate_kept",
        rb"\builtin eval " + quote(before + line + mark) + _CLOSED,
        b'{ __substrate_end=("${__substrate_end[@]-$?}"); } >/dev/null 2>&1',
        b"{",
        b"__substrate_status=${__substrate_end[0]}",
        SAVE_AT_END.encode(),
        rb"\builtin trap - EXIT",
        rb"\builtin set +o history",  # or it would be saved
        b"} >/dev/null 2>&1",
        HOLD,
        b"}",
        _TAIL,
        *(_TAIL_HELD,) * _MOST_INTERRUPTS,
    )
    return b"\n".join(parts)


def _exit_trap(user: bytes, *, exits: bool) -> bytes:
    """`user`: a trap of the user's on EXIT, as `trap -p` printed it; `exits`: the line is an `exit`."""
    run_it = b""
    if user:
        run_it = (
            b"if [[ $__substrate_how == exit ]]; then\n"
            b'function trap { \\builtin eval "$2"; }\n'
            b"(\\exit $__substrate_status)\n\\" + user.rstrip(b"\n") + b"\nfi\n"
        )
    return (
        b"\n{ __substrate_status=${__substrate_end[0]} __substrate_how=exit\n"
        + (b"" if exits else _MAYBE_INTERRUPTED)
        + SAVE_AT_EXIT.encode()
        + b"} >/dev/null 2>&1\n"
        + run_it
        + b"\\builtin set +o history\n"
        + b"if [[ $__substrate_how == interrupt ]]; then\n" + HOLD + b"\nfi\n# " + TOKEN
    )  # fmt: skip


def _restore(state: State, size: tuple[int, int]) -> bytes:
    """What is done before there is any function or alias, and out of sight."""
    early = [n for n in state.options if n not in _LATE and n not in _OWN]
    shopts = [n for n in state.shell_options if n not in _OWN_SHOPT]
    return b"\n".join(
        (
            b"__substrate_names=" + quote(b" ".join(state.names)),
            FORGET.encode(),
            b"cd -- " + quote(state.cwd) + b" || __substrate_gone=" + quote(state.cwd),
            b"unset -v OLDPWD",
            state.variables,
            b"unset -v POSIXLY_CORRECT __substrate_status __substrate_line __substrate_how",
            b"shopt -u ${BASHOPTS//:/ }",
            b"shopt -s " + b" ".join(shopts),
            b"[[ -v __substrate_gone ]] && cd -P .",
            b"[[ -v COLUMNS ]] && COLUMNS=%d LINES=%d" % size,
            state.settings,
            b"trap - DEBUG ERR RETURN EXIT",
            *(b"set +o " + name for name in _ON if name not in state.options),
            *(b"set -o " + name for name in early if name not in _ON),
            *(() if b"histexpand" in state.options else (b"set +o histexpand",)),
        )
    )


def _before(state: State) -> bytes:
    """What stands before the line, in its own text; everything in it is out of sight."""
    late = [name for name in _LATE if name in state.options]
    hidden = [b"{", state.aliases]
    if state.functions:  # a group of its own: aliases count from the next one on
        hidden = [b"{", state.functions, b"} >/dev/null 2>&1", *hidden]
    if state.disabled:
        hidden.append(rb"\builtin enable -n " + b" ".join(state.disabled))
    hidden += [b"\\" + trap for trap in (state.trap_err, state.trap_return) if trap]
    if b"posix" in late:
        hidden.append(b"POSIXLY_CORRECT=" + quote(state.posixly_correct))
    options = [b"-o " + name for name in late if name != b"posix"]
    if options:
        hidden.append(rb"\builtin set " + b" ".join(options))
    if state.trap_debug:
        hidden.append(b"\\" + state.trap_debug)
    hidden.append(rb"\builtin : " + quote(state.last_argument))
    hidden.append(state.shadows)
    if b"errexit" not in late and b"exit ()" not in state.shadows:
        hidden.append(_statuses(state))
    return b"\n".join((*(part for part in hidden if part), b"} >/dev/null 2>&1", b""))


def _statuses(state: State) -> bytes:
    """Gives $? and PIPESTATUS what they were; nothing where all went well. One status comes of a function that
    takes itself away, since a fork would be a job of the line's. PIPESTATUS has no other way: that job is taken off
    the list before the first command, by a trap, which leaves both as they are. Neither where it would meet
    something of the user's."""
    pipe = state.pipe_statuses
    plain = not (state.trap_debug or state.trap_return or state.shadows or state.disabled)
    if len(pipe) > 1 and pipe[-1] == state.status:
        forks = b"|".join(rb"(\exit %d)" % status for status in pipe)
        forget = (
            rb"\builtin trap -- " + quote(_FORGET_JOB % quote(state.last_argument)) + b" DEBUG\n"
        )
        return forget + forks if plain else forks
    if not state.status:
        return b""
    if plain:
        return _RETURN % (state.status, quote(state.last_argument))
    return rb"(\exit %d)" % state.status
