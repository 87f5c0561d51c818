"""The text of one policy file to a `Layer`.

Not where files lie (places.py) nor what all of them come to (merge.py). Never on the hot path once a
policy was read (cache.py). Invariants: whatever is wrong is a ConfigError that names file, line, key, what
was expected and what is there; an unknown key is one, too, but a warning in a project's file, which a
newer version may have been written for; a file costs no more than its bounded size allows, whoever wrote
it. Spec: policy.md §1.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass, field
from typing import Any, NoReturn

from substrate.errors import ConfigError
from substrate.policy import parse_values as values
from substrate.policy.parse_values import Wrong
from substrate.policy.rules import (
    ACTIONS,
    PROJECT,
    ApprovalRules,
    CommandRule,
    FsRules,
    Layer,
    LimitRules,
    NetRules,
    Test,
)
from substrate.suggestion import did_you_mean
from substrate.toml_places import TomlPlaces

MAX_RULES = 10_000
MAX_PROJECT_RULES = 1_000
_MAX_WARNINGS = 20
#: a key of many parts takes tomllib quadratic time, and cannot be longer than a line; a rule that was written for
#: an answer has a command line of its user's in one
_MAX_LINE = 16_384
_MAX_PROJECT_LINE = 2048

_TOP = (
    *("id", "extends", "default_action", "require", "final"),
    *("command", "net", "fs", "limits", "shell", "approval"),
)
_LIMITS = ("runtime", "memory", "pids", "disk", "egress", "execs")
_COMMAND = ("match", "program", "sha256", "action", "reason", "final", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A layer, and what was left out of it."""

    layer: Layer
    warnings: tuple[str, ...]


def parse_policy(
    content: bytes, *, kind: str, name: str, label: str, shown: str, trusted: bool | None = None
) -> Parsed:
    """`name`: of the layer; `label`: what its rules are called by; `shown`: how places name the file.
    Raises ConfigError."""
    reading = _Reading(
        text=_decoded(content, kind, shown), shown=shown, lenient=kind == PROJECT, label=label
    )
    document = reading.document()
    reading.known((), document, _TOP)
    reading.final = reading.get(document, ("final",), values.switch, False)
    most = MAX_PROJECT_RULES if kind == PROJECT else MAX_RULES
    layer = Layer(
        kind=kind,
        name=name,
        digest=hashlib.sha256(content).hexdigest(),
        id=reading.get(document, ("id",), values.line, ""),
        extends=reading.get(document, ("extends",), values.profile, None),
        default_action=reading.get(document, ("default_action",), values.default_action, None),
        commands=reading.commands(document, most),
        net=reading.net(document),
        fs=reading.fs(document),
        limits=reading.limits(document),
        allow_operators=reading.shell(document),
        approval=reading.approval(document),
        require=reading.get(document, ("require",), values.required, ()),
        trusted=trusted,
        final=reading.final,
    )
    return Parsed(layer=layer, warnings=reading.told())


def _decoded(content: bytes, kind: str, shown: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown} is not UTF-8 (byte {error.start})", hint="save it as UTF-8"
        ) from None
    if text.startswith("\ufeff"):
        raise ConfigError(
            f"{shown} begins with a byte order mark (U+FEFF, which editors do not show): TOML has none",
            hint="save it as UTF-8 without BOM: `sed -i '1s/^\\xef\\xbb\\xbf//' FILE`",
        )
    most, whose = (
        (_MAX_PROJECT_LINE, "a project's file") if kind == PROJECT else (_MAX_LINE, "a policy")
    )
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > most:
            raise ConfigError(
                f"{shown}, line {number}: a line of {len(line)} characters, expected at most {most} in {whose}",
                hint="break it: arrays may go over several lines",
            )
    return text


