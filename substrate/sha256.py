"""SHA-256 for small inputs without loading OpenSSL.

`hashlib` loads libcrypto, which takes longer than the whole of what `-c` hashes before its
command runs (docs/adr/0002). The interpreter's own implementation is slower by the byte;
where much is hashed, `hashlib` has been imported (a writer of many events, a verifier), and
its function is taken instead. `bulk` is for contents of unknown length.
Source: FIPS 180-4; Modules/_sha2 of CPython (3.12 and later), Modules/_sha256 before.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash, sha256
elif "hashlib" in sys.modules:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256
    except ImportError:
        from _sha256 import sha256

__all__ = ["LARGE_BYTES", "bulk", "sha256"]

#: from here on OpenSSL's speed outweighs loading it
LARGE_BYTES = 1 << 19


def bulk(size: int | None = None) -> _Hash:
    """A new hash for a content of `size` bytes; None: unknown, so it may be large."""
    if size is not None and size < LARGE_BYTES:
        return sha256()
    import hashlib

    return hashlib.sha256()
