"""Makes traces, packs and `durable` records for the verifier's tests, sound and unsound.

It shares no code with the library's writer nor with the verifier, and is not fit to write
real sessions: keys are sorted by code point and nothing is synced. trace.md §2, §4, §6;
docs/adr/0001.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import zlib

SESSION = "ses_01890a5d-ac96-774b-bcce-b302099a8057"
OTHER_SESSION = "ses_01890a5d-ac96-774b-bcce-b302099a8058"
GENESIS = "0" * 64


def span(number):
    return f"spn_01890a5d-ac96-774b-bcce-{number:012x}"


def canonical(value) -> bytes:
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    ).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def merkle_root(lines) -> str:
    """RFC 6962 §2.1, as it is written there."""

    def mth(part):
        if not part:
            return hashlib.sha256().digest()
        if len(part) == 1:
            return hashlib.sha256(b"\0" + part[0]).digest()
        k = 1
        while k * 2 < len(part):
            k *= 2
        return hashlib.sha256(b"\1" + mth(part[:k]) + mth(part[k:])).digest()

    return mth(list(lines)).hex()


def record(content: bytes, *, salt=b"s" * 32, deflate=False, state=1, stored=None):
    """One record of the pack (docs/adr/0001) and the reference that a line holds."""
    if stored is None:
        stored = zlib.compress(content) if deflate else content
    commitment = hmac.digest(salt, hashlib.sha256(content).digest(), "sha256")
    covered = struct.pack("<BHQQ", int(deflate), 0, len(content), len(stored))
    check = hashlib.sha256(covered + commitment).digest()[:8]
    if state == 2:
        salt, stored = bytes(32), bytes(len(stored))
    header = b"SBB1" + bytes([state]) + covered + salt + commitment + check
    reference = {
        "commitment": commitment.hex(),
        "encoding": "zlib" if deflate else "identity",
        "media_type": "text/plain",
        "size": len(content),
    }
    return header + stored, reference


class Trace:
    """Lines of one session. `add` gives a line its place; `lines` may be changed freely."""

    def __init__(self, session_id=SESSION, genesis=GENESIS):
        self.session_id = session_id
        self.genesis = genesis
        self.lines: list[bytes] = []

    @property
    def head(self):
        return sha256(self.lines[-1]) if self.lines else self.genesis

    def envelope(self, event_type, body=None, **changes):
        seq = len(self.lines)
        obj = {
            "v": 1,
            "session_id": self.session_id,
            "seq": seq,
            "prev_hash": self.head,
            "ts": f"2026-01-02T03:04:{seq // 1000 % 60:02}.{seq % 1000:03}000Z",
            "mono_us": 1_000_000 + seq,
            "event_type": event_type,
            "component": "shell",
            "origin": "observed",
            "body": {} if body is None else body,
        }
        obj.update(changes)
        return {key: value for key, value in obj.items() if value is not ...}

    def add(self, event_type="annotation", body=None, **changes):
        self.lines.append(canonical(self.envelope(event_type, body, **changes)))
        return self

    def raw(self, line: bytes):
        self.lines.append(line)
        return self

    def start(self):
        return self.add(
            "session_start",
            {"capture": {"backend": "ptrace", "level": "files", "blind_spots": ["mmap"]}},
        )

    def command(self, number=1, **body):
        self.add("command_start", {"display": {"cmd": "true"}, **body}, span_id=span(number))
        return self.add("command_end", {"exit": 0, "duration_us": 7}, span_id=span(number))

    def end(self, drops=0):
        return self.add("session_end", {"status": "success", "drops": drops})

    def seal(self, **changes):
        body = {
            "count": len(self.lines),
            "head_hash": self.head,
            "root": merkle_root(self.lines),
            "drops": 0,
            "key_id": None,
            "sealed_by": "local",
        }
        return self.add("chain_seal", {**body, **changes})

    def content(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)

    def durable(self) -> bytes:
        return b"%020d %s\n" % (len(self.content()), self.head.encode())


def whole(seal=True):
    """A small complete session: start, a command, end, seal."""
    trace = Trace().start().command(1).end()
    return trace.seal() if seal else trace


def save(directory, content, **neighbours):
    """A session directory. `neighbours`: file name without suffix -> bytes."""
    directory.mkdir(exist_ok=True)
    (directory / "trace.jsonl").write_bytes(content)
    for name, raw in neighbours.items():
        (directory / name.replace("_jsonl", ".jsonl")).write_bytes(raw)
    return directory
