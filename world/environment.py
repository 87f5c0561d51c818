"""Which environment variables go into a world: an allow-list, secrets only by name.

Pure. Not a policy file reader: patterns come as arguments. Invariant: a variable whose name
or value looks like a secret passes only when its exact name was given; everything that does
not pass is reported by name, never by value. Spec: world.md §7 "Environment".

Choices that are not plain from the lists:
- LD_LIBRARY_PATH passes (toolchains are found by it), LD_PRELOAD and LD_AUDIT do not: they
  put host instrumentation into programs that the record would then not explain.
- Functions exported by bash (`export -f`, BASH_FUNC_name%%) pass. They are the caller's own
  code, the command may rely on them (xargs bash -c, environment modules), and the exec gate
  looks at what is really executed, not at names. BASH_ENV and ENV name files to run unasked
  and do not pass.
- Proxy variables pass only into a world that shares the host's network. In the others the
  egress rules decide by destination: a proxy would be refused, or hide all destinations
  behind itself.
- SUDO_UID and its like pass: by them git, for one, trusts root with the caller's repository.
- What points at a service of the session (agents, D-Bus, X11, docker) never passes: it would
  be dead in there, or a way out.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

#: Patterns: exact, or with `*` for any bytes.
ALLOWED: Final = tuple(
    b"""
    PATH MANPATH INFOPATH HOME USER LOGNAME SHELL PWD OLDPWD SHLVL HOSTNAME HOSTTYPE OSTYPE _
    SUDO_UID SUDO_GID SUDO_USER
    TERM TERM_PROGRAM TERM_PROGRAM_VERSION COLORTERM TERMINFO TERMINFO_DIRS COLUMNS LINES
    NO_COLOR FORCE_COLOR CLICOLOR* LS_COLORS GREP_COLORS GCC_COLORS
    LANG LANGUAGE LC_* LOCPATH TZ TZDIR
    TMPDIR TMP TEMP EDITOR VISUAL PAGER MANPAGER LESS LESS* MORE
    XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME XDG_STATE_HOME XDG_DATA_DIRS XDG_CONFIG_DIRS
    CI CI_* GITHUB_* RUNNER_* BUILD_* DEBUG VERBOSE
    DEBIAN_FRONTEND DEB_* SOURCE_DATE_EPOCH
    LD_LIBRARY_PATH LD_RUN_PATH LIBRARY_PATH CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH
    CC CXX CPP FC F77 LD AR AS NM RANLIB STRIP OBJCOPY OBJDUMP
    CFLAGS CXXFLAGS CPPFLAGS FFLAGS LDFLAGS LDLIBS LIBS ARCH CROSS_COMPILE DESTDIR PREFIX
    MAKE* MFLAGS NINJA* MESON* CMAKE* CTEST_* PKG_CONFIG* ACLOCAL* AUTOMAKE AUTOCONF CCACHE_*
    SCCACHE_DIR BAZEL* OMP_* OPENBLAS_* MKL_*
    PYTHON* PIP_* PIPX_* UV_* POETRY_* PDM_* HATCH_* VIRTUAL_ENV VIRTUAL_ENV_PROMPT CONDA_*
    MAMBA_* PYENV* PYTEST_* TOX_* NOX_* MYPY* RUFF_* COVERAGE_* JUPYTER_* DJANGO_SETTINGS_MODULE
    NODE_* NPM_CONFIG_* npm_* NVM_* FNM_* VOLTA_* COREPACK_* YARN_* PNPM_* BUN_INSTALL DENO_DIR
    CARGO* RUST* GO* CGO_* GOPATH GOROOT
    JAVA_* JDK_* _JAVA_OPTIONS MAVEN_* M2_HOME GRADLE_* SBT_* KOTLIN_* SCALA_* ANDROID_HOME
    ANDROID_SDK_ROOT DOTNET_* NUGET_PACKAGES
    RUBY* GEM_* BUNDLE_* RBENV_* RAILS_ENV RACK_ENV PERL* PHP_* COMPOSER_HOME LUA_* GHC* CABAL_*
    STACK_ROOT OPAM* OCAML* MIX_* HEX_HOME ERL_* JULIA_* R_* SWIFT_*
    GIT_* HG* MODULEPATH LOADEDMODULES MODULESHOME BASH_FUNC_*
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
    PIP_CERT AWS_CA_BUNDLE
    """.split()
)
PROXIES: Final = tuple(
    b"http_proxy https_proxy ftp_proxy all_proxy no_proxy"
    b" HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY".split()
)
#: Not even by a pattern of the user's; by exact name only.
NEVER: Final = tuple(
    b"""
    SSH_AUTH_SOCK SSH_AGENT_PID SSH_ASKPASS SUDO_ASKPASS GIT_ASKPASS GPG_AGENT_INFO GPG_TTY
    DBUS_* XDG_RUNTIME_DIR XDG_SESSION_* SESSION_MANAGER DISPLAY WAYLAND_* XAUTHORITY
    ICEAUTHORITY GNOME_KEYRING_CONTROL DOCKER_HOST CONTAINER_HOST KUBECONFIG TMUX TMUX_PANE STY
    VSCODE_* BROWSER LD_PRELOAD LD_AUDIT LD_DEBUG LD_DEBUG_OUTPUT LD_PROFILE
    BASH_ENV ENV SHELLOPTS BASHOPTS PROMPT_COMMAND PS4 NOTIFY_SOCKET LISTEN_FDS LISTEN_PID
    GIT_SSH GIT_SSH_COMMAND GIT_PROXY_COMMAND GIT_EXTERNAL_DIFF
    SUBSTRATE_*
    """.split()
)

_SECRET_PARTS: Final = tuple(
    b"TOKEN SECRET PASSWORD PASSWD PASSPHRASE CREDENTIAL APIKEY PRIVATE BEARER COOKIE".split()
)
_SECRET_ENDINGS: Final = tuple(b"KEY KEYS AUTH PASS PWD PAT JWT DSN OTP CREDS".split())
#: end like a secret and are none
_NOT_SECRET: Final = frozenset({b"PWD", b"OLDPWD"})
_SECRET_VALUES: Final = tuple(
    b"-----BEGIN |ghp_|gho_|ghs_|github_pat_|glpat-|xoxb-|xoxp-|AKIA|npm_|pypi-AgE"
    b"|sk-|hf_|eyJhbGciOi".split(b"|")
)
_SECRET_HEADERS: Final = (b"authorization:", b"bearer ", b"private-token:")
_ENDS_AUTHORITY: Final = b"/?# \t\n\"',;|"


@value
class Selection:
    """What goes in, and the names of what does not; each sorted by name."""

    passed: tuple[tuple[bytes, bytes], ...]
    withheld: tuple[bytes, ...]  # on no list, or dropped
    masked: tuple[bytes, ...]  # would pass, but looks like a secret


def select(
    environ: Mapping[bytes, bytes],
    *,
    also: Iterable[bytes] = (),
    drop: Iterable[bytes] = (),
    set_to: Mapping[bytes, bytes] | None = None,
    host_network: bool = False,
) -> Selection:
    """Divides an environment.

    `also` adds names and patterns with `*`; an exact name there passes whatever it is. `drop`
    takes names and patterns away and beats `also`. `set_to` is put in at the end and beats
    both. `host_network`: the world has the host's network, so proxies make sense in it."""
    also = tuple(also)
    drop = tuple(drop)
    named = frozenset(pattern for pattern in also if b"*" not in pattern)
    allowed = _patterns((*ALLOWED, *also, *(PROXIES if host_network else ())))
    never, dropped = _patterns(NEVER), _patterns(drop)
    set_to = set_to or {}
    passed = dict(set_to)
    withheld, masked = [], []
    for name in sorted(environ):
        given = environ[name]
        if name in set_to:
            continue
        if dropped.match(name):
            withheld.append(name)
        elif name in named:
            passed[name] = given
        elif never.match(name) or not allowed.match(name):
            withheld.append(name)
        elif is_secret_name(name) or is_secret_value(given):
            masked.append(name)
        else:
            passed[name] = given
    return Selection(
        passed=tuple(sorted(passed.items())), withheld=tuple(withheld), masked=tuple(masked)
    )


