"""HTTP/1.1 over a counted stream: answers of known length and digest, echoes, upgrades, files, git.

/                    who answers, as text
/bytes/N             N bytes of content.py, with Content-Length
/chunked/N           the same in chunks
/echo                the body of the request
/received            JSON: what came (method, target, headers, length and SHA-256 of the body)
/slow/MS             an answer after that time
/drip/N              N bytes, one at a time, each in a segment of its own
/status/CODE         an answer with that status
/redirect?URL        302 to the URL
/until-close/N       N bytes without a length; the connection's end is the end
/upgrade             Upgrade: to WebSocket (frames are echoed, RFC 6455) or to any other word
                     (then the bytes are echoed)
/git/…               git http-backend, where the server has repositories
/files/…, /simple/…  files, where the server has a directory
"""

import base64
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.nethosts import content
from tests.nethosts.connections import Stream
from tests.nethosts.http_requests import Bytes, Head, Reader, Request, read_request
from tests.nethosts.tls_stream import Certificates

_TYPES = {".html": "text/html", ".json": "application/json"}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Site:
    """`who`: what `/` says. `files`: a directory. `git`: one with repositories, and as whom."""

    def __init__(self, who: str, files: str = "", git: str = "", git_uid: int = 0) -> None:
        self._who, self._files, self._git, self._uid = who, files, git, git_uid
        self._pages: dict[str, Callable[[Bytes, Request, str], bool | None]] = {
            "": self._front,
            "bytes": self._bytes,
            "chunked": self._chunked,
            "echo": lambda s, r, _: _answer(s, r.body),
            "received": self._received,
            "slow": self._slow,
            "drip": self._drip,
            "status": lambda s, _, rest: _answer(s, b"", status=int(rest)),
            "redirect": self._redirect,
            "until-close": self._until_close,
        }

    def __call__(self, stream: Bytes) -> None:
        """All the requests of a connection."""
        reader = Reader(stream)
        while (request := read_request(reader, stream)) is not None:
            path = urlsplit(request.head.target).path
            word, _, rest = path.lstrip("/").partition("/")
            if request.head.get("upgrade") and word == "upgrade":
                return _upgrade(stream, reader, request.head)
            if word == "git" and self._git:
                more = self._cgi(stream, request, "/" + rest)
            elif word in ("files", "simple") and self._files:
                more = self._file(stream, path)
            elif word in self._pages:
                more = self._pages[word](stream, request, unquote(rest)) is not False
            else:
                more = _answer(stream, b"not here\n", status=404)
            if not more or request.head.get("connection").lower() == "close":
                return None
        return None

    def _front(self, stream: Bytes, request: Request, _: str) -> bool:
        return _answer(stream, f"{self._who}\n".encode(), head=request.head.method == "HEAD")

    def _bytes(self, stream: Bytes, _: Request, rest: str) -> None:
        length = int(rest)
        stream.send(_head(200, [("Content-Length", str(length))]))
        for piece in content.pieces(length):
            stream.send(piece)

    def _chunked(self, stream: Bytes, _: Request, rest: str) -> None:
        stream.send(_head(200, [("Transfer-Encoding", "chunked")]))
        for piece in content.pieces(int(rest)):
            stream.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        stream.send(b"0\r\n\r\n")

    def _received(self, stream: Bytes, request: Request, _: str) -> bool:
        told = {
            "method": request.head.method,
            "target": request.head.target,
            "headers": request.head.headers,
            "length": request.length,
            "sha256": request.sha256,
        }
        return _answer(stream, json.dumps(told).encode())

    def _slow(self, stream: Bytes, _: Request, rest: str) -> bool:
        time.sleep(int(rest) / 1000)
        return _answer(stream, b"at last\n")

    def _drip(self, stream: Bytes, _: Request, rest: str) -> None:
        stream.send(_head(200, [("Content-Length", rest)]))
        for byte in content.content(int(rest)):
            stream.send(bytes((byte,)))
            time.sleep(0.001)

    def _redirect(self, stream: Bytes, request: Request, _: str) -> bool:
        target = unquote(urlsplit(request.head.target).query)
        return _answer(stream, b"", status=302, headers=[("Location", target)])

    def _until_close(self, stream: Bytes, _: Request, rest: str) -> bool:
        stream.send(_head(200, [("Connection", "close")]))
        for piece in content.pieces(int(rest)):
            stream.send(piece)
        return False

    def _file(self, stream: Bytes, path: str) -> bool:
        place = os.path.normpath(self._files + "/" + unquote(path))
        if not place.startswith(self._files):
            return _answer(stream, b"", status=403)
        if os.path.isdir(place):
            if not path.endswith("/"):
                return _answer(stream, b"", status=301, headers=[("Location", path + "/")])
            place += "/index.html"
        if not os.path.isfile(place):
            return _answer(stream, b"not here\n", status=404)
        with open(place, "rb") as file:
            kind = _TYPES.get(os.path.splitext(place)[1], "application/octet-stream")
            return _answer(stream, file.read(), headers=[("Content-Type", kind)])

    def _cgi(self, stream: Bytes, request: Request, path: str) -> bool:
        """git-http-backend(1) as a CGI program (RFC 3875)."""
        environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": self._git,
            "GIT_PROJECT_ROOT": self._git,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.head.method,
            "PATH_INFO": unquote(path),
            "QUERY_STRING": urlsplit(request.head.target).query,
            "CONTENT_TYPE": request.head.get("content-type"),
            "CONTENT_LENGTH": str(request.length),
            "GIT_PROTOCOL": request.head.get("git-protocol"),
            "HTTP_CONTENT_ENCODING": request.head.get("content-encoding"),
            "REMOTE_USER": "anybody",
        }
        who = {"user": self._uid, "group": self._uid, "extra_groups": []} if self._uid else {}
        done = subprocess.run(
            ["git", "http-backend"], input=request.body, env=environ, stdout=-1, timeout=60, **who
        )  # type: ignore[call-overload]
        raw, _, body = done.stdout.partition(b"\r\n\r\n")
        pairs = [line.partition(": ") for line in raw.decode().split("\r\n")]
        headers = [(name, value) for name, _, value in pairs if name and name != "Status"]
        status = next((int(value[:3]) for name, _, value in pairs if name == "Status"), 200)
        return _answer(stream, body, status=status, headers=headers)


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} Answer", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _answer(
    stream: Bytes,
    body: bytes,
    status: int = 200,
    headers: list[tuple[str, str]] | None = None,
    head: bool = False,
) -> bool:
    length = [] if status in (204, 304) else [("Content-Length", str(len(body)))]
    stream.send(_head(status, [*length, *(headers or ())]) + (b"" if head else body))
    return True


