"""A host unlike this one, made of mounts in a namespace of its own: an overlay as root, a small
/dev/shm, a masked /proc.

A process keeps the mount namespace; commands enter it, one after the other, as they would come
to one host. Nothing of it is seen outside, and all of it ends with that process. Needs root.
"""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.caller import Caller

#: $new: the directory that becomes the root. What every host has, and then into it.
_ENTER = """
    mount --rbind /proc "$new/proc"
    mount --rbind /sys "$new/sys"
    mount -t tmpfs -o mode=755 dev "$new/dev"
    for name in null zero full random urandom tty; do
        : > "$new/dev/$name"
        mount --bind "/dev/$name" "$new/dev/$name"
    done
    mkdir "$new/dev/pts" "$new/dev/shm"
    ln -s /proc/self/fd "$new/dev/fd"
    ln -s pts/ptmx "$new/dev/ptmx"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
    mount -t tmpfs -o mode=1777,size=64m shm "$new/dev/shm"
    cd "$new"
    pivot_root . .
    umount -l .
    cd /
"""
#: this host's directories, each mounted by itself, and nothing that tells of a container
PLAIN_ROOT = """
    mount -t tmpfs -o mode=755 place "$1"
    new=$1
    for path in /*; do
        case $path in /proc|/sys|/dev|/run) mkdir "$new$path"; continue;; esac
        if [ -L "$path" ]; then
            cp -a "$path" "$new"
        elif [ -d "$path" ]; then
            mkdir "$new$path"
            mount --bind "$path" "$new$path"
        fi
    done
"""
OVERLAY_ROOT = """
    mount -t tmpfs -o mode=755 place "$1"
    mkdir "$1/upper" "$1/work" "$1/root"
    new=$1/root
    mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$new"
"""
#: an overlay over an overlay: the kernel stacks no third (FILESYSTEM_MAX_STACK_DEPTH is 2)
OVERLAY_OF_OVERLAY = """
    mount -t tmpfs -o mode=755 place "$1"
    mkdir "$1/upper" "$1/work" "$1/inner" "$1/upper2" "$1/work2" "$1/root"
    mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/inner"
    new=$1/root
    mount -t overlay -o "lowerdir=$1/inner,upperdir=$1/upper2,workdir=$1/work2" overlay "$new"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resident(Caller):
    """A caller whose programs run on the other host. `keeper`: the process that keeps it."""

    keeper: int

    def call(self, *words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        where = options.pop("cwd", self.work)
        enter = ["nsenter", "-t", self.keeper, "-m", "-r", f"--wdns={where}"]
        if self.uid != 0:
            enter += ["setpriv", "--reuid", self.uid, "--regid", self.gid, "--clear-groups"]
        given = {"PATH": os.environ["PATH"], **options.pop("env", self.environ)}
        return super().call(*map(str, enter), *words, env=given, cwd="/", **options)

    def as_them(self) -> dict[str, Any]:
        return {}

    def as_root(self, script: str, *words: object) -> str:
        """Runs a shell script on the other host as root; returns its output."""
        enter = ["nsenter", "-t", str(self.keeper), "-m", "-r", "/bin/sh", "-euc", script, "sh"]
        done = subprocess.run([*enter, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def other_host(
    caller: Caller, place: Path, mounts: str = OVERLAY_ROOT, then: str = ""
) -> Iterator[Resident]:
    """The caller on a host whose root `mounts` makes below `place`; `then` runs in that root.

    What is written there is lost with it: the caller's directories are this host's lowers."""
    place.mkdir()
    script = f"{mounts}{_ENTER}{then}\necho ready\nexec sleep 1000"
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc", script, "sh", place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert keeper.stdout is not None and keeper.stderr is not None
        assert keeper.stdout.readline() == b"ready\n", keeper.stderr.read()
        fields = {f.name: getattr(caller, f.name) for f in dataclasses.fields(Caller)}
        yield Resident(**fields, keeper=keeper.pid)
    finally:
        keeper.kill()
        keeper.communicate()
        place.rmdir()
