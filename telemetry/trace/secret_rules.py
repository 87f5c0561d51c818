"""The rules of the redactor: where in a text a secret stands, and of which kind (trace.md §6).

What it is: `find_secrets`, pure, for any text: command lines, arguments, messages, URLs.
What it is not: it is no proof. What looks like no secret at all (a password alone on a line)
is not found; `trace scan`, blobs that can be erased and SECURITY.md are for that.

How: a few regular expressions find names, flags, and known shapes; where a value ends is
found by hand, because quoting is not regular. Every expression either starts at a literal
and has bounded repeats, or consumes what it has looked at, so that time is linear.

It imports `re`: only `redact` loads it, and only when `may_hold_secret` says so.
"""

from __future__ import annotations

import re
from binascii import a2b_base64

from .secret_names import kind_of_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    #: start, end, kind
    Span = tuple[int, int, str]

MARK = re.compile(r"\[redacted:[a-z_]{1,32}\]")

#: A name, its separator (perhaps behind the closing quote of a JSON key), start of the value.
_ASSIGNED = re.compile(
    r"""(?<![A-Za-z0-9_.\-])(-{0,2}[A-Za-z_][A-Za-z0-9_.\-]{1,127})"""
    r"""(\\?["'])?([ \t]{0,8}(?::=|=>|=|:)[ \t]{0,8})"""
)
#: `--name value`. A flag may be quoted, or stand behind an operator of the shell.
_FLAG = re.compile(
    r"""(?<![^\s"'`(){}\[\]=,;|&<>])--?([A-Za-z][A-Za-z0-9_.\-]{1,127})["']?[ \t]{1,8}"""
)
_URL = re.compile(r"""://[^\s"'<>`]+""")
_PORT = re.compile(r"[0-9]{0,5}(?:[/?#]|$)")
_SCHEME_TOKEN = re.compile(r"(?ai:\b(bearer|basic)[ \t]{1,8})([^\s\"'<>,;]{8,})")
_USER = re.compile(
    r"""(?<![^\s"'`(){}\[\]=,;|&<>])(?:-[A-Za-z]{0,8}u[ \t]{0,8}|--(?:proxy-)?user(?:=|[ \t]{1,8}))"""
    r"""(?=["']?[^\s:"']{1,128}:)"""
)
#: A program, and its own short flags whose value is a secret; `+` where it must be attached.
PROGRAM_FLAGS = {
    **dict.fromkeys(
        (
            *("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlshow", "mysqlcheck"),
            *("mariadb", "mariadb-dump", "mariadb-admin", "mysqlsh", "mysqlslap"),
        ),
        ("-p+",),
    ),
    "sshpass": ("-p",),
    "redis-cli": ("-a",),
    **dict.fromkeys(("ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami"), ("-w",)),
    "curl": ("-b=",),
    **dict.fromkeys(("http", "https", "xh"), ("-a",)),
}
_PROGRAM = re.compile(
    r"(?<![A-Za-z0-9_.\-])("
    + "|".join(sorted(PROGRAM_FLAGS, key=len, reverse=True))
    + r")(?=[ \t])"
)
_SHORT_FLAG = re.compile(r"""(?<=[ \t])(-[A-Za-z])([ \t]{0,8})(?=\S)|[;|&\n]""")

