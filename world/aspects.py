"""What counts of a file when the host's is compared with what the world began from.

Not an identity (identity.py): no inode, no times, so a file that was rewritten with what it
held, or renamed away and back, is the same. Contents, targets of symlinks and attributes come
as keyed digests (trace.md §6), because what is kept of the world's beginning stands in the
trace. Its plain form there is the `base` of an entry of `fs_diff` (docs/reference/trace-format.md).
Invariant: two files of equal aspects differ in nothing that an apply could overwrite but
times. Spec: world.md §5.
"""

from __future__ import annotations

from substrate.errors import TraceCorrupt
from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from substrate.world.change import FileState

    Keyed = Callable[[bytes], str]

#: names of what can differ; `TYPE` is alone, `CLOSED` means that it could not be compared
TYPE, CONTENT, TARGET, DEVICE = "type", "content", "target", "device"
MODE, OWNER, ATTRIBUTES, CLOSED = "mode", "owner", "xattr", "closed"

#: why it is not known what the world began from; GONE: whether there was anything
CHANGED, SAME_TICK, CLOCK, REPLACED = "changed", "same_tick", "clock", "replaced"
GONE = "gone"
DOUBTS = (CHANGED, SAME_TICK, CLOCK, REPLACED, GONE)
#: a doubt of ours, not of a record: whether an apply was taken back by hand or the host went on
REVERTED = "reverted"


@value
class Aspects:
    """One file. `uid`, `gid`: None where a world has nobody to tell apart, or an id outside its
    map. `content`: of a regular file, None where it could not be read. `target`: of a symlink.
    `device`: of a device node. `attributes`: of all extended ones that count, "" for none, None
    where they could not be read."""

    type: str
    mode: int
    uid: int | None
    gid: int | None
    content: str | None = None
    target: str | None = None
    device: int = 0
    attributes: str | None = ""


def attributes_digest(attributes: Mapping[str, bytes] | None, keyed: Keyed) -> str | None:
    """One digest of all of them."""
    if not attributes:
        return None if attributes is None else ""
    parts = [
        b"%d:%s%d:%s" % (len(raw), raw, len(content), content)
        for raw, content in sorted(
            (name.encode("utf-8", "surrogateescape"), content)
            for name, content in attributes.items()
        )
    ]
    return keyed(b"".join(parts))


def aspects_of(
    state: FileState,
    content: str | None,
    attributes: Mapping[str, bytes] | None,
    keyed: Keyed,
    *,
    owned: bool = True,
) -> Aspects:
    """The aspects of a state that was found, with what was read besides. `owned`: whether its
    owner tells anything (`owns_nothing`)."""
    return Aspects(
        type=state.type,
        mode=state.mode,
        uid=state.uid if owned else None,
        gid=state.gid if owned else None,
        content=content,
        target=None if state.link is None else keyed(state.link),
        device=state.rdev if state.type in ("char", "block") else 0,
        attributes=attributes_digest(attributes, keyed),
    )


def owns_nothing(prefix: bytes) -> bool:
    """Whether a world with these marks has one user and one group: in its layers all is theirs,
    whosever the host's file was."""
    return prefix == b"user."


def differ(a: Aspects, b: Aspects) -> frozenset[str]:
    """In what two files differ, by the names above. Of a symlink neither mode nor attributes
    count; what could not be read on either side is CLOSED, and an owner that is None no
    difference."""
    if a.type != b.type:
        return frozenset((TYPE,))
    found = set()
    if a.type == "file":
        if a.content is None or b.content is None:
            found.add(CLOSED)
        elif a.content != b.content:
            found.add(CONTENT)
    if a.target != b.target:
        found.add(TARGET)
    if a.device != b.device:
        found.add(DEVICE)
    for mine, others in ((a.uid, b.uid), (a.gid, b.gid)):
        if mine != others and mine is not None and others is not None:
            found.add(OWNER)
    if a.type != "symlink":
        if a.mode != b.mode:
            found.add(MODE)
        if a.attributes is None or b.attributes is None:
            found.add(CLOSED)
        elif a.attributes != b.attributes:
            found.add(ATTRIBUTES)
    return frozenset(found)


def plain_base(
    state: FileState,
    attributes: Mapping[str, bytes] | None,
    keyed: Keyed,
    *,
    owned: bool = True,
) -> dict[str, Any]:
    """The `base` of an entry. A regular file's digest stands beside it, in `digest_before`.

    A dict at once and not by way of `Aspects`: one is made for each entry of a record."""
    found: dict[str, Any] = {
        "type": state.type,
        "mode": state.mode,
        "uid": state.uid if owned else None,
        "gid": state.gid if owned else None,
    }
    if state.link is not None:
        found["target"] = keyed(state.link)
    elif state.rdev and state.type in ("char", "block"):
        found["device"] = state.rdev
    if attributes is None or attributes:
        found["attributes"] = attributes_digest(attributes, keyed)
    return found


def plain_aspects(aspects: Aspects) -> dict[str, Any]:
    """The same of a file whose aspects are known already. Its digest stands beside it."""
    found: dict[str, Any] = {
        "type": aspects.type,
        "mode": aspects.mode,
        "uid": aspects.uid,
        "gid": aspects.gid,
    }
    if aspects.target is not None:
        found["target"] = aspects.target
    if aspects.device:
        found["device"] = aspects.device
    if aspects.attributes != "":
        found["attributes"] = aspects.attributes
    return found


def parse_base(plain: Mapping[str, Any], content: str | None) -> Aspects | str:
    """What `plain_base` gave, or the doubt that stands in its place. Raises TraceCorrupt."""
    doubt = plain.get("unknown")
    if doubt is not None:
        if doubt not in DOUBTS:
            return CHANGED  # a later version's reason: in doubt all the same
        return str(doubt)
    kinds = {"type": str, "mode": int}
    if not all(type(plain.get(name)) is kind for name, kind in kinds.items()):
        raise TraceCorrupt(f"the base of an entry of fs_diff is {plain!r:.80}", code="body")
    return Aspects(
        type=plain["type"],
        mode=plain["mode"],
        uid=plain.get("uid"),
        gid=plain.get("gid"),
        content=content,
        target=plain.get("target"),
        device=plain.get("device", 0),
        attributes=plain.get("attributes", ""),
    )