def is_secret_name(name: bytes) -> bool:
    """Whether a name says that its value is a secret: TOKEN, SECRET, PASSWORD … anywhere, or
    a word that ends in KEY, AUTH, PASS … (GIT_AUTHOR_NAME is none, npm_config__auth is one)."""
    if name in _NOT_SECRET:
        return False
    upper = name.upper()
    if any(part in upper for part in _SECRET_PARTS):
        return True
    words = bytes(c if 65 <= c <= 90 or 48 <= c <= 57 else 32 for c in upper).split()
    return any(word.endswith(_SECRET_ENDINGS) for word in words)


def is_secret_value(text: bytes) -> bool:
    """Whether a value carries a secret: a URL with user information, an authorization header,
    a private key, a token of a well-known form."""
    return (
        text.startswith(_SECRET_VALUES)
        or b"-----BEGIN " in text
        or any(header in text.lower() for header in _SECRET_HEADERS)
        or _has_userinfo(text)
    )


def _has_userinfo(text: bytes) -> bool:
    """Any `scheme://…@` in the text; `ssh://git@host`, a bare account name, is none."""
    scheme, *rest = text.split(b"://")
    for after in rest:
        end = min(
            [i for i in (after.find(bytes([c])) for c in _ENDS_AUTHORITY) if i >= 0] or [len(after)]
        )
        user, at, _ = after[:end].rpartition(b"@")
        if at and (b":" in user or not scheme.endswith((b"ssh", b"sftp", b"rsync"))):
            return True
        scheme = after
    return False


class _Patterns:
    """Names and globs, told apart once so that most lookups are one in a set."""

    def __init__(self, patterns: tuple[bytes, ...]) -> None:
        self._exact = frozenset(p for p in patterns if b"*" not in p)
        self._prefixes = tuple(p[:-1] for p in patterns if p.find(b"*") == len(p) - 1 and p)
        self._globs = tuple(
            p.split(b"*") for p in patterns if b"*" in p and p.find(b"*") != len(p) - 1
        )

    def match(self, name: bytes) -> bool:
        return (
            name in self._exact
            or name.startswith(self._prefixes)
            or any(_glob(parts, name) for parts in self._globs)
        )


_MOST_KNOWN: Final = 16
_known: dict[tuple[bytes, ...], _Patterns] = {}


def _patterns(patterns: tuple[bytes, ...]) -> _Patterns:
    """Told apart once in a process."""
    found = _known.get(patterns)
    if found is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        found = _known[patterns] = _Patterns(patterns)
    return found


def _glob(parts: list[bytes], name: bytes) -> bool:
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
