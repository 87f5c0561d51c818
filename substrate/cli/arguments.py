"""The words of a run form: which are ours, which the shell's, which the command's.

Pure: words and variables in, RunRequest out; nothing is opened and nothing imported that is
heavy. Theory of operation. The shell's own options are recognised as bash does (shell.c,
parse_long_options and parse_shell_options): its long ones first, with one or two hyphens,
then clusters of letters behind `-` or `+`, where each `o` and `O` takes a following word;
`-` and `--` end them. They are handed on as they are. Ours are long, take `--name value` or
`--name=value`, and may stand anywhere before the command; they are taken out. `-f FILE` is
ours only without `-c`: `bash -f -c …` switches globbing off, and so does `substrate -f -c`.

Invariant: what bash gets is what bash would have got without our options, in the same order.
Spec: shell.md §1.
"""

from __future__ import annotations

import os

from substrate.cli.options import BY_NAME, VERBS
from substrate.errors import ConfigError, UsageError
from substrate.session.request import FILE, INTERACTIVE, RUN, STDIN, TEXT, RunRequest
from substrate.session.settings import FlagUse
from substrate.session.settings_table import BY_KEY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: bash(1) "OPTIONS"; True: it takes a word
BASH_LONG = {
    "debug": False,
    "debugger": False,
    "dump-po-strings": False,
    "dump-strings": False,
    "init-file": True,
    "login": False,
    "noediting": False,
    "noprofile": False,
    "norc": False,
    "posix": False,
    "pretty-print": False,
    "rcfile": True,
    "restricted": False,
    "verbose": False,
    "wordexp": False,
}
#: bash's flags.c and shell.c
_LETTERS = frozenset("abefhikmnprtuvxBCEHPTclsoOD")
_BASH_NAMES = frozenset((b"bash", b"sh", b"rbash", b""))
_HELP = "`substrate --help` lists the options"


def parse_run(
    words: Sequence[bytes], environ: Mapping[bytes, bytes], *, terminal: bool, stdin_open: bool
) -> RunRequest:
    """The request of `substrate [OPTIONS] -c …`, `-f …`, `run …`, a script on standard input or
    an interactive shell. `words`: without argv[0]. `terminal`: standard input is one.

    Raises UsageError, ConfigError for a variable."""
    if words and words[0] == b"run":
        return _Words(environ).program(words[1:])
    return _Words(environ).shell(words, terminal=terminal, stdin_open=stdin_open)


class HelpWanted(Exception):
    """Not an error: `--help` or `--version` stands among the options of `verb`."""

    def __init__(self, word: str, verb: str) -> None:
        super().__init__(word)
        self.word, self.verb = word, verb


def _look_for_help(word: bytes, verb: str) -> None:
    if word in (b"--help", b"--version"):
        raise HelpWanted(word.decode(), verb)


