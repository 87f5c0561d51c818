"""Programs that run another command: which one, as far as their own words say it.

For each wrapper a row: how its words lead to the command. What a wrapper really runs it execs, and
that meets the gate again; here it is for text that is judged before anything runs, and so that a rule
is met where it can be explained. Not unwrapped: what runs on another machine or below another kernel's
root (ssh, docker run). Invariant: never raises; one step inwards a call. Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy.argv import read
from substrate.policy.names import LOADERS, MULTI_CALL, last_name, names_of
from substrate.policy.programs import find_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

    from substrate.policy.argv import Reading

    Words: TypeAlias = tuple[bytes, ...]
    #: how an argv was read, by the table
    Known: TypeAlias = dict[int, Reading]
    Find: TypeAlias = Callable[[Words, Known], list["Inner"]]


class Inner:
    """What is run: `argv`, or `text` for a shell. `in_process`: by the same process, without an exec that a
    gate could see. `is_other_name`: it is the same program by another name, so that what no rule is met by
    was judged already. `is_script`: that name is of the file that an interpreter reads. `has_more`: operands
    follow that are not known."""

    __slots__ = ("argv", "has_more", "in_process", "is_other_name", "is_script", "text")

    def __init__(
        self,
        argv: Words = (),
        text: bytes | None = None,
        *,
        in_process: bool = False,
        is_other_name: bool = False,
        is_script: bool = False,
        has_more: bool = False,
    ) -> None:
        self.argv = argv
        self.text = text
        self.in_process = in_process
        self.is_other_name = is_other_name
        self.is_script = is_script
        self.has_more = has_more


def unwrap(name: bytes, argv: Words, known: Known) -> list[Inner]:
    """What a program of this last name runs; none where it runs nothing that is told. `known`: how
    this argv was read already, and what is read here."""
    find = _FIND.get(name)
    if find is None:
        if name[:4] == b"git-":
            return _dashed(name, argv)
        for other in names_of(name)[1:]:
            find = _FIND.get(other)
            if find is not None:
                break
        else:
            return []
    return [inner for inner in find(argv, known) if inner.argv or inner.text is not None]


# --- by options and a number of words before the command


def _read(name: bytes, argv: Words, known: Known) -> Reading:
    table = find_table(name)
    assert table is not None, name
    reading = known.get(id(table))
    if reading is None:
        reading = known[id(table)] = read(argv, table)
    return reading


def _behind(name: bytes, skipped: int = 0, *, assignments: bool = False) -> Find:
    """The command follows the options and so many operands."""

    def find(argv: Words, known: Known) -> list[Inner]:
        at = _read(name, argv, known).first_operand + skipped
        if assignments:
            while at < len(argv) and b"=" in argv[at]:
                at += 1
        return [Inner(argv[at:])]

    return find


def _env(argv: Words, known: Known) -> list[Inner]:
    for _ in range(_MOST_SPLITS):
        reading = _read(b"env", argv, known)
        if b"-S" not in reading.flags:
            break
        argv, known = _split_one(argv), {}
    else:
        return [Inner(argv)]  # more of them: one step inwards
    at = reading.first_operand
    while at < len(argv) and (argv[at] == b"-" or b"=" in argv[at]):
        at += 1
    return [Inner(argv[at:])]


#: texts for -S in texts for -S
_MOST_SPLITS: Final = 4


def _split_one(argv: Words) -> Words:
    """argv with the words of its first `-S` in that one's place, as env puts them there."""
    for at in range(1, len(argv)):
        word = argv[at]
        if word[:2] == b"--":
            name, equals, value = word.partition(b"=")
            if len(name) < 4 or not b"--split-string".startswith(name):
                continue
            before: Words = ()
        elif word[:1] == b"-" and b"S" in word:
            front, _, value = word.partition(b"S")
            equals = value
            before = (front,) if len(front) > 1 else ()
        else:
            continue
        rest = argv[at + 1 :]
        if not equals:
            value, rest = (rest[0] if rest else b""), rest[1:]
        return (*argv[:at], *before, *split_words(value), *rest)
    return argv


