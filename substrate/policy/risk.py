"""How risky a command looks, and why: shown to whoever is asked, never deciding (policy.md §2).

The highest of what the tables below say of any part of a command, and of a few things that only the whole
shows: what a server sends goes into a shell, credentials and the network in one command. It errs on the
side of a warning; `low` says that nothing here knew it, not that it is safe.
"""

from __future__ import annotations

from substrate.policy import steps
from substrate.policy.argv import read
from substrate.policy.globs import Glob
from substrate.policy.matching import Pattern, plain_operands
from substrate.policy.names import names_of
from substrate.policy.programs import find_table
from substrate.policy.wrappers import SHELLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final, TypeAlias

    from substrate.policy.argv import Reading
    from substrate.policy.programs import Table
    from substrate.policy.reading_as import Part

    #: level, why, and when: None is always
    _Row: TypeAlias = tuple[int, str, Pattern | None]

LEVELS: Final = ("low", "medium", "high", "critical")
_LOW, _MEDIUM, _HIGH, _CRITICAL = range(4)

_ALL: Final = "removes all files"
_DISK: Final = "writes to a disk below its filesystem"
_PUBLISHES: Final = "publishes, which cannot be taken back"
_OUTLIVES: Final = "makes something run later, beyond this command"
_ACCOUNTS: Final = "changes accounts or who may do what"
_STOPS: Final = "stops the machine"
_HISTORY: Final = "rewrites history that others may have"
_LOSES: Final = "loses work that is not committed"
_HOST: Final = "gives a container the host"
_ELSEWHERE: Final = "acts on another machine"
_DATABASE: Final = "deletes what is kept elsewhere"

_SYSTEM: Final = (
    *(
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib64",
        "opt",
        "proc",
        "sbin",
        "srv",
        "sys",
        "usr",
        "var",
    ),
)

