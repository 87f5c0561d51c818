"""`input_manifest`: what a command depended on (trace.md §4; capture.md §4; replay.md §2)."""

from __future__ import annotations

from substrate.telemetry.trace.pack import BlobRef

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .body import Extra, Text


@body
class FileRead(Body):
    """A file as it was read. `digest` is null, `unknown` true, if it cannot be told what was in it.
    `why`: `changed` or `gone` before it was hashed, `late` (there was no time), `unnamed` (its path
    is not known from the root), or the name of the error that reading it met. `fd`: it was given at
    this descriptor, and its path is the host's; `offset`: where reading it began, if not at 0."""

    path: Text
    size: int | None
    digest: str | None
    unknown: bool | None = None
    why: str | None = None
    fd: int | None = None
    offset: int | None = None
    extra: Extra = ()


@body
class InputManifest(Body):
    """Either the lists, or, if they are long, `list_` (a blob of the same JSON) and counts.

    `missing_kinds`: what the capture backend could not see (`stat`, `readdir` …).
    """

    event_type = "input_manifest"
    counts: dict[str, int]
    missing_kinds: tuple[str, ...]
    files: tuple[FileRead, ...] | None = None
    absent: tuple[Text, ...] | None = None
    directories: tuple[Text, ...] | None = None
    list_: BlobRef | None = None
    extra: Extra = ()