def split_words(text: bytes) -> Words:
    """As `env -S` and git's aliases split: quotes and backslashes, no operators, no expansion."""
    words: list[bytes] = []
    word = bytearray()
    quote = 0
    there = False
    at = 0
    while at < len(text):
        byte = text[at]
        at += 1
        if byte == 92 and quote != 39 and at < len(text):
            following = text[at : at + 1]
            at += 1
            if following == b"_":
                if quote:
                    word += b" "
                elif there:
                    words.append(bytes(word))
                    word.clear()
                    there = False
                continue
            word += following
            there = True
        elif quote:
            if byte == quote:
                quote = 0
            else:
                word.append(byte)
        elif byte in b"\"'":
            quote = byte
            there = True
        elif byte in b" \t\n\v\f\r":
            if there:
                words.append(bytes(word))
                word.clear()
                there = False
        else:
            word.append(byte)
            there = True
    if there:
        words.append(bytes(word))
    return tuple(words)


def _shell_or_behind(name: bytes, skipped: int = 0) -> Find:
    """`-c TEXT`, or the command follows."""

    def find(argv: Words, known: Known) -> list[Inner]:
        reading = _read(name, argv, known)
        texts = reading.flags.get(b"-c")
        if texts:
            return [Inner(text=text) for text in texts]
        return [Inner(argv[reading.first_operand + skipped :])]

    return find


def _flock(argv: Words, known: Known) -> list[Inner]:
    reading = _read(b"flock", argv, known)
    rest = argv[reading.first_operand + 1 :]
    if rest[:1] in ((b"-c",), (b"--command",)):
        return [Inner(text=text) for text in rest[1:2]]
    texts = reading.flags.get(b"-c")
    return [Inner(text=text) for text in texts] if texts else [Inner(rest)]


def _su(argv: Words, known: Known) -> list[Inner]:
    reading = _read(b"su", argv, known)
    texts = [*reading.flags.get(b"-c", ()), *reading.flags.get(b"--session-command", ())]
    return [Inner(text=text) for text in texts]


def _script(argv: Words, known: Known) -> list[Inner]:
    return [Inner(text=text) for text in _read(b"script", argv, known).flags.get(b"-c", ())]


def _sudo(argv: Words, known: Known) -> list[Inner]:
    reading = _read(b"sudo", argv, known)
    at = reading.first_operand
    while at < len(argv) and b"=" in argv[at] and argv[at][:1] != b"/":
        at += 1
    words = argv[at:]
    if words and (b"-s" in reading.flags or b"-i" in reading.flags):
        return [Inner(text=b" ".join(words))]
    if b"-e" in reading.flags:
        return []
    return [Inner(words)]


def _setarch(argv: Words, known: Known) -> list[Inner]:
    if argv[0].rpartition(b"/")[2] == b"setarch" and argv[1:2] and argv[1] in _MACHINES:
        argv, known = (argv[0], *argv[2:]), {}
    return [Inner(argv[_read(b"setarch", argv, known).first_operand :])]


def _systemd_run(argv: Words, known: Known) -> list[Inner]:
    """The system's manager runs it, where no gate is."""
    return [Inner(argv[_read(b"systemd-run", argv, known).first_operand :], in_process=True)]


_MACHINES: Final = frozenset(
    (
        *(
            b"linux32",
            b"linux64",
            b"i386",
            b"i486",
            b"i586",
            b"i686",
            b"athlon",
            b"x86_64",
            b"amd64",
        ),
        *(b"arm", b"armv7l", b"armv8l", b"aarch64", b"arm64", b"uname26"),
    )
)


# --- shells, and words that make a shell's text


def _shell(argv: Words, known: Known) -> list[Inner]:
    reading = _read(b"bash", argv, known)
    if b"-c" not in reading.flags:
        return [] if b"-s" in reading.flags else _of_file(reading)
    return [Inner(text=text, in_process=True) for text in reading.operands[:1]]


def _joined(name: bytes) -> Find:
    """The words make one text for a shell."""

    def find(argv: Words, known: Known) -> list[Inner]:
        reading = _read(name, argv, known)
        words = argv[reading.first_operand :]
        if name == b"watch" and b"-x" in reading.flags:
            return [Inner(words)]
        return [Inner(text=b" ".join(words))] if words else []

    return find


def _parallel(argv: Words, known: Known) -> list[Inner]:
    words = argv[_read(b"parallel", argv, known).first_operand :]
    for mark in (b":::", b"::::", b":::+", b"::::+"):
        if mark in words:
            words = words[: words.index(mark)]
    return [Inner(text=b" ".join(words), has_more=True)] if words else []


def _xargs(argv: Words, known: Known) -> list[Inner]:
    return [Inner(argv[_read(b"xargs", argv, known).first_operand :], has_more=True)]