#: a rule's words as in a policy, read wide
_TABLE: Final[tuple[tuple[int, str, str], ...]] = (
    (_CRITICAL, _ALL, "rm -r ** / **"),
    (_CRITICAL, _ALL, "rm -r ** /[*] **"),
    (_CRITICAL, _ALL, "rm --no-preserve-root **"),
    (_CRITICAL, "removes a home directory", "rm -r ** ~ **"),
    (_CRITICAL, "removes a home directory", "rm -r ** ~/ **"),
    (_CRITICAL, "removes a home directory", "rm -r ** $HOME **"),
    (_CRITICAL, "removes a home directory", "rm -r ** /home **"),
    (_CRITICAL, "removes a home directory", "rm -r ** /root **"),
    *((_CRITICAL, "removes a part of the system", f"rm -r ** /{name} **") for name in _SYSTEM),
    *((_HIGH, "removes a part of the system", f"rm -r ** /{name}/* **") for name in ("bin", "boot", "etc", "lib", "usr")),
    (_MEDIUM, "removes directories", "rm -r **"),
    (_CRITICAL, _ALL, "find / ** -delete **"),
    (_MEDIUM, "removes all that it finds", "find ** -delete **"),
    *((_CRITICAL, _DISK, f"dd ** of=/dev/{disk}* **") for disk in ("sd", "hd", "vd", "xvd", "nvme", "mmcblk")),
    *((_CRITICAL, _DISK, f"dd ** of=/dev/{disk}* **") for disk in ("mapper", "disk", "dm-", "mem", "loop", "md")),
    *((_CRITICAL, _DISK, f"{name} **") for name in ("mkfs", "mkswap", "wipefs", "blkdiscard", "sfdisk", "fdisk")),
    *((_CRITICAL, _DISK, f"mkfs.{name} **") for name in ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "f2fs")),
    *((_CRITICAL, _DISK, f"{name} **") for name in ("parted", "sgdisk", "cryptsetup", "lvremove", "vgremove")),
    (_CRITICAL, _DISK, "shred ** /dev/* **"),
    (_MEDIUM, "overwrites files for good", "shred **"),
    (_CRITICAL, "opens all files to everybody", "chmod -R ** 777 ** / **"),
    (_HIGH, "opens files to everybody", "chmod -R ** 777 **"),
    (_HIGH, "opens files to everybody", "chmod -R ** 0777 **"),
    (_HIGH, "opens files to everybody", "chmod -R ** a+rwx **"),
    (_MEDIUM, "opens a file to everybody", "chmod ** 777 **"),
    (_MEDIUM, "opens a file to everybody", "chmod ** a+rwx **"),
    *((_HIGH, "makes a program run with its owner's rights", f"chmod ** {mode} **") for mode in ("[246]7[0-7][0-7]", "*+s", "*+*s")),
    (_CRITICAL, "takes all files", "chown -R ** / **"),
    (_MEDIUM, "changes owners of a tree", "chown -R **"),
    (_HIGH, _HISTORY, "git push --force **"),
    (_HIGH, _HISTORY, "git push --force-with-lease **"),
    (_HIGH, _HISTORY, "git push --mirror **"),
    (_HIGH, _HISTORY, "git push ** +* **"),
    (_HIGH, "deletes a branch that others see", "git push --delete **"),
    (_HIGH, "deletes a branch that others see", "git push ** :* **"),
    (_MEDIUM, "publishes commits", "git push **"),
    (_HIGH, _HISTORY, "git filter-branch **"),
    (_HIGH, _HISTORY, "git filter-repo **"),
    (_MEDIUM, _LOSES, "git reset --hard **"),
    (_HIGH, _LOSES, "git clean -f -x **"),
    (_MEDIUM, _LOSES, "git clean -f **"),
    (_MEDIUM, _LOSES, "git checkout --force **"),
    (_MEDIUM, _LOSES, "git stash drop **"),
    (_MEDIUM, _LOSES, "git stash clear **"),
    (_MEDIUM, "deletes a branch that is not merged", "git branch -D **"),
    (_MEDIUM, "forgets what could be brought back", "git reflog expire **"),
    (_HIGH, "has git run another program", "git config ** core.hooksPath **"),
    (_MEDIUM, "changes git's settings for all repositories", "git config --global **"),
    *((_HIGH, _PUBLISHES, f"{words} **") for words in ("npm publish", "pnpm publish", "yarn publish", "yarn npm publish", "cargo publish")),
    *((_HIGH, _PUBLISHES, f"{words} **") for words in ("twine upload", "gem push", "uv publish", "poetry publish", "hatch publish", "flit publish")),
    *((_HIGH, _PUBLISHES, f"{words} **") for words in ("docker push", "podman push", "helm push", "pdm publish", "bun publish", "deno publish")),
    *((_HIGH, "takes back what others use", f"{words} **") for words in ("npm unpublish", "gem yank", "cargo yank", "npm deprecate")),
    *((_HIGH, _PUBLISHES, f"gh {words} **") for words in ("release create", "repo create", "gist create", "pr merge")),
    *((_HIGH, _DATABASE, f"gh {words} **") for words in ("repo delete", "release delete", "secret delete")),
    (_MEDIUM, "writes where others see it", "gh api -X **"),
    (_MEDIUM, "installs for all of this user", "npm install -g **"),
    (_MEDIUM, "installs from another index", "pip install --index-url **"),
    (_MEDIUM, "installs from another index", "pip install --extra-index-url **"),
    *((_MEDIUM, "installs from a URL", f"{name} install ** {url} **") for name in ("pip", "npm") for url in ("git+*", "http*://*")),
    *((_HIGH, "changes what is installed", f"{name} {verb} **") for name in ("apt", "apt-get") for verb in ("remove", "purge", "autoremove")),
    *((_MEDIUM, "changes what is installed", f"{name} {verb} **") for name in ("apt", "apt-get") for verb in ("install", "upgrade", "dist-upgrade", "full-upgrade")),
    (_MEDIUM, "changes what is installed", "dpkg -i **"),
    (_HIGH, "changes what is installed", "dpkg -P **"),
    (_HIGH, "changes what is installed", "dpkg -r **"),
    *((_MEDIUM, "runs as another user", f"{name} **") for name in ("sudo", "su", "doas", "pkexec", "runuser")),
    *((_HIGH, _STOPS, f"{name} **") for name in ("reboot", "shutdown", "halt", "poweroff", "init", "telinit")),
    *((_HIGH, _STOPS, f"systemctl {verb} **") for verb in ("reboot", "poweroff", "halt", "kexec", "rescue", "emergency")),
    *((_MEDIUM, "changes services of the machine", f"systemctl {verb} **") for verb in ("stop", "disable", "mask", "restart", "enable", "start", "kill")),
    (_HIGH, "ends all processes", "kill ** -1"),
    *((_MEDIUM, "ends processes by name", f"{name} **") for name in ("pkill", "killall")),
    *((_HIGH, _ACCOUNTS, f"{name} **") for name in ("useradd", "userdel", "usermod", "passwd", "chpasswd", "visudo", "groupadd", "gpasswd", "adduser", "deluser", "setcap")),
    *((_MEDIUM, _OUTLIVES, f"{name} **") for name in ("crontab", "at", "batch", "systemd-run")),
    *((_HIGH, "changes the firewall", f"{name} **") for name in ("iptables", "ip6tables", "nft", "ufw", "firewall-cmd", "iptables-restore")),
    *((_HIGH, "changes the kernel", f"{name} **") for name in ("insmod", "rmmod", "modprobe", "kexec")),
    *((_MEDIUM, "changes the system", f"{name} **") for name in ("mount", "umount", "swapoff", "losetup", "chroot", "nsenter")),
    (_MEDIUM, "changes the kernel's settings", "sysctl -w **"),
    *((_HIGH, _HOST, f"{name} run {flag} **") for name in ("docker", "podman") for flag in ("--privileged", "--pid=host", "--userns=host", "--cap-add=ALL", "--cap-add=SYS_ADMIN", "-v /:*", "-v *docker.sock*", "--network=host")),
    *((_MEDIUM, "removes containers, images or volumes", f"{name} {words} **") for name in ("docker", "podman") for words in ("system prune", "volume rm", "volume prune", "rm -f", "rmi -f", "compose down --volumes")),
    (_CRITICAL, _DATABASE, "kubectl delete --all **"),
    (_CRITICAL, _DATABASE, "kubectl delete namespace **"),
    (_HIGH, _DATABASE, "kubectl delete **"),
    (_HIGH, _DATABASE, "kubectl drain **"),
    *((_MEDIUM, "changes a cluster", f"kubectl {verb} **") for verb in ("apply", "create", "patch", "replace", "scale", "exec", "edit", "rollout", "cp", "set")),
    *((_CRITICAL, _DATABASE, f"{words} **") for words in ("terraform destroy", "tofu destroy", "pulumi destroy", "cdk destroy", "dropdb", "terraform ** -destroy")),
    (_HIGH, "changes what runs elsewhere", "terraform apply **"),
    *((_HIGH, _DATABASE, f"aws ** {words} **") for words in ("rb", "s3 rm", "delete-*", "terminate-*")),
    *((_HIGH, _DATABASE, f"{words} **") for words in ("gcloud ** delete", "az ** delete", "helm uninstall", "helm delete", "heroku apps:destroy", "gsutil ** rm")),
    *((_HIGH, "gives a shell to whoever connects", f"{name} {words} **") for name in ("nc", "ncat", "netcat", "nc.traditional") for words in ("** -e", "** -c", "** --exec", "** -lvp")),
    *((_HIGH, "gives a shell to whoever connects", f"socat ** {word} **") for word in ("EXEC:*", "exec:*", "SYSTEM:*")),
    *((_MEDIUM, "waits for connections, or makes any", f"{name} **") for name in ("nc", "ncat", "netcat", "socat")),
    *((_MEDIUM, _ELSEWHERE, f"{name} **") for name in ("ssh", "ansible", "ansible-playbook", "fab")),
    *((_MEDIUM, "copies to or from another machine", f"{name} ** *:* **") for name in ("scp", "rsync", "sftp")),
    (_HIGH, "removes what is not in the source", "rsync --delete **"),
    *((_MEDIUM, "sends data", f"curl {flag} **") for flag in ("-T", "-F", "-d", "--data-binary", "--data-urlencode", "--json")),
    *((_MEDIUM, "sends data", f"wget {flag} **") for flag in ("--post-file", "--post-data", "--body-file")),
    (_MEDIUM, "does not check whom it talks to", "curl -k **"),
    (_MEDIUM, "does not check whom it talks to", "wget --no-check-certificate **"),
    (_HIGH, "throws files away", "mv ** /dev/null"),
    (_MEDIUM, "empties files", "truncate **"),
    *((_MEDIUM, "writes to the system's settings", f"{name} ** /etc/* **") for name in ("tee", "cp", "mv", "install", "ln")),
    (_MEDIUM, "writes to the system's settings", "sed -i ** /etc/* **"),
)  # fmt: skip

