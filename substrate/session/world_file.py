"""`world/meta.json` of a session: what its world is made of, so that it can be continued.

Canonical JSON, replaced by rename. Invariant: a world is always mounted again with the
backend, id map and overlay mounts that it began with.
"""

from __future__ import annotations

import os

from substrate.errors import StateError, TraceVersionError
from substrate.session import layer_place
from substrate.session.stack_file import load_stack_file, with_stack_file
from substrate.telemetry.trace.octets import bytes_of, text_or_b64
from substrate.telemetry.trace.parsing import parse
from substrate.telemetry.trace.rfc8785 import CanonicalError, encode
from substrate.values import value
from substrate.world.layers import SCRATCH, LayerStack, OverlayMount
from substrate.world.spec import BACKENDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from substrate.session.store import SessionFiles

#: what is written for a world that an older version would take for another one: its layers lie
#: elsewhere, or stand-ins lie below it
FORMAT = 2
_PLAIN_FORMAT = 1
#: states of a world
OPEN, APPLIED, DISCARDED = "open", "applied", "discarded"


@value
class WorldFile:
    """One world's description. Ids are host ids; times are nanoseconds of CLOCK_REALTIME."""

    name: str
    state: str
    backend: str
    workspace: bytes
    workspace_key: bytes
    mounts: tuple[bytes, ...]  # targets, by index
    read_only: tuple[bytes, ...]
    xattr_prefix: bytes
    id_extents: tuple[tuple[int, int, int], ...]
    uid: int
    gid: int
    started_ns: int
    clock_offset_ns: int | None
    caches: tuple[bytes, ...] = ()  # outside of diff and apply, as scratch directories are
    layers_at: bytes = b""  # holds `layers` instead of the session's world (layer_place.py)
    #: inode of each mount's directory, by index; 0 where it does not matter
    inodes: tuple[int, ...] = ()
    #: (index of the mount, directories of it, whether nothing else is shown): mount_plan.Spine
    spines: tuple[tuple[int, tuple[bytes, ...], bool], ...] = ()
    #: (index of the mount, directory in it) below which foreign owners are adopted (standin.py)
    adopted: tuple[tuple[int, bytes], ...] = ()

    def layers_path(self, files: SessionFiles) -> bytes:
        """The directory of the world's layers."""
        return self.layers_at + b"/layers" if self.layers_at else files.layers_path

    def _inodes(self) -> tuple[int, ...]:
        return self.inodes or (0,) * len(self.mounts)

    def stack(self, files: SessionFiles) -> LayerStack:
        """The world's layers as they are on disk now. Raises StateError where they are gone."""
        return with_stack_file(self.bare_stack(files), files, load_stack_file(files))

    def bare_stack(self, files: SessionFiles) -> LayerStack:
        """What the layers are stacked on and how, without any. Raises StateError where those of
        an open world are gone with a tmpfs."""
        if self.layers_at and self.state == OPEN and not layer_place.is_there(self.layers_at):
            from substrate.session.lost_layers import refuse_if_lost

            refuse_if_lost(files, self.name, self.layers_at)
        stands_in = {place[0] for place in (*self.spines, *self.adopted)}
        return LayerStack(
            directory=self.layers_path(files),
            mounts=tuple(
                OverlayMount(index=i, target=t, inode=inode, stands_in=i in stands_in)
                for i, (t, inode) in enumerate(zip(self.mounts, self._inodes(), strict=True))
            ),
            xattr_prefix=self.xattr_prefix,
            id_extents=self.id_extents if self.backend == "ns-root-idmap" else (),
            started_ns=self.started_ns,
            clock_offset_ns=self.clock_offset_ns,
            workspace=self.workspace,
            scratch=(*SCRATCH, *self.caches),
        )


def _is_special(world: WorldFile) -> bool:
    return bool(world.layers_at or world.spines or world.adopted)


