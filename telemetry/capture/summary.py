"""What a span did, in short: for `command_end`, and for who asks what it depended on.

Counts paths, not calls. What was created is known for certain only where the call says so
(O_EXCL, mkdir, link): the layer's own diff knows the rest. Logic only.
"""

from __future__ import annotations

from substrate.telemetry.capture.intents import READS, UNOBSERVED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

#: how many programs and endpoints are named
MOST_NAMED: Final = 32
#: how many paths of a kind are kept apart; further ones are counted by calls
MOST_PATHS: Final = 1_000_000
_MOVES: Final = frozenset(("rename", "delete", "create", "link"))


class Summary:
    """Takes calls, one by one. The sets hold resolved paths."""

    def __init__(self) -> None:
        self.read: set[bytes] = set()
        #: opened to read, where it is not known whether that went well
        self.perhaps_read: set[bytes] = set()
        self.written: set[bytes] = set()
        self.created: set[bytes] = set()
        self.deleted: set[bytes] = set()
        self.renamed: set[tuple[bytes, bytes]] = set()
        self.meta: set[bytes] = set()
        self.looked_up: set[bytes] = set()
        self.listed: set[bytes] = set()
        self.absent: set[bytes] = set()
        self.programs: dict[bytes, int] = {}
        self.endpoints: dict[str, int] = {}
        #: whose first use was to read them
        self.inputs: set[bytes] = set()
        self.input_list: list[bytes] = []  # the same, in their order
        #: what was changed, in any way
        self.changed: set[bytes] = set()
        #: names that lead to something else since then: what lies below them, too
        self.moved: set[bytes] = set()
        self.processes = 0
        self.failed = 0
        self.denied: dict[str, int] = {}
        self._sets = {
            "read": self.read,
            "write": self.written,
            "create": self.created,
            "delete": self.deleted,
            "link": self.created,
            "meta": self.meta,
            "look": self.looked_up,
            "list": self.listed,
            "exec": self.read,
        }

    def add(self, intent: str, path: bytes, path2: bytes | None, result: int | str) -> None:
        """One call on a path."""
        if type(result) is str and result != UNOBSERVED:
            self.failed += 1
            if result in ("ENOENT", "ENOTDIR"):
                self.absent.add(path)
            return
        if intent in READS:
            self._input(path)
        else:
            if intent == "readwrite":
                self._input(path)
            self.changed.add(path)
            if path2 is not None:
                self.changed.add(path2)
            if intent in _MOVES:
                self.moved.add(path)
                if path2 is not None:
                    self.moved.add(path2)
        if intent == "rename":
            self.renamed.add((path, path2 or b""))
            return
        if intent == "readwrite":
            self.read.add(path)
            self.written.add(path)
            return
        if result == UNOBSERVED and intent == "read":
            self.perhaps_read.add(path)
            return
        kept = self._sets.get(intent)
        if kept is not None and len(kept) < MOST_PATHS:
            kept.add(path2 if intent == "link" and path2 is not None else path)

    def _input(self, path: bytes) -> None:
        if path not in self.inputs and path not in self.changed and len(self.inputs) < MOST_PATHS:
            self.inputs.add(path)
            self.input_list.append(path)

    def had_another(self, path: bytes) -> bool:
        """Whether a name may have stood for something else before."""
        return path in self.deleted or (
            path in self.moved and any(path in pair for pair in self.renamed)
        )

    def ran(self, program: bytes) -> None:
        self.programs[program] = self.programs.get(program, 0) + 1

    def reached(self, endpoint: str) -> None:
        self.endpoints[endpoint] = self.endpoints.get(endpoint, 0) + 1

    def refused(self, call: str) -> None:
        """The world denied a call."""
        self.denied[call] = self.denied.get(call, 0) + 1

    def body(self) -> dict[str, Any]:
        """For the line: counts, and the first names."""
        from substrate.telemetry.trace.octets import text_or_b64

        found: dict[str, Any] = {
            "read": len(self.read),
            "written": len(self.written | self.created),
            "created": len(self.created),
            "deleted": len(self.deleted),
            "renamed": len(self.renamed),
            "meta": len(self.meta),
            "looked_up": len(self.looked_up | self.listed),
            "processes": self.processes,
            "failed": self.failed,
            "programs": [text_or_b64(name) for name in list(self.programs)[:MOST_NAMED]],
            "endpoints": list(self.endpoints)[:MOST_NAMED],
        }
        if self.perhaps_read:
            found["perhaps_read"] = len(self.perhaps_read - self.read)
        for name, kept in (("programs", self.programs), ("endpoints", self.endpoints)):
            if len(kept) > MOST_NAMED:
                found[f"more_{name}"] = len(kept) - MOST_NAMED
        if self.denied:
            found["denied"] = dict(sorted(self.denied.items()))
        return found