#: in the words of a command
_CREDENTIALS: Final = (
    *(
        b"/.ssh/id_",
        b"id_rsa",
        b"id_ed25519",
        b"id_ecdsa",
        b".aws/credentials",
        b".netrc",
        b".pypirc",
        b".npmrc",
    ),
    *(
        b".docker/config.json",
        b".kube/config",
        b".gnupg/",
        b"/etc/shadow",
        b".git-credentials",
        b"gh/hosts.yml",
    ),
    *(
        b".vault-token",
        b"application_default_credentials",
        b"/etc/sudoers",
        b"/etc/kubernetes/admin.conf",
    ),
    *(
        b".azure/",
        b".config/gcloud",
        b"/proc/self/environ",
        b".cargo/credentials",
        b".gem/credentials",
        b".pgpass",
        b".my.cnf",
    ),
)
_SENDERS: Final = frozenset(
    (
        b"curl",
        b"wget",
        b"nc",
        b"ncat",
        b"netcat",
        b"scp",
        b"rsync",
        b"ssh",
        b"socat",
        b"sftp",
        b"ftp",
    )
)
_FETCHERS: Final = frozenset((b"curl", b"wget", b"fetch", b"aria2c", b"http", b"https", b"nc"))
_HIDERS: Final = frozenset(
    (b"base64", b"xxd", b"openssl", b"base32", b"gunzip", b"zcat", b"uudecode", b"rev")
)
_INTERPRETERS: Final = frozenset(
    (*SHELLS, b"python", b"python3", b"perl", b"ruby", b"node", b"php", b"sudo", b"env", b"xargs")
)
#: in a shell's text
_TEXTS: Final = (
    (b"/dev/tcp/", _HIGH, "opens a connection from a shell"),
    (b"/dev/udp/", _HIGH, "opens a connection from a shell"),
    (b":|:", _HIGH, "multiplies processes until nothing else runs"),
    (b"> /dev/sd", _CRITICAL, _DISK),
    (b">/dev/sd", _CRITICAL, _DISK),
    (b"> /dev/nvme", _CRITICAL, _DISK),
    (b">/dev/nvme", _CRITICAL, _DISK),
    (b"drop database", _HIGH, _DATABASE),
    (b"drop table", _HIGH, _DATABASE),
)

