"""The program that asks a webhook: a process of its own, so that nothing it waits for stops the loop.

It reads one JSON object on standard input (`url`, `key` hex, `body`, `id`, `nonce`, `seconds`), POSTs the
body, polls where it is told to, and writes one JSON object on standard output: `{"answer": …, "for": …,
"by": …}`, or `{"failed": why}`. The standard library only, no proxies, no redirects; certificates are
verified; every answer is signed with the key and names the question and its nonce, or it is none.
Format: docs/how-to/approvals.md.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import math
import ssl
import sys
import time
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

QUESTION, ANSWER = "substrate.approval-question/1", "substrate.approval-answer/1"
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LARGEST: Final = 65536
_LONGEST_PAUSE_S: Final = 30.0
_PAUSE_S: Final = 1.0


class Failed(Exception):
    """Why there is no answer, in words for the user."""


def sign(key: bytes, what: str, *parts: str) -> str:
    """The signature of a message: HMAC-SHA256 over its kind and its parts, a line each."""
    text = "\n".join((what, *parts)).encode()
    return "sha256=" + hmac.new(key, text, hashlib.sha256).hexdigest()


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        told = ask(asked)
    except Failed as failed:
        told = {"failed": str(failed)}
    json.dump(told, sys.stdout)


def ask(asked: dict[str, Any]) -> dict[str, str]:
    """Raises Failed."""
    key = bytes.fromhex(asked["key"])
    deadline = time.monotonic() + float(asked["seconds"])
    url = asked["url"]
    response, content = _request("POST", url, asked["body"], key, deadline)
    while response.status == 202:
        pause = _pause(response.headers.get("Retry-After"))
        url = _same_origin(url, response.headers.get("Location"))
        if time.monotonic() + pause >= deadline:
            raise Failed("it gave no answer in time")
        time.sleep(pause)
        response, content = _request("GET", url, "", key, deadline)
    if response.status != 200:
        raise Failed(f"it answered {response.status} {response.reason}"[:200])
    return _answer(response, content, key, asked)


def _request(
    method: str, url: str, body: str, key: bytes, deadline: float
) -> tuple[http.client.HTTPResponse, bytes]:
    parts = urlsplit(url)
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise Failed("it gave no answer in time")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    stamp = str(int(time.time()))
    headers = {
        "User-Agent": "substrate",
        "Accept": "application/json",
        "Connection": "close",
        "X-Substrate-Timestamp": stamp,
        "X-Substrate-Signature": sign(key, "question" if body else "poll", stamp, path, body),
    }
    if body:
        headers["Content-Type"] = "application/json"
    try:
        connection = _connection(parts, left_s)
        connection.request(method, path, body.encode() if body else None, headers)
        response = connection.getresponse()
        content = response.read(_LARGEST + 1)
    except TimeoutError:
        raise Failed("it gave no answer in time") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(f"{type(error).__name__}: {error}"[:300]) from None
    if len(content) > _LARGEST:
        raise Failed(f"its answer is larger than {_LARGEST} bytes")
    return response, content


def _connection(parts: Any, left_s: float) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=left_s, context=context)
    if parts.scheme == "http" and host in LOOPBACK:
        return http.client.HTTPConnection(host, parts.port, timeout=left_s)
    raise Failed("its URL is neither https://… nor http:// of this host itself")


def _same_origin(url: str, location: str | None) -> str:
    found = urljoin(url, location or url)
    if urlsplit(found)[:2] != urlsplit(url)[:2]:
        raise Failed("it names another server to ask")
    return found


def _pause(header: str | None) -> float:
    try:
        seconds = float(header) if header else _PAUSE_S
    except ValueError:
        return _PAUSE_S
    return min(_LONGEST_PAUSE_S, max(0.2, seconds)) if math.isfinite(seconds) else _PAUSE_S


def _answer(
    response: http.client.HTTPResponse, content: bytes, key: bytes, asked: dict[str, Any]
) -> dict[str, str]:
    try:
        text = content.decode()
        given = response.headers.get("X-Substrate-Signature", "")
        if not hmac.compare_digest(given.encode(), sign(key, "answer", text).encode()):
            raise Failed("its answer is not signed with our key")
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Failed("its answer is not JSON") from None
    if not isinstance(found, dict) or found.get("schema") != ANSWER:
        raise Failed(f"its answer is not {ANSWER}")
    if found.get("id") != asked["id"] or found.get("nonce") != asked["nonce"]:
        raise Failed("its answer is to another question")
    answer, scope, by = found.get("answer"), found.get("for", "once"), found.get("by", "")
    if answer not in ("allow", "deny") or scope not in ("once", "session") or type(by) is not str:
        raise Failed("its answer is neither allow nor deny, once or for the session")
    return {"answer": answer, "for": scope, "by": by[:100]}


if __name__ == "__main__":
    main()
