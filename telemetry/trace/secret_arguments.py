"""The rules of the redactor for the arguments of a program (trace.md §6).

Arguments say where a value begins and ends, so nothing has to be guessed from quotes: the
value of a secret flag is the next argument, whole; a value in an argument reaches to its
end. An argument that is itself a line of shell (after `-c`, or with blanks and no secret
name at its start) is read as text.

It uses `secret_rules`, so it imports `re`: only `redact` loads it.
"""

from __future__ import annotations

from .redact import redact_text
from .secret_names import kind_of_name
from .secret_rules import LOOKS_RANDOM, MARK, NO_VALUES, PATH, PROGRAM_FLAGS, WEAK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def redact_arguments(argv: Sequence[str]) -> list[str]:
    """`redact.redact_argv`, when something may be a secret."""
    # What is left after a replacement can read differently: until nothing is found.
    safe = list(argv)
    for _ in range(4):
        before, safe = safe, _once(safe)
        if safe == before:
            break
    return safe


def _once(argv: Sequence[str]) -> list[str]:
    out: list[str] = []
    short_flags: tuple[str, ...] = ()
    expected: str | None = None  # what the last argument said that this one is
    for place, argument in enumerate(argv):
        kind, expected = expected, None
        if kind is not None and _is_value(argument, kind):
            out.append(f"[redacted:{kind}]")
            continue
        short_flags = PROGRAM_FLAGS.get(argument.rpartition("/")[2], short_flags)
        is_script = place > 0 and argv[place - 1] in ("-c", "-lc", "-ic", "-lic", "-e", "--eval")
        safe = redact_text(argument) if is_script else _one(argument, short_flags)
        out.append(safe)
        expected = _announces(argument, short_flags)
    return out


def _is_value(argument: str, kind: str) -> bool:
    if argument[:1] == "-" or argument.lower() in NO_VALUES or MARK.fullmatch(argument):
        return False
    if kind == "userinfo":
        user, _, password = MARK.sub("", argument).partition(":")
        return bool(
            password
            and user != password
            and not (user + password).isdigit()
            and not user.startswith("+")
            and not password.startswith(("/", "./", "~"))
        )
    if kind == "weak":
        return LOOKS_RANDOM.match(argument) is not None and not PATH.match(argument)
    if kind == "cookie":
        return "=" in argument
    if kind == "secret" and argument.startswith(("id=", "type=")):
        return False
    return not (kind in ("credential", "key", "auth") and PATH.match(argument))


def _announces(argument: str, short_flags: tuple[str, ...]) -> str | None:
    """The kind of secret that the next argument is, if this one is a flag that says so."""
    if argument[:1] != "-" or "=" in argument or len(argument) < 2:
        return None
    name = argument.lstrip("-")
    if argument in short_flags:
        return "password"
    if f"{argument}=" in short_flags:
        return "cookie"
    if argument in ("--user", "--proxy-user"):
        return "userinfo"
    if argument[1] != "-" and argument[-1] == "u" and len(argument) <= 10 and name.isalpha():
        return "userinfo"
    if name.lower() in WEAK:
        return "weak"
    if len(name) < 2 or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return None
    return kind_of_name(name)


def _one(argument: str, short_flags: tuple[str, ...]) -> str:
    for flag in short_flags:
        letter = flag.rstrip("+=")
        value = argument[2:]
        if argument.startswith(letter) and value and not MARK.fullmatch(value):
            if flag.endswith("=") and "=" not in value:
                continue
            return f"{letter}[redacted:{'cookie' if flag.endswith('=') else 'password'}]"
    if argument.startswith("-u") and _is_value(argument[2:], "userinfo") and ":" in argument:
        return "-u[redacted:userinfo]"
    header, colon, value = argument.partition(":")
    if colon and value.strip() and header.replace("-", "").replace("_", "").isalnum():
        kind = kind_of_name(header)
        is_header = "-" in header.strip("-") or kind in ("authorization", "cookie")
        if kind is not None and is_header and not MARK.fullmatch(value.strip()):
            blank = " " if value[:1] == " " else ""
            return f"{header}:{blank}[redacted:{kind}]"
    name, sign, value = argument.partition("=")
    if sign and name.lstrip("-").replace("-", "").replace("_", "").replace(".", "").isalnum():
        kind = kind_of_name(name.lstrip("-"))
        if kind is None and name in ("--user", "--proxy-user") and _is_value(value, "userinfo"):
            kind = "userinfo"
        if kind is not None and _is_value("=" + value if value[:1] == "-" else value, kind):
            return f"{name}=[redacted:{kind}]"
    return redact_text(argument, literal=not any(map(str.isspace, argument)))
