"""Which names say that their value is a secret (trace.md §6), for variables, flags, headers.

What it is: `is_secret_name`, a decision over the words of a name, and `kind_of_name`, which
says what to write instead of the value.
What it is not: it looks at no value; the rules that do are in `secret_rules`. A bare `key`
(`sort --key=2`) is no secret by its name; `secret_rules` looks at its value.

Invariant: import-free, because every start of a command asks for the names in its environment.
"""

from __future__ import annotations

#: Inside a word these are enough: PGPASSWORD, dbpasswd, clientsecret.
_ANYWHERE = ("password", "passwd", "passphrase", "passcode", "secret")
#: Words that say it by themselves.
_WORDS = frozenset(
    (
        *("pass", "pwd", "pw", "passin", "passout", "token", "tokens", "cookie", "cookies"),
        *("credential", "credentials", "creds", "auth", "authorization", "bearer", "jwt"),
        *("apikey", "accesskey", "privatekey", "authkey", "signingkey", "apitoken"),
    )
)
#: Ends of a word: authtoken, accesstoken, sessioncookie, openaiapikey.
_ENDS = ("token", "cookie", "apikey", "accesskey", "privatekey")
#: What follows the word turns it into something about the secret: password_file, auth-type.
_NEUTRAL_TAILS = frozenset(
    (
        *("file", "files", "filename", "path", "paths", "dir", "directory", "folder", "stdin"),
        *("type", "types", "size", "length", "len", "bits", "count", "name", "names", "id", "ids"),
        *("url", "uri", "host", "port", "sock", "socket", "mode", "method", "methods", "scheme"),
        *("algorithm", "alg", "version", "expiry", "expires", "expiration", "ttl", "lifetime"),
        *("limit", "limits", "policy", "helper", "manager", "provider", "providers", "backend"),
        *("jar", "format", "prompt", "store", "env", "var", "command", "cmd", "fd", "agent"),
        *("timeout", "age", "domain", "realm", "server", "service", "endpoint", "enabled"),
        *("required", "disabled", "status", "level", "label", "usage", "budget", "window"),
        *("plugin", "client", "user", "username", "group", "audience", "issuer", "scope", "scopes"),
    )
)
#: Flags that say what to do about a secret: --ask-vault-pass, --no-password.
_NEUTRAL_HEADS = frozenset(
    (
        *("ask", "no", "prompt", "skip", "without", "show", "hide", "disable", "enable", "use"),
        *("require", "check", "verify", "generate", "reset", "forget", "list", "is", "has"),
    )
)
#: `max_tokens` and the like count something.
_COUNTING = frozenset(
    (
        *("max", "min", "num", "n", "number", "total", "input", "output", "prompt", "context"),
        *("completion", "new", "per", "used", "cached", "reasoning", "budget", "no", "of"),
    )
)
#: before `key`: what the key is for, when it is no secret.
_NEUTRAL_KEYS = frozenset(
    (
        *("public", "pub", "primary", "foreign", "sort", "partition", "cache", "routing", "group"),
        *("hot", "short", "map", "index", "object", "registry", "dict", "json", "row", "column"),
        *("unique", "composite", "natural", "lookup", "search", "config", "setting", "message"),
        *("translation", "host", "known", "any", "arrow", "function", "home", "enter", "escape"),
        *("tab", "shift", "ctrl", "alt", "meta", "by", "no", "the", "press", "order", "range"),
        *("hash", "shard", "join", "name", "event", "field", "idempotency", "dedup", "recv"),
    )
)
#: The shell's own variables; `pwd=…` elsewhere is a password.
_DIRECTORIES = frozenset(("PWD", "OLDPWD", "INIT_CWD"))
_SEPARATORS = str.maketrans("-. ", "___")


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: `--awsSecretKey`, `AWS_SECRET_KEY` → aws secret key."""
    words: list[str] = []
    for part in name.translate(_SEPARATORS).split("_"):
        if part.isupper() or part.islower():
            words.append(part.lower())
            continue
        start = 0
        for at in range(1, len(part)):
            before, here, after = part[at - 1], part[at], part[at + 1 : at + 2]
            # aB, and the last capital of HTTPServer
            if here.isupper() and (not before.isupper() or after.islower()):
                words.append(part[start:at].lower())
                start = at
        words.append(part[start:].lower())
    return [word.strip("0123456789") for word in words if word.strip("0123456789")]


def is_secret_name(name: str) -> bool:
    """True if a variable, flag, header or field of this name holds a secret."""
    return kind_of_name(name) is not None


def kind_of_name(name: str) -> str | None:
    """The kind of secret that a name announces (`password`, `token` …), or None."""
    if len(name) > 256 or name in _DIRECTORIES:
        return None
    # Of spring.datasource.password the last part counts; auth.example.com is a host.
    words = words_of(name.rpartition(".")[2])
    if not words:
        return None
    if len(words) > 1 and (words[-1] in _NEUTRAL_TAILS or words[0] in _NEUTRAL_HEADS):
        return None
    for place, word in enumerate(words):
        kind = _kind_of_word(word)
        if kind == "token" and word.endswith("s") and _COUNTING.intersection(words):
            continue
        if kind is not None:
            return kind
        if (
            word == "key"
            and place == len(words) - 1 > 0
            and words[place - 1] not in _NEUTRAL_KEYS
            and "public" not in words
        ):
            return "api_key" if words[place - 1] in ("api", "access") else "key"
    return None


def _kind_of_word(word: str) -> str | None:
    if any(part in word for part in _ANYWHERE):
        if word.startswith("secretar"):
            return None
        return "secret" if "secret" in word else "password"
    if word in _WORDS or word.endswith(_ENDS):
        if word.startswith(("pass", "pw")):
            return "password"
        if word.endswith(("apikey", "accesskey")):
            return "api_key"
        for kind in ("token", "cookie", "key", "authorization", "auth", "bearer", "jwt"):
            if kind in word:
                return kind
        return "credential"
    return None
