"""Our own modules from one file: what `-c` imports, without a search for each of them.

A cold `-c` loads some ninety small modules. Finding and opening each costs more than running
it, and all of them together a fifth of the whole command (docs/adr/0004). So the code objects
that a run form loaded are kept in one file beside the bytecode of this module: same
directory, same owner, same trust as Python's own `.pyc` files, named after the interpreter
that they belong to. Invariants: an entry is used only if its source still has the size and
the time of change with which it was stored; whatever is missing, stale or unreadable is
imported the ordinary way, and put right by the next `save`.

File: 16 bytes of magic (four of the interpreter's, then ours), the length of the index
(8 bytes, little-endian), the index, the code; index and code as `marshal` writes them. The
index maps a name to (the directory in which its package looks for it, source path, is a
package, mtime in ns, size, offset, length). It lies where the bytecode of `import_bundle`
would, a module without content: so whatever removes our bytecode removes it too.
Source: importlib's "Loaders" (docs.python.org/3/library/importlib.html), PEP 3147.
"""

from __future__ import annotations

import _signal
import os
import sys

# What importlib itself is made of; `importlib.util` would cost as much as we save.
from _frozen_importlib_external import (  # type: ignore[import-not-found, unused-ignore]
    MAGIC_NUMBER,
    SourceFileLoader,
    spec_from_file_location,
)
from marshal import dumps, loads
from mmap import MAP_PRIVATE, PROT_READ, mmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType
    from typing import Any

    Entry = tuple[str, str, bool, int, int, int, int]

_MAGIC = MAGIC_NUMBER + b"substrate 1\0"
_HEAD = len(_MAGIC) + 8
_PREFIX = "substrate."
_PLACE = "substrate.import_bundle"
#: modules without Python code
_COMPILED = ("substrate.telemetry.capture._engine",)


class _Loader(SourceFileLoader):  # type: ignore[misc, unused-ignore]
    """Python's own loader, with the code from the cache."""

    code: CodeType | None = None

    def get_code(self, fullname: str) -> CodeType | None:
        code, self.code = self.code, None
        return super().get_code(fullname) if code is None else code  # None: asked for again


class ImportCache:
    """A finder (sys.meta_path) of the modules in the cache file at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.index: dict[str, Entry] = {}
        self.outdated = True
        # mapped: a process forked from this one may have closed every fd
        self._code: mmap | bytes = b""
        self._code_at = 0

    def load(self) -> None:
        """Maps the file; one that is not ours, or not there, counts as empty."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if fd < 3:  # a standard stream is closed, and mmap would put a copy in its place
                self._code = os.read(fd, os.fstat(fd).st_size)
            else:
                self._code = mmap(fd, 0, MAP_PRIVATE, PROT_READ)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return
        finally:
            os.close(fd)
        head = self._code[:_HEAD]
        if len(head) != _HEAD or not head.startswith(_MAGIC):
            return
        size = int.from_bytes(head[len(_MAGIC) :], "little")
        index = _unmarshalled(self._code[_HEAD : _HEAD + size])
        if isinstance(index, dict):
            self.index = index
            self._code_at = _HEAD + size
            self.outdated = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        """The spec of a module that is here and up to date, else None."""
        if not fullname.startswith(_PREFIX) or fullname in _COMPILED:
            return None
        try:
            within, source, is_package, mtime_ns, size, offset, length = self.index[fullname]
            found = os.stat(source)
            current = found.st_mtime_ns == mtime_ns and found.st_size == size
        except (KeyError, OSError, ValueError, TypeError):
            current = False
        # of another installation, where this one was copied from it
        if not current or path is None or list(path) != [within]:
            self.outdated = True
            return None
        start = self._code_at + offset
        loader = _Loader(fullname, source)
        loader.code = _unmarshalled(self._code[start : start + length])
        if loader.code is None:
            self.outdated = True
            return None
        return spec_from_file_location(
            fullname,
            source,
            loader=loader,
            submodule_search_locations=[os.path.dirname(source)] if is_package else None,
        )

    def save(self) -> None:
        """Stores every module of the packages that are loaded, if one that was wanted was not
        here. Where the directory cannot be written, nothing is stored, as with `.pyc` files.

        To be called last: signals that would end the process are ignored from here on, since
        the status of what it did is not to be lost."""
        if not self.outdated or sys.dont_write_bytecode:
            return
        self.outdated = False
        if not os.access(os.path.dirname(self.path), os.W_OK):
            return
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT):
            _signal.signal(number, _signal.SIG_IGN)
        index: dict[str, Entry] = {}
        pieces: list[bytes] = []
        offset = 0
        for name, within, source in _sources():
            try:
                found = os.stat(source)  # before it is read: a change in between makes it stale
                piece = dumps(SourceFileLoader(name, source).get_code(name))
            except (OSError, SyntaxError, ValueError, ImportError):
                continue  # whoever wants it is told by the ordinary way
            is_package = source.endswith("/__init__.py")
            where = (within, source, is_package)
            index[name] = (*where, found.st_mtime_ns, found.st_size, offset, len(piece))
            pieces.append(piece)
            offset += len(piece)
        head = dumps(index)
        try:
            _replace(self.path, [_MAGIC, len(head).to_bytes(8, "little"), head, *pieces])
        except OSError:
            return


def use() -> ImportCache:
    """Puts the cache in front of the finders, and returns it: `save` it at the end."""
    assert __spec__ is not None
    path = __spec__.cached or ""  # None where there is no source: then nothing is kept
    directory, slash, name = path.rpartition("/")
    cache = ImportCache(directory + slash + name.replace("import_cache", "import_bundle", 1))
    cache.load()
    sys.meta_path.insert(0, cache)
    return cache


def _unmarshalled(content: bytes) -> Any:
    """None for what `marshal` cannot read."""
    try:
        return loads(content)
    except (EOFError, ValueError, TypeError):
        return None


def _sources() -> list[tuple[str, str, str]]:
    """(name, the directory in which its package looks for it, path) of the modules in all
    packages of ours that are loaded."""
    found: list[tuple[str, str, str]] = []
    for package, module in list(sys.modules.items()):
        if not (package + ".").startswith(_PREFIX) or not hasattr(module, "__path__"):
            continue
        places = list(module.__path__)
        if len(places) != 1 or not os.path.isdir(places[0]):
            continue
        (directory,) = places
        above = getattr(sys.modules.get(package.rpartition(".")[0]), "__path__", ())
        if len(list(above)) == 1:
            found.append((package, next(iter(above)), f"{directory}/__init__.py"))
        for file in os.listdir(directory):
            name = f"{package}.{file[:-3]}"
            if file.endswith(".py") and file != "__init__.py" and name != _PLACE:
                found.append((name, directory, f"{directory}/{file}"))
    return sorted(found)


def _replace(path: str, pieces: list[bytes]) -> None:
    """Writes a file beside the old one and renames it over that."""
    part = f"{path}.{os.getpid()}"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "wb") as file:
            file.writelines(pieces)
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
