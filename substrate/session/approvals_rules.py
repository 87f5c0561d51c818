"""`always` and `never`: a rule at the end of the user's own policy file.

One `[[command]]` for exactly these words and this program, or for the pattern that somebody typed.
What stands in the file stays as it is, to the byte; the new text takes its place by rename. Invariants:
a file that somebody else could have written, that is no TOML, or that would be none with the rule, is
left alone and is an error; nobody's change between our look and our rename is lost. Spec: policy.md
§1, §3.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tomllib

from substrate.errors import ConfigError
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from substrate.policy.rules import Policy, Verdict
    from substrate.session.approvals_values import Held

_LARGEST: Final = 1 << 20
_UNFINISHED: Final = b".substrate-new"


@value
class Rule:
    """What is to be written. `match`: patterns of words; `program`: b"" for any."""

    match: tuple[bytes, ...]
    action: str
    program: bytes = b""
    said: str = ""


def exact_rule(held: Held, action: str, said: str) -> Rule:
    """For these very words. Raises ConfigError for words that TOML cannot hold."""
    rule = Rule(
        match=tuple(map(_escaped, held.argv)), action=action, program=held.program, said=said
    )
    render_rule(rule)
    return rule


def typed_rule(text: str, held: Held, action: str, said: str) -> Rule:
    """For the patterns that somebody typed, as words of a shell; they must meet what is held, or the
    answer would not be one. Raises ConfigError."""
    import shlex

    try:
        words = tuple(word.encode() for word in shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be split: {error}", hint="close the quote") from None
    if not words or words[0] in (b"**", b"*"):
        raise ConfigError("a rule begins with a program", hint="such as: git push origin *")
    if not meets(words, held.argv):
        raise ConfigError(
            "this rule does not meet the command that waits",
            hint="* stands for one word or a part of it, ** for any rest",
        )
    rule = Rule(match=words, action=action, said=said)
    render_rule(rule)
    return rule


def meets(patterns: Sequence[bytes], words: Sequence[bytes]) -> bool:
    """As a rule of the policy is met (policy.md §1)."""
    if not patterns:
        return not words
    if patterns[0] == b"**":
        return any(meets(patterns[1:], words[at:]) for at in range(len(words) + 1))
    return bool(words) and _word_meets(patterns[0], words[0]) and meets(patterns[1:], words[1:])


def _word_meets(pattern: bytes, word: bytes) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(word.decode("latin-1"), pattern.decode("latin-1"))


def _escaped(word: bytes) -> bytes:
    """The pattern that only this word meets."""
    return word.replace(b"[", b"[[]").replace(b"*", b"[*]").replace(b"?", b"[?]")


def why_not(policy: Policy, verdict: Verdict, action: str) -> str:
    """Why such a rule in the user's file would not count; empty where it does.

    Within a layer the stricter rule wins, and so does a later layer's and one that is locked."""
    if action == "deny" or verdict.rule is None:
        return ""
    for layer in policy.layers:
        for rule in layer.commands:
            if rule.name == verdict.rule:
                if layer.kind == "user":
                    return f"the rule that asks is your own ({rule.place}): change it there"
                if layer.kind in ("project", "given"):
                    return f"the rule that asks is of a later layer ({rule.place})"
                return f"the rule that asks is locked ({rule.place})" if rule.final else ""
    return ""


def user_policy_path(environ: Mapping[bytes, bytes]) -> bytes:
    """Where the user's policy is (XDG Base Directory Specification)."""
    base = environ.get(b"XDG_CONFIG_HOME", b"")
    if not base.startswith(b"/"):
        home = environ.get(b"HOME", b"")
        if not home.startswith(b"/"):
            import pwd

            home = os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir)
        base = home + b"/.config"
    return base + b"/substrate/policy.toml"


def render_rule(rule: Rule) -> str:
    """Its TOML. Raises ConfigError."""
    lines = ["[[command]]"]
    if rule.said:
        lines[0] += f"  # {_comment(rule.said)}"
    lines.append(f"match = [{', '.join(map(_quoted, rule.match))}]")
    if rule.program:
        lines.append(f"program = {_quoted(rule.program)}")
    lines.append(f'action = "{rule.action}"')
    lines.append('reason = "answered at a question"')
    return "\n".join(lines) + "\n"


