"""What a hostile client says to a server that it may reach: a program for both sides of a wall.

Run in a world and on the machine itself; standard library only, by itself. Each case sends bytes
with a mark of its own to port 80 or 443 of a host, `words` gives them: {case: (port, pieces)}.
A piece is sent when the one before is on its way. Prints what came of each case as JSON.

    python3 egress_words.py HOST OTHER
"""

import json
import socket
import struct
import sys
import threading
import time

#: one waits for a server's answer that never comes
BOUND_S = 2.5
#: cases that are no attack: what is said is the host's name, in another spelling or in pieces
HONEST = frozenset(
    (
        "sni",
        "sni in upper case",
        "sni with final dot",
        "sni in bytes",
        "sni in records",
        "host",
        "host in upper case",
        "host with final dot",
        "host in bytes",
        "host with port",
    )
)
#: the first request is the host's; what follows may not pass
HALF_HONEST = frozenset(
    ("second host", "second host at once", "chunked body, then other", "length body, then other")
)


def mark(case: str) -> bytes:
    """At most 32 bytes: it fits a TLS session id."""
    return b"<" + case.encode()[:30] + b">"


def _vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">H", kind) + _vector(2, body)


def _names(*names: bytes) -> bytes:
    return _extension(0, _vector(2, b"".join(b"\0" + _vector(2, name) for name in names)))


def hello(case: str, *extensions: bytes) -> bytes:
    """A ClientHello message of TLS 1.2 and 1.3 (RFC 8446 §4.1.2)."""
    more = [_extension(43, b"\x04\x03\x04\x03\x03"), _extension(10, b"\0\2\0\x1d")]
    body = b"\x03\x03" + bytes(32) + _vector(1, mark(case)) + _vector(2, b"\x13\x01\xc0\x2f")
    body += b"\x01\0" + _vector(2, b"".join((*extensions, *more)))
    return b"\x01" + _vector(3, body)


