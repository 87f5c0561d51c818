"""bpf(2): maps, programs, their types, and raw tracepoints; everything is a descriptor of ours.

Sources: bpf(2), <linux/bpf.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from substrate.telemetry.capture import calls
from substrate.telemetry.capture.backend import CaptureError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

_NR_BPF: Final = {"x86_64": 321, "aarch64": 280}[calls.MACHINE]
#: enum bpf_cmd
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT, _PROG_LOAD, _RUN, _INFO, _TRACEPOINT, _TYPES = (
    *(0, 2, 3, 4, 5, 10),
    *(15, 17, 18),
)
HASH, ARRAY, RINGBUF = 1, 2, 27
NO_PREALLOC, MMAPABLE = 1, 1 << 10
_RAW_TRACEPOINT = 17
_LICENSE: Final = b"Dual MIT/GPL"
_ATTR_SIZE: Final = 128
#: of the verifier's explanation, asked for only after a failure
_LOG_SIZE: Final = 1 << 20
#: struct bpf_func_info
_INFO_SIZE: Final = 8
#: of a load that signals interrupt
_LOAD_TRIES: Final = 50

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def bpf(step: str, command: int, attributes: bytes) -> int:
    """bpf(2). Raises CaptureError."""
    buffer = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    found = int(_syscall(_NR_BPF, command, buffer, _ATTR_SIZE))
    if found < 0:
        number = ctypes.get_errno()
        raise CaptureError(step, number, os.strerror(number) + _advice(number))
    return found


def _advice(number: int) -> str:
    if number == errno.EPERM:
        return " (bpf(2) needs CAP_BPF and CAP_PERFMON here; kernels before 5.11 also memlock)"
    return ""


def create_map(name: str, kind: int, key: int, size: int, entries: int, flags: int = 0) -> int:
    attributes = struct.pack("=IIIIIII16s", kind, key, size, entries, flags, 0, 0, name.encode())
    return bpf(f"map {name}", _MAP_CREATE, attributes)


def update_map(step: str, fd: int, key: int, what: bytes | ctypes.Array[ctypes.c_char]) -> None:
    keys = ctypes.create_string_buffer(struct.pack("=I", key), 4)
    values = (
        what if isinstance(what, ctypes.Array) else ctypes.create_string_buffer(what, len(what))
    )
    bpf(
        step,
        _MAP_UPDATE,
        struct.pack("=IIQQQ", fd, 0, ctypes.addressof(keys), ctypes.addressof(values), 0),
    )


def load_types(described: bytes) -> int:
    """The description of functions (bpf_functions.Described), as a descriptor."""
    text = ctypes.create_string_buffer(described, len(described))
    attributes = struct.pack("=QQI", ctypes.addressof(text), 0, len(described))
    return bpf("types", _TYPES, attributes)


def load_program(
    name: str, code: bytes, *, functions: bytes = b"", types: int = 0, maps: Sequence[int] = ()
) -> int:
    """The descriptor of a raw tracepoint's program. `functions`: what its functions are
    (Described.info), of `types`; `maps`: those that it means, by their places (Linux 5.14). Raises
    CaptureError with the verifier's log."""
    infos = ctypes.create_string_buffer(functions, len(functions) or 1)
    descriptors = (ctypes.c_int * len(maps))(*maps)
    described = struct.pack(
        "=IIIIQI28xQ",
        *(0, 0, types, _INFO_SIZE, ctypes.addressof(infos)),
        *(len(functions) // _INFO_SIZE, ctypes.addressof(descriptors)),
    )
    text = ctypes.create_string_buffer(code, len(code))
    license = ctypes.create_string_buffer(_LICENSE)

    def load(level: int, log: int, size: int) -> int:
        return bpf(
            f"program {name}",
            _PROG_LOAD,
            struct.pack(
                "=IIQQIIQII16s",
                *(_RAW_TRACEPOINT, len(code) // 8),
                *(ctypes.addressof(text), ctypes.addressof(license)),
                *(level, size, log, 0, 0, name.encode()[:15]),
            )
            + (described if functions or maps else b""),
        )

    for left in reversed(range(_LOAD_TRIES)):
        try:
            return load(0, 0, 0)
        except CaptureError as error:
            # a signal for us ends the verification, whatever it is: the end of a child, too
            if error.errno == errno.EAGAIN and left:
                continue
            if error.errno == errno.EPERM:
                raise
            first = error
            break
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return load(1, ctypes.addressof(log), _LOG_SIZE)
    except CaptureError:
        lines = log.value.decode("latin-1").strip().splitlines()[-20:]
    raise CaptureError(first.step, first.errno, "\n".join([first.text, *lines]))


def attach_program(name: str, program: int) -> int:
    label = ctypes.create_string_buffer(name.encode())
    return bpf(
        f"tracepoint {name}",
        _TRACEPOINT,
        struct.pack("=QI", ctypes.addressof(label), program),
    )


def missed(program: int) -> int:
    """How often the kernel did not run it, because it was running on that CPU."""
    info = ctypes.create_string_buffer(256)
    bpf("info", _INFO, struct.pack("=IIQ", program, 256, ctypes.addressof(info)))
    # struct bpf_prog_info.recursion_misses; 0 on kernels that do not have it
    return int(struct.unpack_from("=Q", info, 208)[0])


def run_program(step: str, program: int, argument: int) -> int:
    """What a raw tracepoint's program returns that we run ourselves, with one argument."""
    words = ctypes.create_string_buffer(struct.pack("=Q", argument), 8)
    attributes = ctypes.create_string_buffer(_ATTR_SIZE)
    struct.pack_into("=I", attributes, 0, program)
    struct.pack_into("=IIQ", attributes, 40, 8, 0, ctypes.addressof(words))
    if _syscall(_NR_BPF, _RUN, attributes, _ATTR_SIZE) < 0:
        number = ctypes.get_errno()
        raise CaptureError(step, number, os.strerror(number))
    return int(struct.unpack_from("=I", attributes, 4)[0])


def next_key(step: str, fd: int, key: int | None) -> int | None:
    """The key behind this one (None: the first), of four bytes; None where there is none."""
    keys = ctypes.create_string_buffer(struct.pack("=I", key or 0), 4)
    following = ctypes.create_string_buffer(4)
    at = 0 if key is None else ctypes.addressof(keys)
    try:
        bpf(step, _MAP_NEXT, struct.pack("=IIQQQ", fd, 0, at, ctypes.addressof(following), 0))
    except CaptureError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return int(struct.unpack("=I", following.raw)[0])
