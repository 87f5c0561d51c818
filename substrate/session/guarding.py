"""What the supervisor does for a world without namespaces (`guard`), beside what it does for all.

Before the command: a private copy of the workspace, a directory for temporary files, the list of what
may be read. After it: what the copy came to goes into the command's layer, and the copy goes. On disk:
`<world>/guard/` holds `copy/<name>` with the workspace, `tmp`, `manifest` and perhaps `opened` (harvest.py), and is there only while a
command runs; one that a killed supervisor left is harvested by the next. Invariant: a layer is complete
before anybody looks at it. Spec: world.md §1.
"""

from __future__ import annotations

import os

from substrate.errors import HostUnsupported, UsageError
from substrate.world import mountinfo, readable
from substrate.world.spec import WorldSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.session.covers import Covers
    from substrate.session.settings import Settings
    from substrate.session.store import SessionFiles
    from substrate.session.world_setup import HostView
    from substrate.world.cgroup import CgroupSet
    from substrate.world.layers import LayerStack
    from substrate.world.spec import Frame

NOTE = (
    "this world has no namespaces (guard): the command works in a private copy of the workspace at another "
    "path, other places are read-only, and it can see the host's processes (SECURITY.md)"
)
#: what every other world makes itself: of /dev some devices are granted (landlock.py), of /run all but
#: what holds secrets
_NOT_WHOLE = (b"/dev", b"/run/secrets", b"/run/credentials", b"/run/user")

#: paths of one kind, in notes
_MOST_TOLD = 3


def refuse_settings(settings: Settings, host: HostView, workspace: bytes) -> None:
    """What cannot be had without namespaces is refused, not left out. Raises UsageError, HostUnsupported."""
    for name, wanted in (
        ("--net host", settings.net == "host"),
        ("--publish", bool(settings.publish)),
        ("--userns", settings.userns),
        ("--rw", bool(settings.rw)),
        ("--shell-only", settings.shell_only),
        ("--ro", bool(settings.ro)),
    ):
        if wanted:
            raise UsageError(
                f"{name} is not to be had with the backend guard",
                hint="leave it out, or run where a world has namespaces (`substrate doctor`)",
            )
    if workspace == b"/":
        raise HostUnsupported(
            "the workspace is /, which `guard` cannot copy",
            hint="change to the directory that you work in",
        )


def root(files: SessionFiles) -> bytes:
    return files.world_path + b"/guard"


def copy_path(files: SessionFiles, stack: LayerStack) -> bytes:
    """Where the command finds its workspace."""
    return root(files) + b"/copy/" + (os.path.basename(stack.mounts[0].target) or b"root")


def temporary(files: SessionFiles) -> bytes:
    return root(files) + b"/tmp"


def inside(files: SessionFiles, stack: LayerStack, path: bytes) -> bytes:
    """Where a path of the host is for the command: in the copy, if it lies in the workspace."""
    target = stack.mounts[0].target
    if path == target or mountinfo.is_below(path, target):
        return copy_path(files, stack) + path[len(target) :]
    return path


def variables(files: SessionFiles, cwd: bytes, *, network: bool) -> dict[bytes, bytes]:
    """What programs are told of the place. `use-vc`: libc asks its name servers over TCP, as there is no UDP
    (resolv.conf(5))."""
    own = {
        b"PWD": cwd,
        b"TMPDIR": temporary(files),
        b"XDG_CACHE_HOME": temporary(files) + b"/cache",
    }
    if network:
        own[b"RES_OPTIONS"] = b"use-vc"
    return own


def prepare(
    files: SessionFiles, stack: LayerStack, numbers: tuple[int, ...], covers: Covers
) -> tuple[str, ...]:
    """Makes the copy for a command over the layers `numbers`; what a person should know of it. Raises
    OSError, HostUnsupported."""
    from substrate.world import private_copy

    for path in (root(files), root(files) + b"/copy", temporary(files)):
        os.mkdir(path, 0o700)
    skip = (*covers.directories, *covers.files)
    to = copy_path(files, stack)
    manifest = private_copy.make_copy(stack, stack.mounts[0], numbers, to, skip)
    private_copy.save_manifest(root(files) + b"/manifest", manifest)
    left = sorted(os.fsdecode(path) or "." for path in manifest.left_out)
    if not left:
        return ()
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return (f"not in the copy of the workspace: {', '.join(left[:3])}{more}",)


def harvest(files: SessionFiles, stack: LayerStack, number: int) -> tuple[str, ...]:
    """Puts what a command did to its copy into layer `number`; nothing where there is no whole copy. Returns
    what a person should know of it.
    No process of the world is left. Raises OSError, StateError."""
    if not os.path.lexists(root(files)):
        return ()
    from substrate.world import harvest as reaping
    from substrate.world import private_copy
    from substrate.world.upper import Marks

    try:
        manifest = private_copy.load_manifest(root(files) + b"/manifest")
    except FileNotFoundError:
        manifest = None  # it was not whole: no command ran in it
    not_taken: frozenset[bytes] = frozenset()
    if manifest is not None:
        mount = stack.mounts[0]
        upper = stack.upper(number, mount.index)
        marks = Marks(stack.xattr_prefix)
        copy, opened = copy_path(files, stack), root(files) + b"/opened"
        not_taken = reaping.harvest(copy, manifest, upper, marks, opened)
    remove(files)
    return tuple(
        f"{os.fsdecode(path)} is hidden from the world, or holds what it cannot see: what the command put in its place is dropped"
        for path in sorted(not_taken)[:_MOST_TOLD]
    )


def remove(files: SessionFiles) -> None:
    """Takes the copy away. Raises OSError."""
    from substrate.world.removal import remove_tree

    fd = os.open(files.world_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.path.lexists(root(files) + b"/manifest"):
            os.unlink(root(files) + b"/manifest")  # from here on it is not whole
        remove_tree(fd, b"guard")
    finally:
        os.close(fd)


def spec_of(
    files: SessionFiles, stack: LayerStack, covers: Covers, cgroups: CgroupSet, frame: Frame
) -> WorldSpec:
    """What the zygote needs to start such a world."""
    hidden = (*covers.directories, *covers.files)
    allowed = readable.readable((*hidden, *_NOT_WHOLE), _names)
    return WorldSpec(
        frame=frame,
        number=1,
        run_dir=files.run_path,
        overlays=(),
        hidden_directories=covers.directories,
        hidden_files=covers.files,
        read_only=(),
        viewed=(),
        cgroup_dirs=cgroups.directories,
        writable=(copy_path(files, stack), temporary(files)),
        readable=allowed.paths,
    )


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except OSError:
        return []  # whoever cannot list it is granted nothing in it
