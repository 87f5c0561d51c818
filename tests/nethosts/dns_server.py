"""A small name server (RFC 1035) that owns every name there is, over UDP and TCP.

Its records are a file of JSON, looked at before each answer, so a name can move between two
questions: name → {"A": […], "AAAA": […], "CNAME": "…", "TXT": […], "PTR": "…", "TTL": seconds}.
Other keys: "TURNS": a list of such records, one after the other, the last stays; "SILENT": no
answer at all; "RCODE": an error. A name that is not in the file does not exist (NXDOMAIN).
Each question is in the log before it is answered.
"""

import json
import os
import selectors
import socket
import struct
import threading
from typing import Any

from tests.nethosts.connections import Log, Stream, serve

_TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28}
_TYPES |= {"SRV": 33, "OPT": 41, "SVCB": 64, "HTTPS": 65, "ANY": 255}
_WORDS = {number: word for word, number in _TYPES.items()}
_SERVFAIL, _NXDOMAIN, _TRUNCATED, _AUTHORITATIVE = 2, 3, 0x0200, 0x0400


class Zone:
    """The records of the file, and how often a name with turns has been asked."""

    def __init__(self, path: str, log: Log) -> None:
        self._path, self._log, self._lock = path, log, threading.Lock()
        self._stamp: object = None
        self._records: dict[str, Any] = {}
        self._turns: dict[tuple[str, str], int] = {}

    def answer(self, packet: bytes, transport: str, peer: Any, limit: int) -> bytes:
        """The answer to a question; b"" for none."""
        with self._lock:
            return self._answer(packet, transport, peer, limit)

    def _answer(self, packet: bytes, transport: str, peer: Any, limit: int) -> bytes:
        number, flags, _, _, _, extra = struct.unpack_from(">6H", packet)
        name, end = _read_name(packet, 12)
        kind, _ = struct.unpack_from(">2H", packet, end)
        question = packet[12 : end + 4]
        word = _WORDS.get(kind, f"TYPE{kind}")
        self._log.write("query", name=name, type=word, transport=transport, peer=peer[:2])
        if extra and transport == "udp" and packet[end + 4 : end + 7] == b"\0\0\x29":  # EDNS
            limit = max(limit, struct.unpack_from(">H", packet, end + 7)[0])
        found = self._find(name.lower(), word)
        if "SILENT" in found:
            return b""
        answers = b"".join(_records(name, found.get("chain", []), found, word))
        count = len(found.get("chain", [])) + len(found.get(word, []))
        code = found["RCODE"]
        head = 0x8000 | (flags & 0x0100) | _AUTHORITATIVE | code
        if 12 + len(question) + len(answers) > limit:
            answers, count, head = b"", 0, head | _TRUNCATED
        return struct.pack(">6H", number, head, 1, count, 0, 0) + question + answers

    def _find(self, name: str, word: str) -> dict[str, Any]:
        self._look()
        chain: list[str] = []
        while True:
            record = self._records.get(name)
            if record is None:
                return {"RCODE": 0 if chain else _NXDOMAIN, "chain": chain}
            if "TURNS" in record:
                turn = self._turns.get((name, word), 0)
                self._turns[name, word] = turn + 1
                record = record["TURNS"][min(turn, len(record["TURNS"]) - 1)]
            if "CNAME" not in record or word == "CNAME" or len(chain) > 8:
                known = {"RCODE": 0, "chain": chain, **record}
                for single in ("CNAME", "PTR"):
                    if single in known:
                        known[single] = [known[single]]
                return known
            name = record["CNAME"]
            chain.append(name)

    def _look(self) -> None:
        """Reads the file again when it is another: it is replaced, never written into."""
        state = os.stat(self._path)
        stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
        if stamp != self._stamp:
            with open(self._path, encoding="utf-8") as file:
                self._records = json.load(file)
            self._stamp = stamp
            self._turns.clear()


def _records(name: str, chain: list[str], found: dict[str, Any], word: str) -> list[bytes]:
    made, ttl = [], found.get("TTL", 1)
    for target in chain:
        made.append(_record(name, "CNAME", ttl, _write_name(target)))
        name = target
    for value in found.get(word, []):
        if word == "A":
            data = socket.inet_pton(socket.AF_INET, value)
        elif word == "AAAA":
            data = socket.inet_pton(socket.AF_INET6, value)
        elif word == "TXT":
            text = value.encode()
            parts = [text[i : i + 255] for i in range(0, len(text), 255)]
            data = b"".join(bytes((len(part),)) + part for part in parts)
        else:
            data = _write_name(value)
        made.append(_record(name, word, ttl, data))
    return made


def _record(name: str, word: str, ttl: int, data: bytes) -> bytes:
    return _write_name(name) + struct.pack(">HHIH", _TYPES[word], 1, ttl, len(data)) + data


def _write_name(name: str) -> bytes:
    labels = [label.encode("latin-1") for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def _read_name(packet: bytes, at: int) -> tuple[str, int]:
    labels = []
    while size := packet[at]:
        if size > 63:
            raise ValueError("a compressed name in a question")
        labels.append(packet[at + 1 : at + 1 + size].decode("latin-1"))
        at += 1 + size
    return ".".join(labels), at + 1


def run(
    listeners: list[socket.socket], sockets: list[socket.socket], log: Log, options: dict[str, Any]
) -> None:
    zone = Zone(options["records"], log)

    def stream_of(stream: Stream) -> None:
        held = b""
        while data := stream.receive():
            held += data
            while len(held) > 2 and len(held) >= 2 + int.from_bytes(held[:2], "big"):
                end = 2 + int.from_bytes(held[:2], "big")
                told = zone.answer(held[2:end], "tcp", stream.socket.getpeername(), 65535)
                held = held[end:]
                if told:
                    stream.send(len(told).to_bytes(2, "big") + told)

    threading.Thread(target=serve, args=(listeners, log, stream_of), daemon=True).start()
    chosen = selectors.DefaultSelector()
    for sock in sockets:
        chosen.register(sock, selectors.EVENT_READ, sock)
    while True:
        for key, _ in chosen.select():
            packet, peer = key.data.recvfrom(65536)
            try:
                told = zone.answer(packet, "udp", peer, 512)
            except (ValueError, IndexError, struct.error) as error:
                log.write("bad query", peer=peer[:2], failure=str(error), packet=packet.hex())
                continue
            if told:
                key.data.sendto(told, peer)
