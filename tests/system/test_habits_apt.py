"""dpkg and apt in root's worlds, with packages that the test makes, and the apply of that.

The host here is a mount namespace in which what packages change (/etc, /opt, dpkg's and apt's
directories) is a copy; a second one with a second copy is where the same commands run
without a world. The machine that the tests run on is left as it is.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.system import tree_listing
from tests.system.caller import remove
from tests.system.plain_copy import anything, changes, must_agree, need, with_times_that_count

_PLACES = ("/etc", "/opt", "/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/log")
_PRELUDE = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
export SOURCE_DATE_EPOCH=1000000000
apt() { apt-get -qq -y -o Dpkg::Use-Pty=0 -o Acquire::Languages=none "$@" 2>&1; }
set -e
"""
#: `base` waits for files below /opt/habit/plugins, makes a user and has a setting; `plugin` has
#: such a file; `server` needs both and makes a user in another way
_PACKAGES = r"""
control() { mkdir -p $1/DEBIAN; printf 'Package: habit-%s\nVersion: %s\nArchitecture: all\nMaintainer: A <a@example.org>\nDepends: %s\nDescription: a habit\n' $1 $2 "$3" > $1/DEBIAN/control; }
build() { chmod -R u=rwX,go=rX $1; find $1/DEBIAN -name 'p*' -exec chmod 755 {} +; dpkg-deb -b --root-owner-group $1 $1-$2.deb >/dev/null; }
control base 1 adduser
mkdir -p base/opt/habit/plugins base/etc; echo 1 > base/opt/habit/base; echo value=1 > base/etc/habit.conf
ln -s base base/opt/habit/link; echo /etc/habit.conf > base/DEBIAN/conffiles
echo interest /opt/habit/plugins > base/DEBIAN/triggers
cat > base/DEBIAN/postinst <<'END'
#!/bin/sh
set -e
case $1 in
triggered) ls /opt/habit/plugins > /opt/habit/known; exit;;
esac
adduser --quiet --system --no-create-home --home /opt/habit --group habit-base
install -d -o habit-base -g habit-base -m 750 /opt/habit/state
END
cat > base/DEBIAN/postrm <<'END'
#!/bin/sh
set -e
[ "$1" != purge ] || { deluser --quiet --system habit-base; rm -rf /opt/habit; }
END
build base 1
control base 2 adduser; echo 2 > base/opt/habit/base; echo value=2 > base/etc/habit.conf; echo new > base/opt/habit/new
chmod 4755 base/opt/habit/new; build base 2
control plugin 1 habit-base; mkdir -p plugin/opt/habit/plugins; echo p > plugin/opt/habit/plugins/p; build plugin 1
control server 1 'habit-base, habit-plugin, passwd'; mkdir -p server/opt/habit-server; echo s > server/opt/habit-server/s
printf '#!/bin/sh\nset -e\nuseradd -r -U -d /opt/habit-server -s /usr/sbin/nologin habit-server\nchown habit-server: /opt/habit-server/s\n' > server/DEBIAN/postinst
printf '#!/bin/sh\nset -e\n[ "$1" != purge ] || userdel habit-server\n' > server/DEBIAN/postrm
build server 1
"""
_READERS = (
    # times, and what apt computes of them
    (r"/var/log/.*|/var/cache/apt/.*|/var/lib/apt/.*", anything),
)
#: locks and backups: touched or not, as the moment has it
_ABSENT = r"/etc/\.pwd\.lock|/etc/.*\.lock"


