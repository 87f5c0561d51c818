"""Which paths a world hides by default: secrets, other people's homes, our own state.

Decides; mounts nothing. Everything is looked up on the host before the world starts, and the
result holds real paths (links resolved here, where no world can swap them), so the launcher
can open each mount target without following any link. Invariants:
- nothing is hidden that the world cannot do without: no system directory, nor one that holds
  the home, the workspace or another needed path; it is then reported in `left_open`;
- a link is followed only where root or the user made it;
- what does not exist, or what the user cannot even look at, is left out: a world has the
  user's rights or fewer.
Spec: world.md §2 "Hidden by default". Sockets are in world.sockets.
"""

from __future__ import annotations

import errno
import os
import stat

from substrate.values import value
from substrate.world.mountinfo import is_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, Protocol

    Grouped = dict[bytes, tuple[frozenset[bytes], tuple[bytes, ...]]]

    class Files(Protocol):
        """How the host is looked at."""

        def find(self, path: bytes) -> tuple[bytes, bool] | None:
            """(the real path, whether it is a directory), None where there is nothing."""

        def names(self, directory: bytes) -> tuple[bytes, ...]:
            """The entries, sorted; none where it cannot be listed."""

        def present(self, directory: bytes, names: frozenset[bytes]) -> Iterable[bytes]:
            """Those of the names that are there; all of them where nobody can tell."""

        def head(self, path: bytes) -> bytes:
            """The first 64 KiB of a file, nothing where it cannot be read."""