_by_name: dict[bytes, list[tuple[int, str, tuple[bytes, ...]]]] = {}
_compiled: dict[bytes, Rows] = {}
_MOST_COMPILED: Final = 4096


class Rows:
    """What is said of a program. Rows that need a literal operand somewhere are found by that."""

    __slots__ = ("by_operand", "others", "table")

    def __init__(self, name: bytes) -> None:
        self.table = find_table(name)
        self.by_operand: dict[bytes, list[_Row]] = {}
        self.others: list[_Row] = []
        found = [row for other in names_of(name) for row in _by_name.get(other, ())]
        for level, why, words in found:
            pattern = None if words[1:] == (b"**",) else Pattern(words, self.table, True)
            row = (level, why, pattern)
            keys = [] if pattern is None else [key for key in map(_key, pattern.row) if key]
            if keys:
                self.by_operand.setdefault(keys[-1], []).append(row)
            else:
                self.others.append(row)


def assess(parts: Sequence[Part]) -> tuple[str, str]:
    """Level and reason; "" with `low`."""
    level, reason = _LOW, ""
    names = set()
    for part in parts:
        name = part.main
        names.add(name)
        rows = _rows(name)
        if rows.others or rows.by_operand:
            for one, why, pattern in _candidates(rows, part):
                if one > level and (pattern is None or _meets(part, rows, pattern)):
                    level, reason = one, why
        if part.piped_from and level < _HIGH and name in _INTERPRETERS:
            if part.piped_from in _FETCHERS:
                level, reason = _HIGH, "runs what a server sends"
            elif part.piped_from in _HIDERS:
                level, reason = _HIGH, "runs what is hidden from readers"
    if parts:
        words = b"\0".join(parts[0].argv)
        if parts[0].text is not None or len(parts) > 1:
            text = words.lower()
            for mark, one, why in _TEXTS:
                if one > level and mark in text:
                    level, reason = one, why
        if level < _CRITICAL and _names_credentials(words):
            if not names.isdisjoint(_SENDERS):
                level, reason = _CRITICAL, "names credentials, and can send them"
            elif level < _HIGH:
                level, reason = _HIGH, "names credentials"
    return LEVELS[level], reason


