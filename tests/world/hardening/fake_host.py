"""A host that is a dictionary: what `world.hidden` looks at, without links of strangers."""

import posixpath


class FakeHost:
    """Paths -> "dir", b"content" of a file, or ("link", target)."""

    def __init__(self, entries):
        self.entries = {}
        for path, what in entries.items():
            self.entries[path] = what
            assert path.startswith(b"/")
            while (path := posixpath.dirname(path)) != b"/":
                self.entries.setdefault(path, "dir")
        self.entries[b"/"] = "dir"

    def find(self, path):
        at = b"/"
        for part in path.split(b"/"):
            at = posixpath.normpath(posixpath.join(at, part))
            what = self.entries.get(at)
            if what is None:
                return None
            if isinstance(what, tuple):
                at = self.find(what[1])[0]
        return at, self.entries[at] == "dir"

    def names(self, directory):
        found = self.find(directory)
        if found is None:
            return ()
        return tuple(
            sorted(posixpath.basename(p) for p in self.entries if posixpath.dirname(p) == found[0])
        )

    def head(self, path):
        found = self.find(path)
        return b"" if found is None or found[1] else self.entries[found[0]]

    def present(self, directory, names):
        return names.intersection(self.names(directory))