#: Below a home: hidden whole, directory or file. `*` matches within one name.
HOME_SECRETS: Final = tuple(
    b"""
    .ssh .gnupg .password-store .pki .netrc _netrc .authinfo .authinfo.gpg
    .aws .azure .oci .boto .s3cfg .databrickscfg .snowsql .kaggle .fly .vault-token .terraform.d
    .terraformrc .kube .docker/config.json .docker/contexts .dockercfg .helm/repository
    .config/gh .config/glab-cli .config/hub .config/gcloud .config/doctl .config/hcloud
    .config/linode-cli .config/stripe .config/heroku .config/op .config/1Password .config/Bitwarden*
    .config/keybase .config/KeePass* .config/rclone .config/sops .config/age .config/helm/registry
    .config/containers/auth.json .config/git/credentials .git-credentials .config/composer/auth.json
    .composer/auth.json .config/github-copilot .config/configstore
    .pgpass .my.cnf .mylogin.cnf .pypirc .cargo/credentials .cargo/credentials.toml
    .gem/credentials .local/share/gem/credentials .m2/settings-security.xml
    .huggingface .cache/huggingface/token .cache/huggingface/stored_tokens
    .local/share/keyrings .local/share/kwalletd .local/share/containers/storage
    .mozilla .thunderbird .config/google-chrome* .config/chromium .config/BraveSoftware
    .config/microsoft-edge* .config/vivaldi .config/opera snap/firefox snap/chromium
    .var/app/org.mozilla.* .var/app/org.chromium.* .var/app/com.google.Chrome
    .config/Slack .config/discord .config/Signal .electrum .bitcoin .ethereum
    .substrate .config/fly .config/firebase .config/netlify .config/wrangler .wrangler .railway
    .config/supabase .supabase .config/ngrok .ngrok2 .config/tea .config/anthropic .config/openai
    .local/share/com.vercel.cli .pulumi/credentials.json .circleci/cli.yml .travis/config.yml .ansible/vault .vault_pass
    .cdsapirc .streamlit/secrets.toml .config/JetBrains .config/Code/User/globalStorage
    .config/Cursor/User/globalStorage .vscode-server/data/User/globalStorage
    .local/share/mkcert .step .local/share/atuin .android/adbkey .solana .config/solana
    .near-credentials .msmtprc .mbsyncrc .offlineimaprc .fetchmailrc .muttrc .mutt
    .local/share/evolution .config/evolution .purple .weechat .config/weechat .irssi
    .local/share/TelegramDesktop .config/Element .config/filezilla .config/remmina
    .local/share/remmina .config/syncthing .local/state/syncthing .local/share/kdewallet
    .smbcredentials .config/psysh .node_repl_history .sqlite_history .irb_history .pry_history
    .lesshst .viminfo .config/nushell/history.txt
    .bash_history .zsh_history .python_history .psql_history .mysql_history .rediscli_history
    .local/share/fish/fish_history .Xauthority .ICEauthority
    """.split()
)
#: Tools need these for more than their secrets (registries, mirrors), so they are hidden only
#: when one of the marks stands in them.
HOME_MIXED: Final = tuple(
    b"""
    .npmrc .config/npm/npmrc .yarnrc .yarnrc.yml .bunfig.toml .condarc .pip/pip.conf
    .config/pip/pip.conf .config/uv/uv.toml .config/pypoetry/auth.toml .bundle/config
    .m2/settings.xml .gradle/gradle.properties .nuget/NuGet/NuGet.Config .config/NuGet/NuGet.Config
    .cargo/config.toml .gitconfig .config/git/config .curlrc .wgetrc .config/composer/config.json
    """.split()
)
_MARKS: Final = tuple(
    b"_auth _password authtoken authident password passwd token secret extraheader"
    b" proxy-user cleartext".split()
)
#: The sign-ins of agents: program → where below a home. Hidden from commands, shown to the agent
#: itself (`shown`).
AGENTS: Final[dict[bytes, tuple[bytes, ...]]] = {
    b"claude": (b".claude/.credentials.json",),
    b"codex": (b".codex/auth.json",),
    b"gemini": (b".gemini/oauth_creds.json",),
    b"cursor-agent": (b".config/cursor/auth.json",),
    b"aider": (b".aider.conf.yml",),
    b"openhands": (b".openhands", b".config/openhands"),
}
AGENT_SIGN_INS: Final = tuple(path for paths in AGENTS.values() for path in paths)
SYSTEM_SECRETS: Final = tuple(
    b"""
    /etc/shadow /etc/shadow- /etc/gshadow /etc/gshadow- /etc/security/opasswd
    /etc/ssh/*key* /etc/sudoers /etc/sudoers.d /etc/doas.conf /etc/ssl/private /etc/krb5.keytab
    /etc/pki/tls/private /etc/NetworkManager/system-connections /etc/wpa_supplicant
    /etc/ppp/*-secrets /etc/wireguard /etc/openvpn /etc/letsencrypt /etc/rancher /etc/kubernetes
    /etc/docker/key.json /etc/credstore /etc/credstore.encrypted
    /var/lib/cloud /var/lib/kubelet /var/lib/docker /var/lib/containerd /var/lib/containers
    /var/lib/sss/secrets /var/lib/samba/private /var/lib/systemd/credential.secret
    /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/crypttab /etc/cryptsetup-keys.d /etc/luks
    /etc/cifs* /etc/samba /etc/ipsec.secrets /etc/ipsec.d/private /etc/netplan /etc/cni
    /etc/postfix/sasl_passwd* /etc/exim4/passwd.client /etc/mysql/debian.cnf
    /etc/gitlab-runner /etc/vault.d /etc/consul.d /etc/nomad.d /etc/cloudflared /etc/tailscale
    /etc/sssd /etc/ldap.secret /etc/pam_ldap.secret /etc/multipath /etc/iscsi /etc/ceph
    /var/backups /var/crash /var/lib/systemd/coredump /var/lib/systemd/random-seed
    /var/lib/etcd /var/lib/jenkins /var/lib/gitlab-runner /var/lib/vault /var/lib/tailscale /var/lib/wireguard
    /var/lib/libvirt /var/lib/lxc /var/lib/lxd /var/lib/incus /var/lib/rancher /var/lib/iwd
    /var/lib/bluetooth /var/lib/krb5kdc /var/lib/private /var/lib/aide /var/lib/sudo
    /var/log/auth.log* /var/log/secure* /var/log/audit /var/log/journal
    /swapfile /swap.img
    /var/lib/NetworkManager /var/spool/cron /var/spool/mail /var/mail
    """.split()
)
#: Never hidden whole, whoever's home they may be.
_NEEDED: Final = tuple(
    b"""
    / /bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /media /mnt /opt /proc /run /sbin
    /srv /sys /tmp /usr /usr/bin /usr/lib /usr/local /usr/sbin /usr/share /var /var/cache
    /var/lib /var/log /var/run /var/spool /var/tmp
    """.split()
)
_FIRST_PERSON, _LAST_PERSON = 1000, 59_999
#: what we run out of ourselves
_OURS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@value
class Account:
    """A line of the password file (passwd(5))."""

    name: bytes
    uid: int
    home: bytes


