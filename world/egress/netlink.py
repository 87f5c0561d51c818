"""Netlink: messages and attributes as bytes, and one request with its answers.

Not a netlink library: no multicast, no families but what a world's network needs. What is asked
for is done by the kernel while it takes the request, so the answers lie in the socket when
sendto(2) returns: nothing here ever waits. Invariant: an answer counts only from the kernel (port
0), and reading ends after ANSWERS_MAX datagrams. A failure is an OSError whose text has the step,
errno's text, and what the kernel said in words where it did (extended acknowledgement).

Sources: netlink(7), RFC 3549; <linux/netlink.h>; netlink_ack in net/netlink/af_netlink.c.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

ROUTE: Final = 0
SOCK_DIAG: Final = 4
NETFILTER: Final = 12

REQUEST: Final = 0x1
ACK: Final = 0x4
EXCLUSIVE: Final = 0x200
CREATE: Final = 0x400
APPEND: Final = 0x800

ERROR: Final = 2  # also what an acknowledgement is: with errno 0
NESTED: Final = 0x8000

#: no request here has more answers: one for each message that failed, and one at the end
ANSWERS_MAX: Final = 64
_ANSWER_BYTES: Final = 32768
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SOL_NETLINK: Final = 270
_CAP_ACK: Final = 10  # an error repeats only the header of what was asked
_EXT_ACK: Final = 11
_ACK_TLVS: Final = 0x200
_ACK_TEXT: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR_BODY: Final = 20  # errno, and the header that is repeated


class BadMessage(ValueError):
    """Bytes that are no netlink messages; .args[0] says why."""


@value
class Message:
    kind: int
    flags: int
    sequence: int
    body: bytes


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message. `body` must be a multiple of 4 long where another message follows it."""
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded. Raises ValueError where it is longer than 16 bits can say."""
    size = 4 + len(payload)
    if size > 0xFFFF:
        raise ValueError(f"an attribute of {size} bytes")
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0" * (-size % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def parse_messages(datagram: bytes) -> list[Message]:
    """Every message of a datagram; raises BadMessage."""
    found = []
    at = 0
    while at < len(datagram):
        if at + 16 > len(datagram):
            raise BadMessage("a message's header is cut")
        size, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, at)
        if size < 16 or at + size > len(datagram):
            raise BadMessage(f"a message of {size} bytes where {len(datagram) - at} are left")
        body = datagram[at + 16 : at + size]
        found.append(Message(kind=kind, flags=flags, sequence=sequence, body=body))
        at += size + -size % 4
    return found


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """kind → payload; the last one of a kind counts. Raises BadMessage."""
    found = {}
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise BadMessage("an attribute's header is cut")
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > len(data):
            raise BadMessage(f"an attribute of {size} bytes where {len(data) - at} are left")
        found[kind & _TYPE_MASK] = data[at + 4 : at + size]
        at += size + -size % 4
    return found


def connect(protocol: int, step: str) -> _socket.socket:
    """A socket to the kernel, in the network namespace that we are in. Raises OSError."""
    kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    try:
        socket = _socket.socket(_socket.AF_NETLINK, kind, protocol)
    except OSError as error:
        raise failure(error.errno or errno.EIO, f"{step}: socket") from None
    for option in (_CAP_ACK, _EXT_ACK):
        try:
            socket.setsockopt(_SOL_NETLINK, option, 1)
        except OSError as error:  # before 4.12; then there are no words, and that is all
            if error.errno != errno.ENOPROTOOPT:
                socket.close()
                raise failure(error.errno or errno.EIO, f"{step}: options") from None
    return socket


def borrow(fd: int, protocol: int) -> _socket.socket:
    """A socket object for a descriptor that stays the caller's: detach it, do not close it."""
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, protocol, fileno=fd)


def ask(socket: _socket.socket, request: bytes, step: str) -> list[Message]:
    """Sends it and gives all that the kernel answered, errors among it. Raises OSError."""
    try:
        socket.sendto(request, _socket.MSG_DONTWAIT, (0, 0))
    except OSError as error:
        raise failure(error.errno or errno.EIO, f"{step}: send") from None
    answers: list[Message] = []
    for _ in range(ANSWERS_MAX):
        try:
            datagram, (port, _groups) = socket.recvfrom(_ANSWER_BYTES, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
        except OSError as error:
            raise failure(error.errno or errno.EIO, f"{step}: receive") from None
        if port != 0:
            continue
        try:
            answers.extend(parse_messages(datagram))
        except BadMessage as error:
            raise failure(errno.EBADMSG, step, str(error)) from None
    return answers


def command(
    socket: _socket.socket, request: bytes, last: int, step: str, part: Callable[[int], str]
) -> None:
    """Sends messages of which the one numbered `last` asks for an acknowledgement. Raises OSError
    for the first that failed, called `step: part(its number)`, or where no answer came."""
    acknowledged = False
    for answer in ask(socket, request, step):
        if answer.kind != ERROR:
            continue
        number, text = parse_error(answer)
        if number:
            raise failure(number, f"{step}: {part(answer.sequence)}", text)
        acknowledged |= answer.sequence == last
    if not acknowledged:
        raise failure(errno.EPROTO, step, "the kernel did not answer")


def parse_error(answer: Message) -> tuple[int, str]:
    """(errno, the kernel's words or "") of an ERROR message; 0 for an acknowledgement."""
    if len(answer.body) < _ERROR_BODY:
        return errno.EBADMSG, "an error message that is cut"
    (number,) = struct.unpack_from("=i", answer.body)
    text = ""
    if answer.flags & _ACK_TLVS:
        try:
            words = parse_attributes(answer.body[_ERROR_BODY:]).get(_ACK_TEXT, b"")
        except BadMessage:  # the request is repeated in full there: an old kernel's way
            words = b""
        text = words.rstrip(b"\0").decode("ascii", "replace")
    return abs(number), text


def failure(number: int, step: str, text: str = "") -> OSError:
    """The OSError of a step."""
    return OSError(number, f"{step}: {os.strerror(number)}" + (f" ({text})" if text else ""))