def _find(argv: Words, known: Known) -> list[Inner]:
    found = []
    at = 1
    while at < len(argv):
        word = argv[at]
        at += 1
        if word not in (b"-exec", b"-execdir", b"-ok", b"-okdir"):
            continue
        start = at
        while (
            at < len(argv) and argv[at] != b";" and not (argv[at] == b"+" and argv[at - 1] == b"{}")
        ):
            at += 1
        words = argv[start:at]
        more = argv[at : at + 1] == (b"+",)
        found.append(Inner(words[:-1] if more else words, has_more=more))
        at += 1
    return found


def _eval(argv: Words, known: Known) -> list[Inner]:
    return [Inner(text=b" ".join(argv[1:]), in_process=True)] if argv[1:] else []


def _trap(argv: Words, known: Known) -> list[Inner]:
    words = argv[2:] if argv[1:2] == (b"--",) else argv[1:]
    return (
        [Inner(text=words[0], in_process=True)]
        if words and words[0] not in (b"-", b"", b"-p", b"-l")
        else []
    )


# --- other names of the same process


def _applet(argv: Words, known: Known) -> list[Inner]:
    """`busybox rm -rf x`, `coreutils --coreutils-prog=rm -rf x`; a first line has the script's name as well."""
    words = argv[1:]
    for mark, skipped in ((b"--coreutils-prog=", 1), (b"--coreutils-prog-shebang=", 2)):
        if words and words[0].startswith(mark):
            return [Inner((words[0][len(mark) :], *words[skipped:]), in_process=True)]
    return [Inner(words, in_process=True)] if words and words[0][:1] != b"-" else []


def _loader(argv: Words, known: Known) -> list[Inner]:
    """`ld.so PROGRAM …` maps it."""
    reading = _read(b"ld.so", argv, known)
    words = argv[reading.first_operand :]
    return [Inner(words, in_process=True)]


def _of_file(reading: Reading) -> list[Inner]:
    """`node /usr/bin/npm publish`: the script that an interpreter is given, as if it was exec'd."""
    ways = (reading,) if reading.other is None else (reading, reading.other)
    return [Inner(tuple(way.operands), is_other_name=True, is_script=True) for way in ways]


def scripts_in(name: bytes, argv: Words) -> Words:
    """The word that names the file that an interpreter of this last name is given; several where its options can be
    read in more than one way."""
    if READERS.isdisjoint(names_of(name)):
        return ()
    found = [inner.argv[0] for inner in unwrap(name, argv, {}) if inner.is_script]
    return tuple(dict.fromkeys(found))


def script_in(name: bytes, argv: Words) -> bytes:
    """The first of these; b"" where there is none."""
    return next(iter(scripts_in(name, argv)), b"")


def _script_of(name: bytes, *without: bytes) -> Find:
    """`without`: with one of these flags there is no file."""

    def find(argv: Words, known: Known) -> list[Inner]:
        reading = _read(name, argv, known)
        return _of_file(reading) if reading.flags.keys().isdisjoint(without) else []

    return find


#: modules of Python that are programs, too
MODULES: Final = frozenset(
    (
        *(
            b"pip",
            b"pipx",
            b"twine",
            b"uv",
            b"build",
            b"poetry",
            b"pipenv",
            b"pdm",
            b"hatch",
            b"flit",
            b"conda",
        ),
        *(
            b"pytest",
            b"tox",
            b"nox",
            b"coverage",
            b"mypy",
            b"ruff",
            b"black",
            b"venv",
            b"virtualenv",
        ),
        *(
            b"http.server",
            b"jupyter",
            b"IPython",
            b"flask",
            b"uvicorn",
            b"gunicorn",
            b"celery",
            b"awscli",
        ),
        *(
            b"ansible",
            b"keyring",
            b"pre_commit",
            b"alembic",
            b"django",
            b"webbrowser",
            b"smtpd",
            b"ensurepip",
        ),
    )
)


def _python(argv: Words, known: Known) -> list[Inner]:
    """`python -m MODULE …` is known by the module's name."""
    reading = _read(b"python", argv, known)
    modules = reading.flags.get(b"-m")
    if not modules:
        return [] if b"-c" in reading.flags else _of_file(reading)
    module = modules[-1].removesuffix(b".__main__")
    if module not in MODULES:
        return []
    return [Inner((module, *reading.operands), in_process=True, is_other_name=True)]