@value
class Hidden:
    """What to cover in a world; real paths, sorted, none inside another one."""

    directories: tuple[bytes, ...]
    files: tuple[bytes, ...]
    left_open: tuple[tuple[bytes, str], ...]  # should be hidden and is not: why
    shown: tuple[bytes, ...]  # would be hidden, but was wanted


#: the last file that was parsed: a process that stays reads the same one again and again
_last: list[tuple[bytes, tuple[Account, ...]]] = []


def parse_passwd(text: bytes) -> tuple[Account, ...]:
    """The accounts of a password file; lines that are none (NIS marks, comments) are skipped."""
    if _last and _last[0][0] == text:
        return _last[0][1]
    accounts = []
    for line in text.splitlines():
        fields = line.split(b":")
        if len(fields) == 7 and fields[2].isdigit() and fields[5].startswith(b"/"):
            accounts.append(Account(name=fields[0], uid=int(fields[2]), home=fields[5]))
    _last[:] = [(text, tuple(accounts))]
    return _last[0][1]


def hidden_paths(
    *,
    files: Files,
    home: bytes,
    uid: int,
    state_dir: bytes,
    accounts: tuple[Account, ...],
    needed: Iterable[bytes],
    shown: Iterable[bytes] = (),
) -> Hidden:
    """What a world of this user hides. `needed` are the paths it works in (workspace, cwd, the
    named ones); `shown` are paths that the caller wants seen although they are on the list,
    with all below them, but for the state directory. All paths are absolute."""
    needed_real = [_real(files, path) for path in (home, *needed)]
    shown_real = [_real(files, path) for path in shown]
    own_homes = {home, *(a.home for a in accounts if a.uid == uid)}
    others = {a.home for a in accounts if a.uid != uid and _is_person(a)}
    others.update(b"/home/" + name for name in files.names(b"/home"))
    found: dict[bytes, bool] = {}
    left_open: dict[bytes, str] = {}
    wanted: set[bytes] = set()

    def hide(path: bytes, *, always: bool = False) -> bool:
        """Whether it is hidden now (or is not there at all, or is wanted to be seen)."""
        seen = files.find(path)
        if seen is None:
            return True
        if not always and any(is_below(seen[0], show) for show in shown_real):
            wanted.add(seen[0])
            return True
        why = _why_not(seen[0], needed_real)
        if why:
            left_open[seen[0]] = why
            return False
        found[seen[0]] = seen[1]
        return True

    hide(state_dir, always=True)
    for path in _expand(files, b"/", _by_directory(SYSTEM_SECRETS)):
        hide(path)
    own_real = {_real(files, own) for own in own_homes}
    for other in sorted(others):
        real = _real(files, other)
        # somebody else's home that has to stay open (the workspace lies in it) is treated as
        # an own one: its secrets are hidden singly
        if real not in own_real and real != b"/" and not hide(other):
            own_homes.add(other)
    secrets, mixed = _by_directory(HOME_SECRETS + AGENT_SIGN_INS), _by_directory(HOME_MIXED)
    for own in sorted(own_homes):
        for path in _expand(files, own, secrets):
            hide(path)
        for path in _expand(files, own, mixed):
            text = files.head(path).lower()
            if any(mark in text for mark in _MARKS) or (b"@" in text and b"://" in text):
                hide(path)
    return _result(found, left_open, wanted)


def _is_person(account: Account) -> bool:
    return account.uid == 0 or _FIRST_PERSON <= account.uid <= _LAST_PERSON


def _real(files: Files, path: bytes) -> bytes:
    seen = files.find(path)
    return seen[0] if seen is not None else os.path.normpath(path)


def _why_not(path: bytes, needed: list[bytes]) -> str:
    if path in _NEEDED:
        return "a system directory"
    for need in needed:
        if is_below(need, path):
            return f"the world works in {os.fsdecode(need)}"
    return ""


#: of the lists here, once each was asked for
_grouped: dict[tuple[bytes, ...], Grouped] = {}


def _by_directory(patterns: tuple[bytes, ...]) -> Grouped:
    """The patterns by the directory that they lie in: (plain names, names with `*`)."""
    if (known := _grouped.get(patterns)) is not None:
        return known
    plain: dict[bytes, set[bytes]] = {}
    globs: dict[bytes, list[bytes]] = {}
    for pattern in patterns:
        directory, _, name = pattern.strip(b"/").rpartition(b"/")
        plain.setdefault(directory, set())
        if b"*" in name:
            globs.setdefault(directory, []).append(name)
        else:
            plain[directory].add(name)
    found = {d: (frozenset(plain[d]), tuple(globs.get(d, ()))) for d in plain}
    _grouped[patterns] = found
    return found