def _upgrade(stream: Bytes, reader: Reader, head: Head) -> None:
    wanted = head.get("upgrade")
    headers = [("Upgrade", wanted), ("Connection", "Upgrade")]
    if wanted.lower() == "websocket":
        key = hashlib.sha1(head.get("sec-websocket-key").encode() + _GUID).digest()
        headers.append(("Sec-WebSocket-Accept", base64.b64encode(key).decode()))
    stream.send(_head(101, headers))
    if wanted.lower() != "websocket":
        while data := reader.some():
            stream.send(data)
        return
    while True:
        first, second = b"".join(reader.exactly(2))
        length = second & 127
        if length > 125:
            length = int.from_bytes(b"".join(reader.exactly(2 if length == 126 else 8)), "big")
        mask = b"".join(reader.exactly(4)) if second & 128 else bytes(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(b"".join(reader.exactly(length))))
        if length < 126:
            size = bytes((length,))
        else:
            size = b"\x7e" + length.to_bytes(2, "big") if length < 65536 else b"\x7f" + length.to_bytes(8, "big")  # fmt: skip
        stream.send(bytes((first,)) + size + data)
        if first & 15 == 8:  # close
            return


def handler(options: dict[str, Any]) -> Callable[[Stream], None]:
    """A connection's handler. `tls`: names and their certificates; without them it is plain."""
    site = Site(
        options["who"], options.get("files", ""), options.get("git", ""), options.get("git_uid", 0)
    )
    if not options.get("tls"):
        return site
    certificates = Certificates(options["tls"], ["http/1.1"])

    def secure(stream: Stream) -> None:
        inside = certificates.accept(stream)
        site(inside)
        inside.end()

    return secure