@dataclass(slots=True, kw_only=True)
class _Reading:
    """One file while it is read."""

    text: str
    shown: str
    label: str
    lenient: bool
    #: of the whole file: then each of its rules is
    final: bool = False
    warnings: list[str] = field(default_factory=list)
    left_out: int = 0
    _places: TomlPlaces | None = None

    def document(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f"{self.shown} is not TOML: {error}",
                hint="look at the line that it names: a text needs its quotes, a list its brackets",
            ) from None
        except (ValueError, RecursionError):  # a number of too many digits; arrays in arrays
            raise ConfigError(
                f"{self.shown} has a number that is too long, or is nested too deeply",
                hint="write a smaller number, or fewer brackets in brackets",
            ) from None

    # --- messages

    def place(self, *key: str | int) -> str:
        if self._places is None:
            self._places = TomlPlaces(self.text)
        line = self._places.line(*key)
        return f"{self.shown}, line {line}" if line else self.shown

    def wrong(self, key: tuple[str | int, ...], wrong: Wrong) -> NoReturn:
        raise ConfigError(
            f"{self.place(*key)}: {key_text(key)} is {wrong.got}, expected {wrong.expected}",
            hint=wrong.hint
            or "write it as expected; `substrate policy check` then reads the file again",
        ) from None

    def known(
        self, at: tuple[str | int, ...], table: dict[str, Any], keys: tuple[str, ...]
    ) -> None:
        """Looks for keys that there are not."""
        for name in table:
            if name in keys:
                continue
            if self.lenient and len(self.warnings) >= _MAX_WARNINGS:
                self.left_out += 1
                continue
            shown = name if len(name) <= 60 else name[:59] + "…"
            what = f"{self.place(*at, name)}: there is no key {key_text((*at, shown))!r}"
            where = key_text(at) or "a policy"
            hint = did_you_mean(name[:60], keys, f"{where} has {', '.join(keys)}")
            if not self.lenient:
                raise ConfigError(what, hint=hint)
            self.warnings.append(f"{what}; it is left out. {hint}")

    def told(self) -> tuple[str, ...]:
        if self.left_out:
            self.warnings.append(f"{self.shown}: and {self.left_out} more keys are left out")
        return tuple(self.warnings)

    # --- parts

    def get(
        self, table: dict[str, Any], key: tuple[str | int, ...], read: Any, default: Any
    ) -> Any:
        """What `read` makes of a key's value; `default` where there is none."""
        name = key[-1]
        if name not in table:
            return default
        try:
            return read(table[name])
        except Wrong as wrong:
            self.wrong(key, wrong)

    def table(self, document: dict[str, Any], name: str, keys: tuple[str, ...]) -> dict[str, Any]:
        inside = document.get(name, {})
        if not isinstance(inside, dict):
            self.wrong((name,), Wrong(inside, f"a table: [{name}]"))
        self.known((name,), inside, keys)
        return inside

    def commands(self, document: dict[str, Any], most: int) -> tuple[CommandRule, ...]:
        listed = document.get("command", [])
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            self.wrong(("command",), Wrong(listed, "tables: [[command]] in front of each"))
        if len(listed) > most:
            raise ConfigError(
                f"{self.shown} has {len(listed)} rules, expected at most {most}", hint="shorten it"
            )
        return tuple(self.command(item, number) for number, item in enumerate(listed))

    def command(self, item: dict[str, Any], number: int) -> CommandRule:
        at = ("command", number)
        self.known(at, item, _COMMAND)
        if "action" not in item:
            self.missing(at, f"an action: {', '.join(ACTIONS)}")
        if not {"match", "program", "sha256"} & item.keys():
            self.missing(at, 'what it is about: match = ["git", "push", "**"], program or sha256')
        return CommandRule(
            name=f"{self.label} command[{number + 1}]",
            place=self.place(*at),
            action=self.get(item, (*at, "action"), values.action, None),
            match=self.get(item, (*at, "match"), values.match, ()),
            program=self.get(item, (*at, "program"), values.program, None),
            sha256=self.get(item, (*at, "sha256"), values.sha256, None),
            reason=self.get(item, (*at, "reason"), values.line, ""),
            final=self.final or self.get(item, (*at, "final"), values.switch, False),
            test=self.test(item, at),
        )

    def missing(self, at: tuple[str | int, ...], expected: str) -> NoReturn:
        raise ConfigError(
            f"{self.place(*at)}: {key_text(at)} does not say what it needs to: expected {expected}",
            hint="add it",
        )

    def test(self, item: dict[str, Any], at: tuple[str | int, ...]) -> Test:
        inside = item.get("test", {})
        if not isinstance(inside, dict):
            self.wrong((*at, "test"), Wrong(inside, "a table of match and not_match"))
        self.known((*at, "test"), inside, ("match", "not_match"))
        return Test(
            match=self.get(inside, (*at, "test", "match"), values.test_lines, ()),
            not_match=self.get(inside, (*at, "test", "not_match"), values.test_lines, ()),
        )

    def net(self, document: dict[str, Any]) -> NetRules:
        inside = self.table(document, "net", ("allow", "deny"))
        return NetRules(
            allow=self.get(inside, ("net", "allow"), values.net_allow, ()),
            deny=self.get(inside, ("net", "deny"), values.net_deny, ()),
        )

    def fs(self, document: dict[str, Any]) -> FsRules:
        inside = self.table(document, "fs", ("write", "read_deny"))
        return FsRules(
            write=self.get(inside, ("fs", "write"), values.path_patterns, None),
            read_deny=self.get(inside, ("fs", "read_deny"), values.path_patterns, ()),
        )

    def limits(self, document: dict[str, Any]) -> LimitRules:
        inside = self.table(document, "limits", _LIMITS)
        return LimitRules(
            runtime_s=self.get(inside, ("limits", "runtime"), values.seconds, None),
            memory_bytes=self.get(inside, ("limits", "memory"), values.size, None),
            pids=self.get(inside, ("limits", "pids"), values.count, None),
            disk_bytes=self.get(inside, ("limits", "disk"), values.size, None),
            egress_bytes=self.get(inside, ("limits", "egress"), values.size, None),
            execs=self.get(inside, ("limits", "execs"), values.count, None),
        )

    def shell(self, document: dict[str, Any]) -> bool | None:
        inside = self.table(document, "shell", ("allow_operators",))
        found: bool | None = self.get(inside, ("shell", "allow_operators"), values.switch, None)
        return found

    def approval(self, document: dict[str, Any]) -> ApprovalRules:
        inside = self.table(document, "approval", ("timeout", "without_terminal", "webhook"))
        return ApprovalRules(
            timeout_s=self.get(inside, ("approval", "timeout"), values.seconds, None),
            without_terminal=self.get(
                inside, ("approval", "without_terminal"), values.without_terminal, None
            ),
            webhook=self.get(inside, ("approval", "webhook"), values.webhook, None),
        )


def key_text(key: tuple[str | int, ...]) -> str:
    """As it is said: `command[2].action`, counted from 1."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += ("." if text else "") + part
    return text


def shown_path(path: bytes, user_home: bytes) -> str:
    """A path for people, with ~."""
    if user_home not in (b"", b"/") and path.startswith(user_home.rstrip(b"/") + b"/"):
        path = b"~" + path[len(user_home.rstrip(b"/")) :]
    return os.fsdecode(path)
