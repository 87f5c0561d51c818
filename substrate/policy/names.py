"""What a program goes by: its file's name and what that is another name of, and who goes by argv[0].

A name proves nothing: whoever may write a file may name it. What does is `program` and `sha256` of a rule.
Invariant: the names here are finitely many, so that a table for the gate can hold them all.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: programs that do what argv[0] says, or else what argv[1] says, in their own process
MULTI_CALL: Final = frozenset(
    (b"busybox", b"toybox", b"coreutils", b"busybox.static", b"busybox-static")
)
#: what busybox and its like do themselves, as far as a rule would speak of it
APPLETS: Final = frozenset(
    b"""
[ [[ ar arch arp arping ash awk base64 basename bc blkdiscard bunzip2 bzcat bzip2 cat chgrp chmod
chown chroot chvt cmp cp cpio crond crontab cut date dc dd deallocvt devmem df diff dirname dmesg
dos2unix dpkg dpkg-deb du echo ed egrep env expand expr factor fallocate false fdisk fgrep find
flock fold free fsfreeze fstrim ftpget ftpput getopt getty grep groups gunzip gzip halt head hexdump
hostid hostname httpd hwclock id ifconfig ifdown ifup init insmod install ionice ip ipcalc kill
killall killall5 last less link ln logger login losetup ls lsmod lzcat lzma md5sum mdev mkdir
mkdosfs mke2fs mkfifo mknod mkpasswd mkswap mktemp modinfo modprobe more mount mt mv nameif nc
netstat nice nl nohup nproc nsenter nslookup nuke od openvt passwd paste patch pgrep pidof ping
ping6 pivot_root pkill poweroff printenv printf ps pwd rdate readlink realpath reboot renice reset
resume rev rm rmdir rmmod route rpm run-init run-parts sed seq setpriv setsid sh sha1sum sha256sum
sha512sum shred shuf sleep sort split ssl_client start-stop-daemon stat strings stty su sulogin
swapoff swapon switch_root sync sysctl tac tail tar taskset tee telnet telnetd test tftp time
timeout top touch tr traceroute true truncate tty ts umount uname unexpand uniq unix2dos unlink
unlzma unshare unxz unzip uptime usleep vi w watch wc wget which who whoami xargs xxd xz xzcat yes
zcat useradd userdel adduser deluser addgroup delgroup chpasswd
""".split()
)
#: programs that are run by links of other names to them, and do what that name says
BY_NAME: Final = frozenset(
    (
        *(
            b"rustup",
            b"kmod",
            b"systemctl",
            b"volta-shim",
            b"mise",
            b"asdf",
            b"snap",
            b"ccache",
            b"distcc",
        ),
        *(b"xtables-nft-multi", b"xtables-legacy-multi", b"lvm", b"ip", b"corepack", b"proto-shim"),
        *MULTI_CALL,
    )
)

#: of those, what does as its own name says unless it is called one of these: another argv[0] is a disguise
_LINKED_AS: Final = {
    b"systemctl": (b"halt", b"poweroff", b"reboot", b"shutdown", b"runlevel", b"telinit", b"init"),
    b"kmod": (b"lsmod", b"modprobe", b"insmod", b"rmmod", b"modinfo", b"depmod"),
}

#: the dynamic loader, which maps a program instead of an exec (ld.so(8))
LOADERS: Final = frozenset(
    (
        *(
            b"ld.so",
            b"ld-linux-x86-64.so.2",
            b"ld-linux-aarch64.so.1",
            b"ld-linux.so.2",
            b"ld-linux-armhf.so.3",
        ),
        *(b"ld-linux.so.3", b"ld-musl-x86_64.so.1", b"ld-musl-aarch64.so.1", b"ld-linux-x32.so.2"),
        *(
            b"ld64.so.2",
            b"ld64.so.1",
            b"ld.so.1",
            b"libc.so",
            b"libc.musl-x86_64.so.1",
            b"libc.so.6",
        ),
        *(b"libc.musl-aarch64.so.1", b"ld-linux-riscv64-lp64d.so.1"),
        *(b"ld-2.%d.so" % minor for minor in range(17, 60)),
    )
)

_VERSIONED: Final = (
    *((b"python3.%d" % n, b"python3", b"python") for n in range(2, 30)),
    *((b"pypy3.%d" % n, b"pypy3", b"pypy") for n in range(2, 30)),
    *((b"pip3.%d" % n, b"pip3", b"pip") for n in range(2, 30)),
    *((b"perl5.%d.%d" % (n, m), b"perl") for n in range(30, 50, 2) for m in range(6)),
    *((b"ruby%d.%d" % (n, m), b"ruby") for n in (2, 3, 4) for m in range(10)),
    *((b"gem%d.%d" % (n, m), b"gem") for n in (2, 3, 4) for m in range(10)),
    *((b"php%d.%d" % (n, m), b"php") for n in (7, 8, 9) for m in range(10)),
    *((b"lua5.%d" % n, b"lua") for n in range(1, 6)),
    *(
        (b"%s-%d" % (tool, n), tool)
        for tool in (b"gcc", b"g++", b"clang", b"clang++")
        for n in range(4, 26)
    ),
)
#: a file's name to what it is run as: what links on usual systems lead to it
ALSO: Final[dict[bytes, tuple[bytes, ...]]] = {
    **{names[0]: names[1:] for names in _VERSIONED},
    b"python3": (b"python",),
    b"pip3": (b"pip",),
    b"pypy3": (b"pypy",),
    b"node": (b"nodejs",),
    b"nodejs": (b"node",),
    b"dash": (b"sh",),
    b"mawk": (b"awk",),
    b"gawk": (b"awk",),
    b"original-awk": (b"awk",),
    b"bsdtar": (b"tar",),
    b"vim.basic": (b"vim", b"vi"),
    b"vim.tiny": (b"vim", b"vi"),
    b"vim.nox": (b"vim", b"vi"),
    b"vim": (b"vi",),
    b"nc.openbsd": (b"nc",),
    b"nc.traditional": (b"nc",),
    b"ncat": (b"nc",),
    b"gmake": (b"make",),
    b"npm-cli.js": (b"npm",),
    b"npx-cli.js": (b"npx",),
    b"yarn.js": (b"yarn",),
    b"pnpm.cjs": (b"pnpm",),
    b"sudo-rs": (b"sudo",),
    b"sudo.ws": (b"sudo",),
}


def last_name(path: bytes) -> bytes:
    """Of a path or an argv[0]; a login shell's dash is none of it."""
    name = path.rpartition(b"/")[2]
    return name[1:] if name[:1] == b"-" and len(name) > 1 else name


def goes_by(file: bytes, called: bytes) -> bytes:
    """Which of its two names tells what a program does: its file's, or what argv[0] says."""
    if file not in BY_NAME or not called or called in BY_NAME:
        return file
    if called.startswith((b"busybox", b"toybox")):
        return file  # then argv[1] says it
    linked = _LINKED_AS.get(file)
    if linked is not None and called not in linked:
        return file
    if file == b"ip" and (called[:2] != b"ip" or len(called) == 2):
        return file
    return called


def also_called(name: bytes) -> tuple[bytes, ...]:
    """The names of files that `names_of` says are this one, too."""
    if not _turned:
        for file, others in ALSO.items():
            for other in others:
                _turned[other] = (*_turned.get(other, ()), file)
    return _turned.get(name, ())


_turned: dict[bytes, tuple[bytes, ...]] = {}


def names_of(name: bytes) -> tuple[bytes, ...]:
    return (name, *ALSO.get(name, ()))