class _Machine:
    """A mount namespace with copies of its own of what packages change."""

    def __init__(self, directory):
        self.directory = directory = str(directory)
        binds = []
        for place in _PLACES:
            copy = f"{directory}{place}"
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            if place == "/etc":
                subprocess.run(["cp", "-a", place, copy], check=True)
            else:
                os.makedirs(copy)
            binds.append(f"mount --bind {copy} {place}")
        self._make_databases(directory)
        self.holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-ec"]
            + ["; ".join([*binds, "echo ready; exec cat"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout.readline() == b"ready\n"

    def _make_databases(self, directory):
        """Those of a machine with hardly a package: the real ones have thousands of files."""
        for name in ("dpkg/info", "dpkg/updates", "dpkg/triggers", "dpkg/alternatives"):
            os.makedirs(f"{directory}/var/lib/{name}")
        os.makedirs(f"{directory}/var/lib/apt/lists/partial")
        os.makedirs(f"{directory}/var/log/apt")
        with open(f"{directory}/var/lib/dpkg/status", "w") as status:
            for package in ("adduser", "passwd"):
                for name in ("list", "md5sums"):
                    Path(f"{directory}/var/lib/dpkg/info/{package}.{name}").touch()
                status.write(
                    f"Package: {package}\nStatus: install ok installed\nMaintainer: A <a@example.org>\n"
                    "Architecture: all\nVersion: 100\nDescription: it is there\n\n"
                )

    def close(self):
        self.holder.communicate()
        assert self.holder.returncode == 0

    def call(self, *words, **options):
        inside = ["nsenter", "-t", str(self.holder.pid), "-m", "--wdns=" + str(options.pop("cwd"))]
        return subprocess.run([*inside, *words], capture_output=True, timeout=300, **options)

    def listing(self):
        found = {}
        for place in _PLACES:
            for path, here in tree_listing.listing(self.directory + place).items():
                here = {**here, "same": here.get("same") == path}
                found[place if path == "." else f"{place}/{path}"] = here
        return found


def _meaning(found):
    meant = {}
    for path, here in found.items():
        if re.fullmatch(_ABSENT, path):
            continue
        here = {n: here[n] for n in here if n != "mtime"}
        for pattern, read in _READERS:
            if "content" in here and re.fullmatch(pattern, path):
                here["content"] = read(path)
        meant[path] = here
    return meant


@pytest.mark.parametrize("name", ["idmap", "root"])
def test_packages_are_installed_changed_and_purged(request, name, base):
    need("dpkg-deb", "apt-get", "adduser", "useradd", "nsenter", "unshare")
    caller = request.getfixturevalue(name)
    caller.forget()
    done = caller.call("bash", "-ec", _PRELUDE + _PACKAGES)
    assert done.returncode == 0, done.stderr
    show = [f"--show=/etc/{n}" for n in ("shadow", "gshadow", "shadow-", "gshadow-")]
    machines = [_Machine(base / f"{name}-{which}") for which in ("host", "plain")]
    try:
        host, plain = machines

        def verb(*words):
            return host.call(caller.command, *words, cwd=caller.work, env=caller.environ)

        def both(*texts):
            """In worlds on one, without on the other; then applied, and compared."""
            before = host.listing()
            outputs = [verb(*show, "-c", _PRELUDE + text) for text in texts]
            must_agree(host.listing(), before, "after", "before")
            for text, done in zip(texts, outputs, strict=True):
                assert done.returncode == 0, (text, (done.stdout + done.stderr).decode())
            named = {
                change["path"]: change["kind"]
                for change in json.loads(verb("diff", "--json").stdout)["changes"]
            }
            done = verb("apply", "--yes", "--allow-special")
            assert done.returncode == 0, (done.stdout + done.stderr).decode()
            after = host.listing()
            count = {n: k for n, k in named.items() if n.startswith(_PLACES)}
            assert count == named, "other places than packages should touch"
            must_agree(named, changes(before, with_times_that_count(after, before)), "diff", "host")
            for text, done in zip(texts, outputs, strict=True):
                bare = plain.call(
                    "bash", "-c", _PRELUDE + text, cwd=caller.work, env=caller.environ
                )
                assert (bare.returncode, bare.stdout) == (0, done.stdout), (text, bare.stderr)
            must_agree(_meaning(after), _meaning(plain.listing()), "applied", "without a world")

        both(
            "dpkg -i base-1.deb 2>&1; dpkg -i plugin-1.deb 2>&1; cat /opt/habit/known; id habit-base; stat -c '%U %G %a' /opt/habit/state",
            "apt install ./server-1.deb; grep habit /etc/passwd /etc/shadow /etc/group; dpkg --verify habit-base habit-server",
            "sed -i s/1/mine/ /etc/habit.conf; dpkg -i --force-confold base-2.deb 2>&1; cat /etc/habit.conf /opt/habit/base; dpkg -l 'habit-*'",
        )
        assert plain.call("dpkg", "--audit", cwd="/").stdout == b""
        assert host.call("dpkg", "--audit", cwd="/").stdout == b""
        both(
            "apt remove habit-server; dpkg -r habit-plugin 2>&1; cat /opt/habit/known; dpkg -l 'habit-*' | tail -3",
            "apt purge habit-server habit-plugin; dpkg -P habit-base 2>&1; ! id habit-base 2>/dev/null; ! ls /opt/habit 2>/dev/null; dpkg -i base-1.deb 2>&1; dpkg -P habit-base 2>&1",
        )
        assert "habit" not in Path(f"{host.directory}/etc/passwd").read_text()
    finally:
        for machine in machines:
            machine.close()
            remove(Path(machine.directory))


def test_users_are_not_made_where_their_secrets_are_hidden(caller):
    """A world does not see /etc/shadow by itself: useradd says so, and changes nothing."""
    if caller.uid != 0:
        done = caller.substrate("--show", "/etc/shadow", "-c", "cat /etc/shadow")
        assert done.returncode == 1 and b"Permission denied" in done.stderr
        return
    done = caller.substrate("-c", "/usr/sbin/useradd -r habit-nobody")
    assert done.returncode != 0 and b"shadow" in done.stderr
    seen = caller.substrate("--show", "/etc/shadow", "-c", "cat /etc/shadow; cat /etc/gshadow")
    assert seen.stdout == Path("/etc/shadow").read_bytes()
    session = caller.events()
    starts = [e["body"] for e in session if e["event_type"] == "world_start"]
    assert "notes" not in starts[0] and starts[1]["notes"] == ["/etc/shadow was shown on request"]
    refused = caller.substrate("--show", caller.base, "-c", "true")
    assert refused.returncode == 125 and b"SUBSTRATE_HOME lies there" in refused.stderr