def _expand(files: Files, base: bytes, grouped: Grouped) -> Iterable[bytes]:
    """Paths below `base` that the patterns mean and that may be there."""
    below = base if base.endswith(b"/") else base + b"/"
    for directory, (plain, globs) in grouped.items():
        path = below + directory if directory else base
        inside = path if path.endswith(b"/") else path + b"/"
        for name in files.present(path, plain):
            yield inside + name
        for pattern in globs:
            first, *rest = pattern.split(b"*")
            for name in files.names(path):
                if _matches(name, first, rest):
                    yield inside + name


def _matches(name: bytes, first: bytes, rest: list[bytes]) -> bool:
    if not name.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return name.endswith(rest[-1]) and len(name) - len(rest[-1]) >= at


def _result(found: dict[bytes, bool], left_open: dict[bytes, str], wanted: set[bytes]) -> Hidden:
    outer: list[bytes] = []
    for path in sorted(found, key=lambda p: p.split(b"/")):
        if not (outer and is_below(path, outer[-1])):
            outer.append(path)
    return Hidden(
        directories=tuple(sorted(p for p in outer if found[p])),
        files=tuple(sorted(p for p in outer if not found[p])),
        left_open=tuple(sorted(left_open.items())),
        shown=tuple(sorted(wanted)),
    )


class HostFiles:
    """The real host, as `uid` may trust it: links of other users are not followed."""

    def __init__(self, uid: int) -> None:
        self._trusted = (0, uid)
        #: entries of directories that were listed; None where that is not allowed
        self._listed: dict[bytes, frozenset[bytes] | None] = {}

    def find(self, path: bytes) -> tuple[bytes, bool] | None:
        directory, _, name = path.rpartition(b"/")
        listed = self._entries(directory or b"/")
        if listed is not None and name not in (b"", b".", b"..") and name not in listed:
            return None  # as most of what is looked for: one listing answers for many
        try:
            real = self._resolve(path)
            return real, stat.S_ISDIR(self._lstat(real).st_mode)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise

    def _entries(self, directory: bytes) -> frozenset[bytes] | None:
        if directory not in self._listed:
            parent, _, name = directory.rpartition(b"/")
            above = self._listed.get(parent)
            if above is not None and name not in (b"", b".", b"..") and name not in above:
                self._listed[directory] = frozenset()
                return self._listed[directory]
            try:
                self._listed[directory] = frozenset(self._list(directory))
            except (FileNotFoundError, NotADirectoryError):
                self._listed[directory] = frozenset()
            except OSError as error:  # it may be searched without being read: look for each name
                if error.errno in _OURS:
                    raise  # nothing is said of the directory by that
                self._listed[directory] = None
        return self._listed[directory]

    def names(self, directory: bytes) -> tuple[bytes, ...]:
        return tuple(sorted(self._entries(directory) or ()))

    def present(self, directory: bytes, names: frozenset[bytes]) -> Iterable[bytes]:
        listed = self._entries(directory)
        return names if listed is None else names & listed

    def head(self, path: bytes) -> bytes:
        seen = self.find(path)
        if seen is None or seen[1]:
            return b""
        return self._read(seen[0])

    def _list(self, directory: bytes) -> list[bytes]:
        return os.listdir(directory)

    def _lstat(self, path: bytes) -> os.stat_result:
        return os.lstat(path)

    def _read(self, path: bytes) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            return b""
        try:
            return os.read(fd, 65536) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def _resolve(self, path: bytes) -> bytes:
        """The path without links. Raises PermissionError at a link that is not trusted or
        after 40 of them (the kernel's own bound), FileNotFoundError."""
        todo = path.split(b"/")[::-1]
        at, links = b"/", 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = os.path.dirname(at)
                continue
            step = at + b"/" + part if len(at) > 1 else b"/" + part
            status = self._lstat(step)
            if not stat.S_ISLNK(status.st_mode):
                at = step
                continue
            links += 1
            if status.st_uid not in self._trusted or links > 40:
                raise PermissionError(f"not following the link {os.fsdecode(step)}")
            target = os.readlink(step)
            todo.extend(target.split(b"/")[::-1])
            if target.startswith(b"/"):
                at = b"/"
        return at