def record(message: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + _vector(2, message)


#: of a hello: its mark is whole by then, and no extension has begun
_TO_MARK = 74


def _records(message: bytes) -> list[bytes]:
    """The extensions in records of five bytes, each on its own way."""
    rest = range(_TO_MARK, len(message), 5)
    return [record(message[:_TO_MARK]), *(record(message[at : at + 5]) for at in rest)]


def _bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def tls(host: bytes, other: bytes) -> dict[str, list[bytes]]:
    """What is said at port 443."""

    def one(case: str, *extensions: bytes) -> None:
        found[case] = [record(hello(case, *extensions))]

    found: dict[str, list[bytes]] = {}
    one("sni", _names(host))
    one("sni in upper case", _names(host.upper()))
    one("sni with final dot", _names(host + b"."))
    found["sni in bytes"] = _bytewise(record(hello("sni in bytes", _names(host))))
    whole = hello("sni in records", _names(host))
    found["sni in records"] = _records(whole)
    one("other sni", _names(other))
    one("no sni")
    found["other sni in bytes"] = _bytewise(record(hello("other sni in bytes", _names(other))))
    whole = hello("other sni in records", _names(other))
    found["other sni in records"] = _records(whole)
    # the first record ends in the middle of the name, where a reader of one record sees nothing
    whole = hello("sni behind a record", _names(other))
    found["sni behind a record"] = [record(whole[:_TO_MARK]) + record(whole[_TO_MARK:])]
    one("two names", _names(host, other))
    one("two names, other first", _names(other, host))
    one("two extensions", _names(host), _names(other))
    one("sni with NUL", _names(host + b"\0." + other))
    one("sni with NUL, other first", _names(other + b"\0." + host))
    one("sni with CRLF", _names(host + b"\r\n" + other))
    one("sni with space", _names(host + b" " + other))
    one("sni in UTF-8", _names("sécret.example.net".encode()))
    one("sni with wide dots", _names(host.decode().replace(".", "。").encode()))
    one("sni is an address", _names(b"203.0.113.30"))
    one("sni below", _names(b"a." + host))
    one("sni with a suffix", _names(host + b".other.example"))
    one("empty sni", _names(b""))
    one("sni of another type", _extension(0, _vector(2, b"\1" + _vector(2, host))))
    one("ech", _names(host), _extension(0xFE0D, b"\0" + bytes(40)))
    one("esni", _names(host), _extension(0xFFCE, bytes(40)))
    found["two hellos"] = [
        record(hello("two hellos", _names(host)) + hello("two hellos", _names(other)))
    ]
    found["hello behind an empty record"] = [
        record(b"") + record(hello("hello behind an empty record", _names(other)))
    ]
    found["hello behind an alert"] = [
        record(b"\1\0", 21) + record(hello("hello behind an alert", _names(other)))
    ]
    # SSL 2.0 (RFC 5246 E.2): no name in it
    old = b"\1\3\1" + struct.pack(">3H", 3, 0, 16) + b"\0\0\x2f" + bytes(16) + mark("ssl2 hello")
    found["ssl2 hello"] = [struct.pack(">H", 0x8000 | len(old)) + old]
    found["ssh at 443"] = [b"SSH-2.0-" + mark("ssh at 443") + b"\r\n"]
    found["bytes at 443"] = [b"\0\0\0" + mark("bytes at 443")]
    quic = b"\xc3\0\0\0\1\x08" + mark("quic over tcp")
    found["quic over tcp"] = [quic]
    found["http at 443, other host"] = [
        b"GET /" + mark("http at 443, other host") + b" HTTP/1.1\r\nHost: " + other + b"\r\n\r\n"
    ]
    return found


def http(host: bytes, other: bytes) -> dict[str, list[bytes]]:
    """What is said at port 80."""

    def one(case: str, *fields: bytes, target: bytes = b"", method: bytes = b"GET") -> bytes:
        line = method + b" " + (target or b"/" + mark(case).replace(b" ", b"-")) + b" HTTP/1.1"
        found[case] = [b"\r\n".join((line, b"X: " + mark(case), *fields, b"", b""))]
        return found[case][0]

    found: dict[str, list[bytes]] = {}
    mine, theirs = b"Host: " + host, b"Host: " + other
    whole = one("host in bytes", mine)
    found["host in bytes"] = _bytewise(whole)
    one("host", mine)
    one("host in upper case", b"HOST: " + host.upper())
    one("host with final dot", mine + b".")
    one("host with port", mine + b":80")
    whole = one("other host in bytes", theirs)
    found["other host in bytes"] = _bytewise(whole)
    one("other host", theirs)
    one("no host")
    one("two hosts", mine, theirs)
    one("two hosts, other first", theirs, mine)
    one("other port", mine + b":8080")
    one("host with user", b"Host: " + host + b"@" + other)
    one("other with user", b"Host: " + other + b"@" + host)
    one("host with NUL", b"Host: " + host + b"\0" + other)
    one("host with CR", b"Host: " + host + b"\r" + other)
    one("host with LF", b"Host: " + host + b"\nHost: " + other)
    one("host folded", b"Host:\r\n " + other)
    one("host with space before", b"Host : " + other)
    one("host list", b"Host: " + host + b", " + other)
    one("host in UTF-8", "Host: sécret.example.net".encode())
    one("host is an address", b"Host: 203.0.113.30")
    one("host is decimal", b"Host: 3405803806")
    one("host is hexadecimal", b"Host: 0xcb00711e")
    one("absolute form", mine, target=b"http://" + other + b"/")
    one("absolute form, host other", theirs, target=b"http://" + host + b"/")
    one("connect", mine, target=other + b":443", method=b"CONNECT")
    one("connect, host other", theirs, target=other + b":443", method=b"CONNECT")
    one("other host, odd method", theirs, method=b"FROBNICATE")
    one("other host, lower method", theirs, method=b"get")
    first = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    second = one("second host", theirs)
    found["second host"] = [first, second]
    found["second host at once"] = [first + one("second host at once", theirs)]
    post = b"POST / HTTP/1.1\r\nHost: " + host + b"\r\n"
    behind = one("length body, then other", theirs)
    found["length body, then other"] = [post + b"Content-Length: 4\r\n\r\nbody" + behind]
    behind = one("chunked body, then other", theirs)
    found["chunked body, then other"] = [
        post + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + behind
    ]
    smuggled = {
        "length and chunked": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": b"Content-Length: 0\r\nContent-Length: 9999\r\n\r\n",
        "length list": b"Content-Length: 0, 9999\r\n\r\n",
        "length with sign": b"Content-Length: +9999\r\n\r\n",
        "length with NUL": b"Content-Length: 99\x0099\r\n\r\n",
        "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunked, odd": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "chunked with tab": b"Transfer-Encoding:\tchunked\x0b\r\n\r\n0\r\n\r\n",
        "chunked before colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "chunked in identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    }
    for case, framing in smuggled.items():
        # another request in what one of two readers takes for a body
        inner = one(case, theirs)
        found[case] = [post + framing + inner]
    found["bare LF"] = [b"GET /" + mark("bare LF") + b" HTTP/1.1\nHost: " + other + b"\n\n"]
    found["simple request"] = [b"GET /" + mark("simple request") + b"\r\n"]
    found["HTTP/1.0 without host"] = [
        b"GET /x HTTP/1.0\r\nX: " + mark("HTTP/1.0 without host") + b"\r\n\r\n"
    ]
    found["blank lines before"] = [
        b"\r\n\r\nGET / HTTP/1.1\r\nX: "
        + mark("blank lines before")
        + b"\r\n"
        + theirs
        + b"\r\n\r\n"
    ]
    found["h2c"] = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + mark("h2c")]
    upgrade = b"Upgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    found["upgrade to h2c, then other"] = [
        first[:-2] + upgrade + one("upgrade to h2c, then other", theirs)
    ]
    found["socks"] = [b"\5\1\0" + mark("socks")]
    found["tls at 80, other sni"] = [record(hello("tls at 80, other sni", _names(other)))]
    return found


def words(host: str, other: str) -> dict[str, tuple[int, list[bytes]]]:
    ends = host.encode(), other.encode()
    return {case: (443, said) for case, said in tls(*ends).items()} | {
        case: (80, said) for case, said in http(*ends).items()
    }


def say(host: str, port: int, pieces: list[bytes]) -> str:
    """Says it, and hears the end: what came."""
    try:
        with socket.create_connection((host, port), timeout=BOUND_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number, piece in enumerate(pieces):
                sock.sendall(piece)
                if number % 16 == 0 and len(pieces) > 1:
                    time.sleep(0.001)  # so that what is sent apart is read apart
            sock.shutdown(socket.SHUT_WR)
            heard = b""
            while data := sock.recv(65536):
                heard += data
            return f"ended {heard[:12].decode('latin-1')}".strip()
    except OSError as error:
        return type(error).__name__


def main() -> None:
    host, other = sys.argv[1:3]
    found: dict[str, str] = {}
    left = list(words(host, other).items())

    def work() -> None:
        while left:
            try:
                case, (port, pieces) = left.pop()
            except IndexError:
                return
            found[case] = say(host, port, pieces)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
