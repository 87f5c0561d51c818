"""`always` and `never`: a rule at the end of the user's own policy file.

One `[[command]]` for exactly the words that had to be asked, or for the pattern that somebody typed;
none that would not count.
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
from substrate.home_path import config_home
from substrate.policy.globs import compile_word, escape, meets_row
from substrate.policy.rules import (
    ALLOW,
    ASK,
    BUILTIN,
    DENY,
    SYSTEM,
    USER,
    CommandRule,
    Layer,
    Subject,
)
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from substrate.policy.rules import Policy
    from substrate.session.approvals_values import Asked

_LARGEST: Final = 1 << 20
_UNFINISHED: Final = b".substrate-new"


@value
class Rule:
    """What is to be written. `match`: patterns of words."""

    match: tuple[bytes, ...]
    action: str
    said: str = ""


def asking_lines(policy: Policy, asked: Asked) -> tuple[tuple[bytes, ...], ...]:
    """What of a command has to be asked: itself, or what its wrappers and its text run."""
    from substrate.policy.decide import compile_policy

    compiled = compile_policy(policy)
    lines = [
        line
        for line in dict.fromkeys(asked.verdict.read_as)
        if line
        and compiled.decide(Subject(argv=line, cwd=asked.held.cwd), whole=False).action == ASK
    ]
    return tuple(lines) or (asked.held.argv,)


def exact_rules(policy: Policy, asked: Asked, action: str, said: str) -> tuple[Rule, ...]:
    """For the very words that had to be asked, and no others. Raises ConfigError where no rule of the
    user's would change what is said of the command, or where TOML cannot hold them."""
    rules = tuple(
        Rule(match=tuple(map(escape, line)), action=action, said=said)
        for line in asking_lines(policy, asked)
    )
    return _counting(policy, asked, rules)


def typed_rules(
    policy: Policy, asked: Asked, text: str, action: str, said: str
) -> tuple[Rule, ...]:
    """For the patterns that somebody typed, as words of a shell; with them the command that waits must
    come out so, or they would be no answer. Raises ConfigError."""
    import shlex

    try:
        words = tuple(word.encode() for word in shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be split: {error}", hint="close the quote") from None
    if not words or not words[0].strip(b"*"):
        raise ConfigError("a rule begins with a program", hint="such as: git push origin *")
    patterns = [None if word == b"**" else compile_word(word) for word in words]
    lines = (asked.held.argv, *asking_lines(policy, asked))
    if not any(meets_row(patterns, line) for line in lines):
        raise ConfigError(
            "this rule does not meet the command that waits",
            hint="* stands for one word or a part of it, ** for any rest",
        )
    return _counting(policy, asked, (Rule(match=words, action=action, said=said),))


def _counting(policy: Policy, asked: Asked, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, if the command comes out as they say where they are the user's: within a layer the
    stricter rule wins, and so do a later layer's and a locked one."""
    from substrate.policy.decide import compile_policy

    for rule in rules:
        render_rule(rule)
    held = asked.held
    subject = Subject(
        argv=held.argv, program=held.program, interpreters=held.interpreters, cwd=held.cwd
    )
    digests = dict(zip((held.program, *held.interpreters), held.digests, strict=False))
    verdict = compile_policy(_with_rules(policy, rules)).decide(subject, digests.get)
    wanted = rules[0].action
    if (verdict.action == DENY) != (wanted == DENY) or (verdict.action == ASK and wanted == ALLOW):
        which = f"{verdict.rule} ({verdict.place})" if verdict.rule else "the default action"
        raise ConfigError(
            f"no rule of your own counts here: {which} says {verdict.action}",
            hint="change that rule, or answer for the session",
        )
    return rules


def _with_rules(policy: Policy, rules: tuple[Rule, ...]) -> Policy:
    added = tuple(
        CommandRule(name="user command[new]", place="new", action=rule.action, match=rule.match)
        for rule in rules
    )
    layers = list(policy.layers)
    for at, layer in enumerate(layers):
        if layer.kind == USER:
            layers[at] = replace(layer, commands=(*layer.commands, *added))
            return replace(policy, layers=tuple(layers))
    at = sum(layer.kind in (BUILTIN, SYSTEM) for layer in layers)
    layers.insert(at, Layer(kind=USER, name=USER, digest="", commands=added))
    return replace(policy, layers=tuple(layers))


def user_policy_path(environ: Mapping[bytes, bytes]) -> bytes:
    """Where the user's policy is."""
    return config_home(environ) + b"/substrate/policy.toml"


def render_rule(rule: Rule) -> str:
    """Its TOML. Raises ConfigError."""
    lines = ["[[command]]"]
    if rule.said:
        lines[0] += f"  # {_comment(rule.said)}"
    lines.append(f"match = [{', '.join(map(_quoted, rule.match))}]")
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
