"""What a dynamic loader is told to map (`ld.so PROGRAM …`): no exec, so it is looked up before the loader runs.

It is found as the process would find it: in its root, from its directory, through links. By the time that the
loader opens it something else may stand there: who exchanges it in between is not noticed, as a copy is not.
Loaded where a loader itself is run. Spec: policy.md §4; openat2(2).
"""

from __future__ import annotations

import os

from substrate.policy.names import last_name
from substrate.policy.wrappers import unwrap
from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from substrate.telemetry.capture.holds import Hold


def mapped_by(hold: Hold) -> bytes | None:
    """The kernel's path of it; b"" where the loader maps nothing. None where that cannot be told: a name that is
    looked for along a path of libraries, what is not there, a link of /proc."""
    inner = unwrap(last_name(hold.programs[0]), hold.argv, {})
    if not inner:
        return b""
    word = inner[0].argv[0]
    if b"/" not in word:
        return None
    process = b"/proc/%d/" % hold.tid
    try:
        for own, place in _OWN:
            if word.startswith(own):
                return os.readlink(process + place + word[len(own) :])
        root = os.readlink(process + b"root").rstrip(b"/")
        if word[:1] != b"/":
            cwd = os.readlink(process + b"cwd")
            if not (cwd + b"/").startswith(root + b"/"):
                return None
            word = cwd[len(root) :] + b"/" + word
        directory = os.open(process + b"root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = linux.openat2(directory, word, os.O_PATH, linux.RESOLVE_IN_ROOT)
        finally:
            os.close(directory)
    except OSError:
        return None
    try:
        return os.readlink(b"/proc/self/fd/%d" % found)
    finally:
        os.close(found)


#: `self` would be us
_OWN = ((b"/proc/self/", b""), (b"/proc/thread-self/", b""), (b"/dev/fd/", b"fd/"))