class _Words:
    """The options met so far."""

    def __init__(self, environ: Mapping[bytes, bytes]) -> None:
        self.environ = environ
        self.flags: list[FlagUse] = []
        self.switches: set[str] = set()
        self.values: dict[str, bytes] = {}
        #: letters of the shell's clusters, where its long options end, where a lone `-f` stands
        self.letters: set[str] = set()
        self.long_end = 0
        self.lone_f: set[int] = set()

    # --- the two ways

    def program(self, words: Sequence[bytes]) -> RunRequest:
        """`run [OPTIONS] [--] CMD ARGS…`."""
        at = 0
        while at < len(words) and words[at].startswith(b"-") and words[at] != b"-":
            if words[at] == b"--":
                at += 1
                break
            _look_for_help(words[at], "run")
            after = self.ours(words, at)
            if after is None:
                raise _unknown(words[at], ())
            at = after
        if at == len(words):
            raise UsageError(
                "run needs a program", hint="for example: substrate run -- make -j2 test"
            )
        if not words[at]:
            raise UsageError("the name of the program is empty", hint=_HELP)
        return self.request(RUN, words[at], tuple(words[at:]), None)

    def shell(self, words: Sequence[bytes], *, terminal: bool, stdin_open: bool) -> RunRequest:
        """All the forms that a shell runs."""
        kept, rest = self.shell_options(words)
        shell = self.shell_path()
        name = os.path.basename(shell)
        letters = self.letters
        if "c" in letters:
            if not rest:
                raise UsageError("-c needs a command", hint="for example: substrate -c 'make test'")
            return self.request(TEXT, shell, (name, *self.with_errexit(kept), *rest), rest[0])
        if self.lone_f:
            if not rest:
                raise UsageError("-f needs a file", hint="for example: substrate -f build.sh")
            kept = [word for at, word in enumerate(kept) if at not in self.lone_f]
            return self.request(FILE, shell, (name, *self.with_errexit(kept), *rest), None)
        if rest and "s" not in letters:
            raise _no_verb(rest, words)
        if terminal and "s" not in letters:
            if "i" not in letters:
                kept.insert(self.long_end, b"-i")
            return self.request(INTERACTIVE, shell, (name, *kept), None)
        if not stdin_open:
            raise UsageError(
                "there is no command, and standard input is closed",
                hint="for example: substrate -c 'make test'",
            )
        return self.request(STDIN, shell, (name, *self.with_errexit(kept), *rest), None)

    def request(
        self, kind: str, file: bytes, argv: tuple[bytes, ...], text: bytes | None
    ) -> RunRequest:
        world, fresh = self.given_world(), "--fresh" in self.switches
        if fresh and world is not None:
            raise UsageError(
                "--fresh starts a new world, --world continues one", hint="leave one of them out"
            )
        if not fresh and world is None:
            fresh = self.switch("--fresh")
            world = None if fresh else self.environ.get(b"SUBSTRATE_SESSION") or None
        status = self.value("--json-status")
        return RunRequest(
            kind=kind,
            file=file,
            argv=argv,
            cmd_text=text,
            flags=tuple(self.flags),
            config=self.values.get("--config"),
            fresh=fresh,
            world=None if world is None else os.fsdecode(world),
            ci=self.switch("--ci"),
            json=self.switch("--json"),
            json_status=int(status) if status is not None and status.isdigit() else status,
            quiet=self.switch("--quiet"),
        )

    # --- options

    def shell_options(self, words: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """(the shell's options, what follows them)."""
        kept: list[bytes] = []
        at, long_ones = 0, True
        while at < len(words):
            word = words[at]
            if word[:1] not in (b"-", b"+"):
                break
            if word in (b"-", b"--"):
                kept.append(word)
                at += 1
                break
            if word.startswith(b"--"):
                _look_for_help(word, "")
                after = self.ours(words, at)
                if after is not None:
                    at = after
                    continue
            if word[:1] == b"-":
                length = _bash_long(words, at)
                if length and (long_ones or word.startswith(b"--")):
                    if not long_ones:
                        raise UsageError(
                            f"{os.fsdecode(word)} comes too late",
                            hint="the shell takes its long options before its short ones",
                        )
                    kept += words[at : at + length]
                    self.long_end = len(kept)
                    at += length
                    continue
                if word.startswith(b"--"):
                    raise _unknown(word, BASH_LONG)
            long_ones = False
            if word == b"-f":
                self.lone_f.add(len(kept))
            length = self.cluster(words, at)
            kept += words[at : at + length]
            at += length
        return kept, words[at:]

    def cluster(self, words: Sequence[bytes], at: int) -> int:
        """How many words a cluster of short options takes."""
        letters = os.fsdecode(words[at][1:])
        bad = [letter for letter in letters if letter not in _LETTERS]
        if bad and os.path.basename(self.shell_path()) in _BASH_NAMES:
            raise UsageError(
                f"unknown option -{bad[0]} in {os.fsdecode(words[at])}",
                hint=f"the shell has no option of this letter; {_HELP}",
            )
        self.letters.update(letters)
        return 1 + min(letters.count("o") + letters.count("O"), len(words) - at - 1)

    def ours(self, words: Sequence[bytes], at: int) -> int | None:
        """Takes one of our options; where the next word is, or None when it is not ours."""
        name, sign, attached = os.fsdecode(words[at]).partition("=")
        option = BY_NAME.get(name)
        if option is None:
            return None
        if not option.metavar:
            if sign and not option.attached:
                raise UsageError(f"{name} takes no value, got {attached!r}", hint=_HELP)
            if option.key:
                assert option.sets is not None
                text = attached if sign else option.sets
                self.flags.append(FlagUse(name=name, key=option.key, text=text))
            else:
                self.switches.add(name)
            return at + 1
        if sign:
            text, after = attached, at + 1
        elif at + 1 < len(words):
            text, after = os.fsdecode(words[at + 1]), at + 2
        else:
            raise UsageError(f"{name} needs a value: {name} {option.metavar}", hint=_HELP)
        if option.key or name == "--limit":
            self.flags.append(_flag_use(name, option.key, text))
        elif not text:
            raise UsageError(f"{name} got an empty value, expected {option.metavar}", hint=_HELP)
        else:
            self.values[name] = os.fsencode(text)
        return after

    # --- what they come to

    def switch(self, name: str) -> bool:
        """Given as a flag, or switched on by its variable."""
        if name in self.switches:
            return True
        text = self.environ.get(BY_NAME[name].variable.encode(), b"").lower()
        if text in (b"", b"0", b"false", b"no", b"off"):
            return False
        if text in (b"1", b"true", b"yes", b"on"):
            return True
        raise ConfigError(
            f"the variable {BY_NAME[name].variable} is {os.fsdecode(text)!r}, expected true or false",
            hint=f"correct it, or `unset {BY_NAME[name].variable}`",
        )

    def value(self, name: str) -> bytes | None:
        return self.values.get(name) or self.environ.get(BY_NAME[name].variable.encode()) or None

    def given_world(self) -> bytes | None:
        session, world = self.values.get("--session"), self.values.get("--world")
        if session and world and session != world:
            raise UsageError(
                "--session and --world name the same thing, and were given two",
                hint="a session owns one world: give one of them",
            )
        return session or world

    def shell_path(self) -> bytes:
        """What --shell names; empty where the settings decide."""
        for flag in reversed(self.flags):
            if flag.key == "shell":
                return os.fsencode(flag.text)
        return b""

    def with_errexit(self, kept: list[bytes]) -> list[bytes]:
        """The shell's options, and -e under --ci, which stands behind its long ones."""
        if self.switch("--ci"):
            kept.insert(self.long_end, b"-e")
        return kept


def with_shell(request: RunRequest, shell: bytes) -> RunRequest:
    """The request with the shell that the settings chose. Its argv[0] is its name."""
    if request.kind == RUN:
        return request
    from substrate.values import replace

    return replace(request, file=shell, argv=(os.path.basename(shell), *request.argv[1:]))


def _flag_use(name: str, key: str, text: str) -> FlagUse:
    if name == "--env" and "=" in text:
        return FlagUse(name=name, key="env.set", text=text)
    if name == "--limit":
        limit, sign, text = text.partition("=")
        key = f"limits.{limit}"
        if not sign or key not in BY_KEY:
            known = ", ".join(k.partition(".")[2] for k in BY_KEY if k.startswith("limits."))
            raise UsageError(
                f"--limit got {limit!r}, expected NAME=VALUE with one of {known}",
                hint="for example: --limit memory=2g",
            )
    return FlagUse(name=name, key=key, text=text)


def _bash_long(words: Sequence[bytes], at: int) -> int:
    """How many words a long option of bash takes here; 0 when it is none."""
    name = os.fsdecode(words[at][1:])
    takes = BASH_LONG.get(name.removeprefix("-"))
    if takes is None:
        return 0
    if takes and at + 1 == len(words):
        raise UsageError(f"--{name.lstrip('-')} needs a value", hint=_HELP)
    return 2 if takes else 1


def _no_verb(rest: Sequence[bytes], words: Sequence[bytes]) -> UsageError:
    word = os.fsdecode(rest[0])
    if word in VERBS:
        before = " ".join(os.fsdecode(each) for each in words[: len(words) - len(rest)])
        return UsageError(
            f"{word} comes before its options, got {before!r} first",
            hint=f"`substrate {word} --help` lists them",
        )
    from substrate.suggestion import nearest

    found = nearest(word, VERBS)
    means = f"did you mean `substrate {found}`? " if found else ""
    return UsageError(
        f"{word!r} is no command of substrate",
        hint=f"{means}A command text comes behind -c, a program behind `run --`, a script behind "
        f"-f: substrate run -- {_quoted(rest)}",
    )


def _unknown(word: bytes, also: object) -> UsageError:
    from substrate.suggestion import did_you_mean

    name = os.fsdecode(word).partition("=")[0]
    known = [*BY_NAME, "--help", "--version"]
    if also:
        known += [f"--{long}" for long in BASH_LONG]
    return UsageError(f"unknown option {name}", hint=did_you_mean(name, known, _HELP))


def _quoted(words: Sequence[bytes]) -> str:
    import shlex

    return shlex.join([os.fsdecode(word) for word in words[:4]])
