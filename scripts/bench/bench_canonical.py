"""Canonicalise one 600-byte event and hash it: one core, no file.

Two paths of the product (orjson loaded; standard library only) and the PyPI implementations
of RFC 8785, each with SHA-256 of the bytes that it makes. All must make the same bytes, which
is checked before anything is timed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import events
import harness
from harness import BenchFailed, Context, Result, in_child, interleave

COUNT = 5000


def bench(context: Context) -> list[Result]:
    work: dict[str, Callable[[], float]] = {
        "standard library": lambda: _time(_product(orjson=False)),
        "with orjson": lambda: _time(_product(orjson=True)),
        "sha256 only": _hash_only,
    }
    notes = {}
    for name, function in (("rfc8785", "dumps"), ("jcs", "canonicalize")):
        if context.peers and importlib.util.find_spec(name):
            work[f"{name} (PyPI)"] = lambda n=name, f=function: _time(_peer(n, f))
            notes[f"{name} (PyPI)"] = metadata.version(name)
    taken = interleave(
        {name: lambda w=w: in_child(w) for name, w in work.items()},
        rounds=context.rounds,
        seed=context.seed,
        reference="sha256 only",
    )
    return [
        Result(
            "canonical",
            name,
            context.placement,
            "events/s",
            tuple(COUNT / s.seconds for s in samples),
            rss_kib=max(s.rss_kib for s in samples),
            note=notes.get(name, ""),
        )
        for name, samples in taken.items()
    ]


def _product(*, orjson: bool) -> Callable[[Any], bytes]:
    from substrate.telemetry.trace.canonical import accelerate, encode_line

    if orjson:
        accelerate()
    return encode_line


def _peer(module: str, function: str) -> Callable[[Any], bytes]:
    encode: Callable[[Any], bytes] = getattr(importlib.import_module(module), function)
    return encode


def _time(encode: Callable[[Any], bytes]) -> float:
    """Seconds for COUNT different objects; the first hundred warm up."""
    from substrate.telemetry.trace.rfc8785 import encode as reference

    objects = [events.envelope_object(number) for number in range(COUNT)]
    for given in objects[:100]:
        if encode(given) != reference(given):
            raise BenchFailed("two encoders do not agree")
    sha256 = hashlib.sha256
    start = time.perf_counter()
    for given in objects:
        sha256(encode(given)).hexdigest()
    return time.perf_counter() - start


def _hash_only() -> float:
    line = bytes(events.LINE_BYTES)
    sha256 = hashlib.sha256
    start = time.perf_counter()
    for _ in range(COUNT):
        sha256(line).hexdigest()
    return time.perf_counter() - start


if __name__ == "__main__":
    harness.main(bench)
