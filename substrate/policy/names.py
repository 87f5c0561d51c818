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
