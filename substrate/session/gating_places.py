"""What a name means to a process that is held: the kernel's path of the file that it leads to.

It is found as the process would find it: in its root, from its directory, through links. By the time that somebody
opens it something else may stand there; whoever relies on it says so. Loaded where a loader or an interpreter is
run, or what was allowed as text has to be recognised. Spec: policy.md §4; openat2(2).
"""

from __future__ import annotations

import os

from substrate.world import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: `self` would be us
_OWN: Final = ((b"/proc/self/", b""), (b"/proc/thread-self/", b""), (b"/dev/fd/", b"fd/"))
#: links of the kernel's own: what they lead to is a file, and not a name
_LINKS: Final = (b"exe", b"fd/")
#: directories of a PATH that are looked into
_MOST_PLACES: Final = 64


def path_of(tid: int, word: bytes) -> bytes | None:
    """Of a path, or of a name in its directory. None where that cannot be told, or nothing is there."""
    process = b"/proc/%d/" % tid
    try:
        for own, place in _OWN:
            if not word.startswith(own):
                continue
            word = place + word[len(own) :]
            if word.startswith(_LINKS) and word.count(b"/") == word.startswith(b"fd/"):
                return os.readlink(process + word)
            front, _, rest = word.partition(b"/")
            if front not in (b"root", b"cwd"):
                return None
            word = rest.lstrip(b"/") if front == b"cwd" else b"/" + rest
            break
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
    except (OSError, ValueError):  # a word with a NUL in it leads nowhere
        return None
    try:
        return os.readlink(b"/proc/self/fd/%d" % found)
    finally:
        os.close(found)


def leads_to(tid: int, word: bytes, path: bytes) -> frozenset[bytes]:
    """What a command's first word may run: itself where it is a path, else what its name is in the directories
    of `path`. Of each of them: a shim stands before what it shims."""
    if b"/" in word:
        places = [word]
    else:
        places = [os.path.join(place or b".", word) for place in path.split(b":")[:_MOST_PLACES]]
    return frozenset(found for place in places if (found := path_of(tid, place)))