def _names_credentials(words: bytes) -> bool:
    if b"." not in words and b"/" not in words and b"id_" not in words:
        return False
    for mark in _CREDENTIALS:
        if mark in words:
            return True
    at = words.find(b".env")
    while at >= 0:
        before, behind = words[at - 1 : at] if at else b"", words[at + 4 : at + 5]
        if before in (b"", b"/", b"\0", b" ", b"@", b"<") and behind in (
            b"",
            b"\0",
            b" ",
            b".",
            b";",
            b"|",
            b"'",
            b'"',
        ):
            return not words.startswith((b".env.example", b".env.sample", b".env.template"), at)
        at = words.find(b".env", at + 4)
    return False


def _key(word: bytes | Glob | None) -> bytes | None:
    """What an operand is found by: a literal, or the directory at the top in `/etc/*`."""
    if isinstance(word, Glob):
        source = word.source
        return source if source[:1] == b"/" and source.find(b"/*", 1) == len(source) - 2 else None
    return word


def _rows(name: bytes) -> Rows:
    found = _compiled.get(name)
    if found is None:
        if not _by_name:
            for level, why, text in _TABLE:
                words = tuple(text.encode().split())
                _by_name.setdefault(words[0], []).append((level, why, words))
        if len(_compiled) >= _MOST_COMPILED:
            _compiled.clear()
        found = _compiled[name] = Rows(name)
    return found


def _candidates(rows: Rows, part: Part) -> list[_Row]:
    """Each once, however often an argv says what it is found by."""
    found = list(rows.others)
    if rows.by_operand:
        if rows.table is None:
            words: Iterable[bytes] = part.argv[1:]
        else:
            reading = _read(part, rows.table)
            words = reading.operands
            if reading.other is not None:
                words = (*words, *reading.other.operands)
            if any(b"/" in word for word in words):
                words = (*words, *_plain(reading, part))
        keys: dict[bytes, None] = {}
        for word in words:
            if word in rows.by_operand:
                keys[word] = None
            if word[:1] == b"/" and (end := word.find(b"/", 1)) > 0:
                keys[word[: end + 1] + b"*"] = None
        for key in keys:
            found += rows.by_operand.get(key, ())
    return found


def _plain(reading: Reading, part: Part) -> list[bytes]:
    try:
        return plain_operands(reading, part.cwd)
    except steps.Spent:
        return []  # too many: by their text alone


def _meets(part: Part, rows: Rows, pattern: Pattern) -> bool:
    if rows.table is None:
        return pattern.meets_words(part.argv[1:], part.known)
    try:
        return pattern.meets_reading(_read(part, rows.table), part.known, part.cwd)
    except steps.Spent:
        return True


def _read(part: Part, table: Table) -> Reading:
    reading = part.readings.get(id(table))
    if reading is None:
        reading = part.readings[id(table)] = read(part.argv, table)
    return reading