def save_world(files: SessionFiles, world: WorldFile) -> None:
    """Writes the description in place of the older one."""
    plain: dict[str, Any] = {
        "format": FORMAT if _is_special(world) else _PLAIN_FORMAT,
        "name": world.name,
        "state": world.state,
        "backend": world.backend,
        "workspace": text_or_b64(world.workspace),
        "workspace_key": world.workspace_key.decode(),
        "mounts": [text_or_b64(path) for path in world.mounts],
        "read_only": [text_or_b64(path) for path in world.read_only],
        "xattr_prefix": world.xattr_prefix.decode(),
        "id_extents": [list(extent) for extent in world.id_extents],
        "uid": world.uid,
        "gid": world.gid,
        # nanoseconds exceed what JSON numbers hold exactly
        "started_ns": str(world.started_ns),
        "caches": [text_or_b64(path) for path in world.caches],
        "clock_offset_ns": None if world.clock_offset_ns is None else str(world.clock_offset_ns),
        "inodes": [str(inode) for inode in world.inodes],
    }
    if world.layers_at:
        plain["layers_at"] = text_or_b64(world.layers_at)
    if world.spines:
        plain["spines"] = [
            {"mount": index, "ways": [text_or_b64(way) for way in ways], "bare": bare}
            for index, ways, bare in world.spines
        ]
    if world.adopted:
        plain["adopted"] = [
            {"mount": index, "top": text_or_b64(top)} for index, top in world.adopted
        ]
    path = files.world_path + b"/meta.json"
    fd = os.open(path + b".new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, encode(plain) + b"\n")
    finally:
        os.close(fd)
    os.rename(path + b".new", path)


def has_world(files: SessionFiles) -> bool:
    """Whether the session has come as far as having one."""
    return os.path.lexists(files.world_path + b"/meta.json")


def load_world(files: SessionFiles) -> WorldFile:
    """Reads a session's world; raises StateError, or TraceVersionError for a newer format."""
    path = files.world_path + b"/meta.json"
    shown = os.fsdecode(path)
    try:
        with open(path, "rb") as file:
            plain = parse(file.read(1 << 20))
        version = plain["format"]
        if type(version) is int and version > FORMAT:
            raise TraceVersionError(
                f"{shown} has format {version}, this version reads up to {FORMAT}: it was made by "
                "a newer version",
                hint="update substrate, or use --fresh for a new world",
            )
        _check_kinds(plain)
        return WorldFile(
            name=plain["name"],
            state=plain["state"],
            backend=plain["backend"],
            workspace=bytes_of(plain["workspace"]),
            workspace_key=plain["workspace_key"].encode(),
            mounts=tuple(bytes_of(item) for item in plain["mounts"]),
            read_only=tuple(bytes_of(item) for item in plain["read_only"]),
            xattr_prefix=plain["xattr_prefix"].encode(),
            id_extents=tuple((a, b, c) for a, b, c in plain["id_extents"]),
            uid=plain["uid"],
            gid=plain["gid"],
            started_ns=int(plain["started_ns"]),
            clock_offset_ns=(
                None if plain["clock_offset_ns"] is None else int(plain["clock_offset_ns"])
            ),
            # worlds of before there were any have none
            caches=tuple(bytes_of(item) for item in plain.get("caches", ())),
            layers_at=bytes_of(plain["layers_at"]) if "layers_at" in plain else b"",
            inodes=tuple(int(inode) for inode in plain.get("inodes", ())),
            spines=tuple(
                (s["mount"], tuple(bytes_of(way) for way in s["ways"]), s["bare"])
                for s in plain.get("spines", ())
            ),
            adopted=tuple((a["mount"], bytes_of(a["top"])) for a in plain.get("adopted", ())),
        )
    except OSError as error:
        raise StateError(
            f"{shown} cannot be read: {error.strerror}",
            hint="use --fresh for a new world; `substrate session show` still reads the trace",
        ) from error
    except (CanonicalError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{shown} is damaged: {error!r}",
            hint="use --fresh for a new world; `substrate session show` still reads the trace",
        ) from error


def _check_kinds(plain: dict[str, Any]) -> None:
    """What the conversion to a `WorldFile` would let pass. Raises ValueError."""
    if type(plain["format"]) is not int or plain["format"] < 1:
        raise ValueError(f"{plain['format']!r} is no format")
    extents = [number for extent in plain["id_extents"] for number in extent]
    for number in (plain["uid"], plain["gid"], *extents):
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise ValueError(f"{number!r} is no id")
    name = plain["name"]
    if type(name) is not str or not (name[:1] == "w" and name[1:].isdecimal()):
        raise ValueError(f"{name!r} is no world's name")
    if plain["state"] not in (OPEN, APPLIED, DISCARDED):
        raise ValueError(f"{plain['state']!r} is no state")
    if plain["backend"] not in BACKENDS:
        raise ValueError(f"{plain['backend']!r} is no backend")
    if plain["backend"] == "ns-user" and len(plain["id_extents"]) != 2:
        raise ValueError("a rootless world maps one user and one group")
    if plain["backend"] == "ns-root-idmap" and not plain["id_extents"]:
        raise ValueError("the ids of its world are missing")
    if plain["xattr_prefix"] not in ("trusted.", "user."):
        raise ValueError(f"{plain['xattr_prefix']!r} is no prefix of marks")
    count = len(plain["mounts"])
    if len(plain.get("inodes", ())) not in (0, count):
        raise ValueError("its mounts and their inodes are not as many")
    for spine in plain.get("spines", ()):
        if type(spine["bare"]) is not bool:
            raise ValueError(f"{spine['bare']!r} is no truth value")
    for place in (*plain.get("spines", ()), *plain.get("adopted", ())):
        if type(place["mount"]) is not int or not 0 <= place["mount"] < count:
            raise ValueError(f"{place['mount']!r} is none of its mounts")
        for relative in place.get("ways", (place.get("top"),)):
            raw = bytes_of(relative)
            if raw.startswith(b"/") or b"\0" in raw or b".." in raw.split(b"/"):
                raise ValueError(f"{relative!r} is no path in a mount")
    for path in (
        plain["workspace"],
        *plain["mounts"],
        *plain["read_only"],
        *plain.get("caches", ()),
        *((plain["layers_at"],) if "layers_at" in plain else ()),
    ):
        raw = bytes_of(path)
        if not raw.startswith(b"/") or b"\0" in raw or b".." in raw.split(b"/"):
            raise ValueError(f"{path!r} is no absolute path")