def _dashed(name: bytes, argv: Words) -> list[Inner]:
    """`git-push …`, as git's own directory has it, and git when it is called that."""
    return [Inner((b"git", name[4:], *argv[1:]), in_process=True, is_other_name=True)]


def _git(argv: Words, known: Known) -> list[Inner]:
    """`git -c alias.x=… x`, and what git runs because its words say so."""
    reading = _read(b"git", argv, known)
    if not reading.operands:
        return []
    command = reading.operands[0]
    rest = argv[reading.first_operand + 1 :]
    found = []
    for setting in reading.flags.get(b"-c", ()):
        key, _, value = setting.partition(b"=")
        key = key.lower()
        if key == b"alias." + command.lower():
            if value[:1] == b"!":
                found.append(Inner(text=value[1:] + b" " + b" ".join(rest)))
            else:
                words = (argv[0], *split_words(value), *rest)
                found.append(Inner(words, in_process=True, is_other_name=True))
        elif key in _GIT_TEXTS and value:
            found.append(Inner(text=value))
    if command == b"submodule" and b"foreach" in rest:
        words = _without_options(rest, rest.index(b"foreach") + 1, b"--")
        found.append(Inner(text=b" ".join(words)))
    elif command == b"bisect" and rest[:1] == (b"run",):
        found.append(Inner(rest[1:]))
    elif command == b"rebase":
        found += [Inner(text=text) for text in reading.flags.get(b"^-x", ())]
    elif command == b"filter-branch":
        for flag, texts in reading.flags.items():
            if flag.endswith(b"-filter"):
                found += [Inner(text=text) for text in texts]
    return found


#: programs of their own names, in git's directory, that are git
_GIT_COMMANDS: Final = frozenset(
    b"git-" + name
    for name in (
        *(
            b"add",
            b"am",
            b"apply",
            b"archive",
            b"branch",
            b"checkout",
            b"cherry-pick",
            b"clean",
            b"clone",
        ),
        *(
            b"commit",
            b"config",
            b"diff",
            b"fetch",
            b"gc",
            b"log",
            b"merge",
            b"mv",
            b"notes",
            b"pull",
            b"push",
        ),
        *(
            b"rebase",
            b"reflog",
            b"remote",
            b"reset",
            b"restore",
            b"revert",
            b"rm",
            b"send-pack",
            b"show",
        ),
        *(
            b"stash",
            b"status",
            b"switch",
            b"symbolic-ref",
            b"tag",
            b"update-index",
            b"update-ref",
            b"worktree",
        ),
    )
)


def _git_command(argv: Words, _: Known) -> list[Inner]:
    """`/usr/lib/git-core/git-push`."""
    name = last_name(argv[0])
    if name not in _GIT_COMMANDS:
        return []
    return [Inner((b"git", name[4:], *argv[1:]), in_process=True, is_other_name=True)]


_GIT_TEXTS: Final = frozenset(
    (
        *(b"core.pager", b"core.editor", b"core.sshcommand", b"core.fsmonitor", b"sequence.editor"),
        *(b"diff.external", b"credential.helper", b"gpg.program", b"uploadpack.packobjectshook"),
    )
)


def _docker_compose(argv: Words, known: Known) -> list[Inner]:
    return [Inner((b"docker", b"compose", *argv[1:]), in_process=True, is_other_name=True)]


# --- runners of packages


def _npm(argv: Words, known: Known) -> list[Inner]:
    """`npm exec -- X`, `npm exec -c TEXT`."""
    reading = _read(b"npm", argv, known)
    if reading.operands[:1] != [b"exec"]:
        return []
    texts = reading.flags.get(b"-c")
    if texts:
        return [Inner(text=text) for text in texts]
    return [Inner(tuple(reading.operands[1:]))]


def _runner(name: bytes, *commands: bytes) -> Find:
    """`NAME run X …`."""

    def find(argv: Words, known: Known) -> list[Inner]:
        words = argv[_read(name, argv, known).first_operand :]
        if words[:1] and words[0] in commands:
            return [Inner(_without_options(words, 1, b"-"))]
        return []

    return find


def _without_options(words: Words, at: int, mark: bytes) -> Words:
    """Those from `at` on, but for what begins with `mark` in front. An argv is as long as a hostile process
    likes: one cut, not one a word."""
    while at < len(words) and words[at].startswith(mark):
        at += 1
    return words[at:]