#: Kind and shape of keys that name themselves. Repeats are unbounded only behind a literal
#: that cannot stand inside what is repeated without the match having begun before it.
_SHAPES: tuple[tuple[str, str], ...] = (
    ("aws_key", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    ("github_token", r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}"),
    ("gitlab_token", r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|oas)-[A-Za-z0-9_\-]{16,}"),
    ("slack_token", r"xox[a-z]-[A-Za-z0-9\-]{10,}|xapp-[0-9]-[A-Za-z0-9\-]{10,}"),
    ("api_key", r"(?<![A-Za-z0-9])sk-(?=[A-Za-z_\-]{0,64}[0-9])[A-Za-z0-9_\-]{20,}"),
    ("stripe_key", r"[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{16,}"),
    ("google_key", r"AIza[A-Za-z0-9_\-]{35}|GOCSPX-[A-Za-z0-9_\-]{20,}|ya29\.[A-Za-z0-9_\-]{20,}"),
    ("npm_token", r"npm_[A-Za-z0-9]{30,}"),
    ("pypi_token", r"pypi-[A-Za-z0-9_\-]{16,}"),
    ("huggingface_token", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}"),
    ("sendgrid_key", r"SG\.[A-Za-z0-9_\-]{16,64}\.[A-Za-z0-9_\-]{16,}"),
    ("vault_token", r"hv[sbr]\.[A-Za-z0-9_\-]{20,}"),
    ("age_key", r"AGE-SECRET-KEY-(?:PQ-)?1[A-Z0-9]{20,}"),
    ("jwt", r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*)*"),
)
_SHAPE = re.compile("|".join(f"(?P<{kind}>{shape})" for kind, shape in _SHAPES))
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")

#: Kinds whose name is also a word of sentences.
_PROSE = frozenset(("auth", "token", "key", "api_key", "secret", "credential", "jwt", "bearer"))
#: Names whose value is a secret only if it looks like one.
WEAK = frozenset(("key", "sig", "signature"))
LOOKS_RANDOM = re.compile(r"(?=[^0-9]{0,64}[0-9])(?=[^A-Za-z]{0,64}[A-Za-z])[A-Za-z0-9+/=_\-]{12}")
_VARIABLE = re.compile(
    r"""\$(?:[A-Za-z_][A-Za-z0-9_]{0,127}|[0-9@*#?$!-]|\{[A-Za-z_][A-Za-z0-9_]{0,127}(?::?[-+=?])?\})"""
)
PATH = re.compile(r"(?:~|\.{1,2})?/|[A-Za-z0-9_\-]+\.(?:pem|key|crt|json|ya?ml|txt|toml|ini|env)\b")
NO_VALUES = frozenset(
    (
        *("", "true", "false", "yes", "no", "on", "off", "null", "none", "nil", "undefined"),
        *("basic", "digest", "ntlm", "negotiate", "any", "required", "optional", "auto"),
    )
)


class _Patience:
    """How much may be looked at without being redacted: without it, `token=$(token=$(…` is
    read to its end from every place. When it is used up, what looks like a value is one."""

    def __init__(self, text: str) -> None:
        self._left = 4 * len(text) + 65_536

    def spent(self, span: tuple[int, int]) -> bool:
        self._left -= span[1] - span[0] + 1
        return self._left < 0


def find_secrets(text: str, *, literal: bool = False) -> list[Span]:
    """Start, end and kind of every secret, in order, without overlaps.

    `literal`: the text is one argument of a program, not a line that a shell would still
    expand, so that `$x` is no variable. Marks of an earlier redaction are never found again.
    """
    patience = _Patience(text)
    found = [
        *_shapes(text),
        *_assigned(text, literal, patience),
        *_flagged(text, literal, patience),
        *_program_flags(text, patience),
        *_users(text, literal, patience),
        *_urls(text),
        *_scheme_tokens(text),
    ]
    if not found:
        return found
    found.sort(key=lambda span: (span[0], -span[1]))
    merged: list[Span] = []
    for start, end, kind in found:
        if merged and start < merged[-1][1]:
            first, last, named = merged[-1]
            merged[-1] = (first, max(last, end), named)
        else:
            merged.append((start, end, kind))
    return [span for span in merged if not MARK.fullmatch(text, span[0], span[1])]


# --- the rules ------------------------------------------------------------------------------


def _shapes(text: str) -> Iterator[Span]:
    for match in _SHAPE.finditer(text):
        yield match.start(), match.end(), match.lastgroup or "secret"
    yield from key_blocks(text)


def key_blocks(text: str) -> Iterator[Span]:
    """Private keys in PEM, which go over many lines; one without its end goes to that of the text."""
    at = 0
    while begin := _PEM.search(text, at):
        end = _PEM_END.search(text, begin.end())
        at = end.end() if end else len(text)
        yield begin.start(), at, "private_key"


def _assigned(text: str, literal: bool, patience: _Patience) -> Iterator[Span]:
    quotes = _Quotes(text)
    at = 0
    while match := _ASSIGNED.search(text, at):
        name, closing_quote, separator = match.group(1, 2, 3)
        name = name.lstrip("-")
        weak = name.lower() in WEAK
        kind = "key" if weak else kind_of_name(name)
        at = match.end()
        if kind is None:
            at = match.end(1)  # x:token=y: what follows the separator may be a name
            continue
        if weak and not LOOKS_RANDOM.match(text, at):
            continue
        if text.startswith("//", at) and ":" in separator:
            continue  # token://
        open_quote = None if closing_quote else quotes.open_at(match.start())
        start, end = _value(text, at, open_quote)
        header = ":" in separator and not closing_quote
        if header and kind in ("authorization", "cookie"):
            end = max(end, _line_end(text, at, open_quote))
        prose = header and separator[-1] in " \t" and "-" not in name
        if not patience.spent((at, end)) and (
            _is_no_secret(text, start, end, kind, literal)
            or (prose and kind in _PROSE and _is_word(text[start:end]))
        ):
            continue
        yield start, end, kind
        at = max(at, end)


def _flagged(text: str, literal: bool, patience: _Patience) -> Iterator[Span]:
    quotes = _Quotes(text)
    at = 0
    while match := _FLAG.search(text, at):
        at = match.end()
        weak = match.group(1).lower() in WEAK
        kind = "key" if weak else kind_of_name(match.group(1))
        if kind is None or text.startswith("-", at):
            continue
        if weak and not LOOKS_RANDOM.match(text, at):
            continue
        start, end = _value(text, at, quotes.open_at(match.start()))
        if not patience.spent((at, end)) and (
            _is_no_secret(text, start, end, kind, literal)
            or (kind == "cookie" and "=" not in text[start:end])  # the name of a file
        ):
            continue
        yield start, end, kind
        at = max(at, end)


def _program_flags(text: str, patience: _Patience) -> Iterator[Span]:
    at = 0
    while program := _PROGRAM.search(text, at):
        wanted = PROGRAM_FLAGS[program.group(1)]
        at = program.end()
        while flag := _SHORT_FLAG.search(text, at):
            at = flag.end()
            letter = flag.group(1)
            if letter is None:
                break  # the command ends here
            cookie = f"{letter}=" in wanted
            attached = not flag.group(2)
            if not (letter in wanted or cookie or (f"{letter}+" in wanted and attached)):
                continue
            start, end = _value(text, at, None)
            if not patience.spent((at, end)) and (
                _is_no_secret(text, start, end, "password", False)
                or (cookie and "=" not in text[start:end])
            ):
                continue
            yield start, end, "cookie" if cookie else "password"
            at = max(at, end)


def _users(text: str, literal: bool, patience: _Patience) -> Iterator[Span]:
    quotes = _Quotes(text)
    at = 0
    while match := _USER.search(text, at):
        at = match.end()
        start, end = _value(text, at, quotes.open_at(match.start()))
        user, _, password = MARK.sub("", text[start:end]).partition(":")
        if not patience.spent((at, end)) and (
            not password
            or user == password  # --user node:node and -u 1000:1000 are ids, not a login
            or (user + password).isdigit()
            or user.startswith("+")  # date -u +%H:%M
            or password.startswith(("/", "./", "~"))  # rsync -u host:/path
            or (not literal and _VARIABLE.fullmatch(password))
            or _is_no_secret(text, start, end, "userinfo", literal)
        ):
            continue
        yield start, end, "userinfo"
        at = max(at, end)


def _urls(text: str) -> Iterator[Span]:
    for match in _URL.finditer(text):
        at = match.start()
        for piece in match.group().split("://")[1:]:
            start = at + 3
            at = start + len(piece)
            authority = len(re.split(r"[/?#\\]", piece, maxsplit=1)[0])
            sign = piece.rfind("@", 0, authority)
            if sign < 0 and 0 <= piece.find(":") < authority:
                # A password with a slash in it; but host:4873/@scope/package has a port.
                port = _PORT.match(piece, piece.find(":") + 1)
                sign = -1 if port else piece.rfind("@")
            userinfo = piece[: max(sign, 0)]
            user, _, password = userinfo.partition(":")
            if (password and not _VARIABLE.fullmatch(password)) or len(user) >= 20:
                yield start, start + sign, "userinfo"


def _scheme_tokens(text: str) -> Iterator[Span]:
    for match in _SCHEME_TOKEN.finditer(text):
        scheme, token = match.group(1).lower(), match.group(2)
        if scheme == "basic":
            try:
                if b":" not in a2b_base64(token + "=" * (-len(token) % 4)):
                    continue
            except ValueError:  # binascii.Error, or letters that are not ASCII
                continue
        elif len(token) < 20 and token.isalpha():
            continue  # "bearer authentication"
        yield match.start(2), match.end(2), scheme


# --- values ---------------------------------------------------------------------------------


class _Quotes:
    """Which quote is open at a place of a text. Asked in ascending order, so linear in all."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._open = ""

    def open_at(self, place: int) -> str | None:
        for match in _QUOTE.finditer(self._text, self._at, max(place, self._at)):
            sign = match.group()
            if sign in ("'", '"'):
                if not self._open:
                    self._open = sign
                elif self._open == sign:
                    self._open = ""
        self._at = max(place, self._at)
        return self._open or None


_QUOTE = re.compile(r"""\\.|['"]""", re.DOTALL)
#: up to a blank, a quote, or the next field of a form or connection string: `&name=`
_RUN = re.compile(
    r"""(?:\\.|[^\s"'\\&;,]|[&;,](?![ \t]?[A-Za-z_][A-Za-z0-9_.\-]{0,64}[=:]))+""", re.DOTALL
)
_TRAILING = re.compile(r"[&;,|<>)\]}`]*$")


def _value(text: str, start: int, open_quote: str | None) -> tuple[int, int]:
    """Where the value that begins at `start` begins really (behind a quote) and ends.

    In doubt it is longer: a quote that may belong to the value is taken for part of it.
    """
    if text.startswith(('\\"', "\\'"), start):
        closing = text.find(text[start : start + 2], start + 2)
        return start + 2, closing if closing >= 0 else len(text)
    at = start
    quote = text[start : start + 1]
    if quote in ("'", '"') and not (quote == open_quote and _ends_word(text, start + 1)):
        end = _closing(text, start + 1, quote)
        if _ends_word(text, end + 1):
            return start + 1, end
        at = end + 1
    while at < len(text):
        here = text[at]
        if here in "'\"":
            if here == open_quote and _ends_word(text, at + 1):
                return start, at
            at = min(len(text), _closing(text, at + 1, here) + 1)
            continue
        run = _RUN.match(text, at)
        if run is None:
            break  # a blank, the next field, or a lone backslash at the end
        at = run.end()
    return start, _without_trailing(text, start, at)


def _ends_word(text: str, at: int) -> bool:
    """True if nothing that belongs to the same word stands at `at`."""
    follows = text[at : at + 1]
    return not follows or follows.isspace() or follows in ",;}])&|"


def _without_trailing(text: str, start: int, end: int) -> int:
    """Leaves brackets and operators behind a value outside of it, but not that of a mark."""
    window = max(start, end - 64)
    trailing = _TRAILING.search(text, window, end)
    stop = trailing.start() if trailing else end
    for mark in MARK.finditer(text, window, end):
        stop = max(stop, mark.end())
    return stop


def _closing(text: str, at: int, quote: str) -> int:
    """Where `quote` closes; a backslash escapes within double quotes. The end if it does not."""
    if quote == "'":
        end = text.find("'", at)
        return end if end >= 0 else len(text)
    while True:
        end = text.find('"', at)
        if end < 0:
            return len(text)
        backslashes = end - at - len(text[at:end].rstrip("\\"))
        if backslashes % 2 == 0:
            return end
        at = end + 1


def _line_end(text: str, start: int, open_quote: str | None) -> int:
    """The end of a header's value: of its line, or of the quotes around it."""
    ends = [text.find(sign, start) for sign in ("\n", "\r", open_quote or "\n")]
    return min((end for end in ends if end >= 0), default=len(text))


def _is_no_secret(text: str, start: int, end: int, kind: str, literal: bool) -> bool:
    value = text[start:end]
    if value.lower() in NO_VALUES or MARK.fullmatch(value):
        return True
    if kind in ("credential", "key", "auth") and PATH.match(value):
        return True
    if kind == "secret" and value.startswith(("id=", "type=")):
        return True  # docker build --secret id=…: names a file
    # A shell expands $x, except between single quotes.
    if literal or text[start - 1 : start] == "'":
        return False
    rest = value.partition(" ")[2] if kind == "authorization" else value
    return (
        _VARIABLE.fullmatch(rest) is not None
        or _VARIABLE.fullmatch(value) is not None
        or value.startswith(("$(", "`"))
    )


def _is_word(value: str) -> bool:
    """True for a word of a sentence: "auth: fix the login" holds no secret."""
    return len(value) < 20 and value.strip(".,;:!?").isalpha()