def _quoted(word: bytes) -> str:
    try:
        text = word.decode()
    except UnicodeDecodeError:
        raise ConfigError(
            f"{word!r:.80} is not UTF-8: no policy file can hold it",
            hint="answer for this session instead",
        ) from None
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\u{ord(char):04X}" if ord(char) < 0x10000 else f"\\U{ord(char):08X}")
    return f'"{"".join(out)}"'


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def add_rule(path: bytes, rule: Rule) -> bool:
    """Writes it at the end of the file, which is made where there is none. False: it stands there
    already. Raises ConfigError."""
    text = render_rule(rule)
    try:
        return _add(path, text)
    except OSError as error:
        raise ConfigError(
            f"{_shown(path)} cannot be written: {error.strerror}",
            hint=f"write the rule yourself: {' '.join(text.split())}",
        ) from error


def _add(path: bytes, text: str) -> bool:
    # a link of somebody who keeps such files elsewhere stays one
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_others(os.fstat(folder), directory)
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the loop must not wait
        name = os.path.basename(path)
        before, mode = _read(folder, name, path)
        parsed = _parse(before, path)
        wanted = tomllib.loads(text)["command"][0]
        for found in parsed.get("command", ()) if isinstance(parsed, dict) else ():
            if isinstance(found, dict) and _same_rule(found, wanted):
                return False
        gap = b"" if not before else b"\n" if before.endswith(b"\n") else b"\n\n"
        after = before + gap + text.encode()
        if len(after) > _LARGEST:
            raise ConfigError(f"{_shown(path)} would be too large", hint="shorten it")
        _parse(after, path, text)
        _replace(folder, name, before, after, mode, path)
        return True
    finally:
        os.close(folder)


def _same_rule(found: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    return all(
        found.get(key) == wanted.get(key) for key in ("match", "program", "sha256", "action")
    )


def _refuse_others(status: os.stat_result, path: bytes) -> None:
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{_shown(path)} belongs to uid {status.st_uid}, expected {os.geteuid()}",
            hint="a policy is written for its owner only",
        )
    if status.st_mode & 0o022:
        raise ConfigError(
            f"{_shown(path)} has mode {stat.S_IMODE(status.st_mode):04o}: others can write it",
            hint=f"chmod go-w {_shown(path)}, after a look at what is in it",
        )


def _read(folder: int, name: bytes, path: bytes) -> tuple[bytes, int]:
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    except FileNotFoundError:
        return b"", 0o600
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ConfigError(f"{_shown(path)} is not a regular file", hint="move it away")
    with open(fd, "rb") as file:
        _refuse_others(status, path)
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ConfigError(f"{_shown(path)} is larger than {_LARGEST} bytes", hint="shorten it")
    return content, stat.S_IMODE(status.st_mode)


def _parse(content: bytes, path: bytes, added: str = "") -> object:
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        if added:
            raise ConfigError(
                f"{_shown(path)} has no room for a [[command]] at its end: {error}",
                hint=f"write the rule yourself: {' '.join(added.split())}",
            ) from None
        raise ConfigError(
            f"{_shown(path)} is not TOML: {error}", hint="`substrate policy check` says where"
        ) from None


def _replace(folder: int, name: bytes, before: bytes, after: bytes, mode: int, path: bytes) -> None:
    unfinished = name + _UNFINISHED
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(unfinished, flags, 0o600, dir_fd=folder)
    try:
        try:
            left = memoryview(after)
            while left:
                left = left[os.write(fd, left) :]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        if _read(folder, name, path)[0] != before:  # an editor that takes no lock
            raise OSError(errno.EAGAIN, "it was changed at this moment")
        os.rename(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(unfinished, dir_fd=folder)
        raise
    os.fsync(folder)


def _shown(path: bytes) -> str:
    return os.fsdecode(path)