def _uv(argv: Words, known: Known) -> list[Inner]:
    reading = _read(b"uv", argv, known)
    operands = tuple(reading.operands)
    if operands[:1] == (b"run",):
        if b"-m" in reading.flags:
            return [Inner((b"python", b"-m", *operands[1:]))]
        return [Inner(operands[1:])]
    if operands[:2] == (b"tool", b"run"):
        return [Inner(operands[2:])]
    if operands[:1] == (b"pip",):
        return [Inner(operands, in_process=True, is_other_name=True)]
    return []


SHELLS: Final = frozenset(
    (
        b"bash",
        b"sh",
        b"dash",
        b"zsh",
        b"ash",
        b"ksh",
        b"mksh",
        b"rbash",
        b"yash",
        b"posh",
        b"lksh",
        b"fish",
    )
)

_FIND: Final[dict[bytes, Find]] = {
    **{
        name: _behind(name)
        for name in (
            *(
                b"doas",
                b"nice",
                b"ionice",
                b"nohup",
                b"eatmydata",
                b"fakeroot",
                b"unbuffer",
                b"catchsegv",
            ),
            *(b"dumb-init", b"dbus-run-session", b"ltrace", b"valgrind", b"catatonit", b"setsid"),
            *(b"stdbuf", b"time", b"unshare", b"nsenter", b"strace", b"prlimit", b"numactl"),
            *(
                b"setpriv",
                b"cpulimit",
                b"pkexec",
                b"tini",
                b"xvfb-run",
                b"exec",
                b"command",
                b"uvx",
            ),
        )
    },
    **{
        name: _behind(name, 1)
        for name in (b"timeout", b"taskset", b"chrt", b"chroot", b"gosu", b"su-exec")
    },
    b"builtin": lambda argv, _: [Inner(argv[1:])],
    b"systemd-run": _systemd_run,
    b"sudo": _sudo,
    b"env": _env,
    b"su": _su,
    b"runuser": _shell_or_behind(b"runuser"),
    b"script": _script,
    b"flock": _flock,
    b"setarch": _setarch,
    **dict.fromkeys((b"linux32", b"linux64", b"i386", b"x86_64"), _setarch),
    **dict.fromkeys(SHELLS, _shell),
    b"watch": _joined(b"watch"),
    b"parallel": _parallel,
    b"xargs": _xargs,
    b"find": _find,
    b"eval": _eval,
    b"trap": _trap,
    **dict.fromkeys(MULTI_CALL, _applet),
    **dict.fromkeys(LOADERS, _loader),
    **dict.fromkeys((b"python", b"python2", b"python3", b"pypy", b"pypy3"), _python),
    **dict.fromkeys((b"node", b"nodejs"), _script_of(b"node", b"-e", b"-p", b"--pe")),
    b"perl": _script_of(b"perl", b"-e", b"-E"),
    b"ruby": _script_of(b"ruby", b"-e"),
    b"git": _git,
    **dict.fromkeys(_GIT_COMMANDS, _git_command),
    b"docker-compose": _docker_compose,
    b"npm": _npm,
    b"npx": _shell_or_behind(b"npx"),
    b"bunx": lambda argv, _: [Inner(argv[1:])],
    b"pnpm": _runner(b"pnpm", b"exec", b"dlx", b"x"),
    b"yarn": _runner(b"yarn", b"exec", b"dlx"),
    b"poetry": _runner(b"poetry", b"run"),
    b"pipenv": _runner(b"pipenv", b"run"),
    b"pdm": _runner(b"pdm", b"run"),
    b"hatch": _runner(b"hatch", b"run"),
    b"rye": _runner(b"rye", b"run"),
    b"bundle": _runner(b"bundle", b"exec"),
    b"uv": _uv,
}

#: those whose `-c TEXT` is no file, and all that read one that they are given
OF_TEXT: Final = frozenset((*SHELLS, b"python", b"python2", b"python3", b"pypy", b"pypy3"))
READERS: Final = frozenset((*OF_TEXT, b"node", b"nodejs", b"perl", b"ruby"))

#: what runs others without an exec that a gate sees, to their names; None: any
UNSEEN: Final[dict[bytes, frozenset[bytes] | None]] = {
    **dict.fromkeys((*MULTI_CALL, *LOADERS, b"systemd-run"), None),
    **dict.fromkeys((b"python", b"python2", b"python3", b"pypy", b"pypy3"), MODULES),
    b"docker-compose": frozenset((b"docker",)),
    **dict.fromkeys(_GIT_COMMANDS, frozenset((b"git",))),
    b"uv": frozenset((b"pip",)),
}
