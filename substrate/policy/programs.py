"""Tables of programs: the options that each takes, read from `program_tables`.

Not a reader of argv (`argv`) and not what programs do. Invariant: a table is made once, when its program is
first met, and not changed after. Spec: policy.md §2.
"""

from __future__ import annotations

from substrate.policy.names import names_of
from substrate.policy.program_tables import SAME, TABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Table:
    """The options of a program, or of one of its subcommands.

    `flags`: each spelling, with its dashes, to the first one. Of these `valued` take a value, in the same
    word or the next; `optional` in the same word only; `numeric` the next one where that is a number;
    behind one of `ending` no more options are read. `stops`: after so many operands no more options
    are read (0: never). `commands`: None where there are no subcommands; `others`: the table of those that
    have none of their own."""

    __slots__ = (
        *("abbreviates", "commands", "detached", "ending", "first_bundle", "flags", "longs"),
        *(
            "name",
            "numeric",
            "optional",
            "others",
            "plus",
            "renamed",
            "single",
            "spellings",
            "stops",
        ),
        *("toolchain", "valued"),
    )

    def __init__(
        self, name: bytes, text: str, below: dict[str, object], level: bytes = b""
    ) -> None:
        self.name = name
        self.flags: dict[bytes, bytes] = {}
        self.valued: set[bytes] = set()
        self.optional: set[bytes] = set()
        self.numeric: set[bytes] = set()
        self.ending: set[bytes] = set()
        self.spellings: dict[bytes, tuple[bytes, ...]] = {}
        self.renamed: dict[bytes, bytes] = {}
        self.commands: dict[bytes, Table] | None = None
        self.others: Table = self
        self.stops = 0
        self.single = self.plus = self.first_bundle = self.toolchain = self.detached = False
        self.abbreviates = True
        has_commands = flat = False
        for item in text.split():
            if item[0] != "@":
                continue
            word, _, value = item[1:].partition(":")
            if word == "stop":
                self.stops = int(value or 1)
            elif word == "commands":
                has_commands = True
            elif word == "flat":
                has_commands = flat = True
            elif word == "rename":
                for pair in value.split(","):
                    old, _, new = pair.partition(">")
                    self.renamed[old.encode()] = new.encode()
            elif word == "prefix":
                for command in value.split(","):
                    for length in range(2, len(command)):
                        short = command[:length].encode()
                        self.renamed.setdefault(short, command.encode())
            elif word == "whole":
                self.abbreviates = False
            else:
                setattr(self, word, True)
        below_level = level + b"^" if has_commands and not flat else level
        for item in text.split():
            if item[0] != "@":
                self._add(item, level)
        self.longs = sorted(spelling for spelling in self.flags if spelling[:2] == b"--")
        if has_commands:
            self.commands = {}
            self.others = self if flat else Table(name, "", {}, below_level)
            for key, found in below.items():
                own, further = _halves(found)
                if flat:
                    own = " ".join((*(i for i in text.split() if i[0] != "@"), own))
                made = Table(name + b" " + key.encode(), own, further, below_level)
                for one in key.split("|"):
                    self.commands[one.encode()] = made

    def complete(self, name: bytes) -> bytes | None:
        """What an abbreviated long option stands for (getopt_long(3)); None where that is not one."""
        low, high = 0, len(self.longs)
        while low < high:
            middle = (low + high) // 2
            if self.longs[middle] < name:
                low = middle + 1
            else:
                high = middle
        found = {self.flags[n] for n in self.longs[low : low + 32] if n.startswith(name)}
        return found.pop() if len(found) == 1 and len(name) > 2 else None

    def _add(self, item: str, mark: bytes) -> None:
        kind = ""
        while item[-1] in "=?#!" and len(item) > 1:
            kind, item = kind + item[-1], item[:-1]
        names = []
        for name in item.split("/"):
            dashes = "-" if len(name) == 1 or self.single else "--"
            names.append((name[1:] if name[0] == "." else dashes + name).encode())
        first = mark + names[0]
        for spelling in names:
            self.flags[spelling] = first
        self.spellings[first] = (*self.spellings.get(first, ()), *names)
        if "=" in kind:
            self.valued.add(first)
        if "?" in kind:
            self.optional.add(first)
        if "#" in kind:
            self.numeric.add(first)
        if "!" in kind:
            self.ending.add(first)


_made: dict[str, Table] = {}


def find_table(name: bytes) -> Table | None:
    """Of a program's last name; None where there is none."""
    for one in names_of(name):
        key = TABLE_OF.get(one)
        if key is not None:
            break
    else:
        return None
    table = _made.get(key)
    if table is None:
        text, below = _halves(TABLES[key])
        table = _made[key] = Table(key.partition("|")[0].encode(), text, below)
    return table


def _halves(found: object) -> tuple[str, dict[str, object]]:
    if isinstance(found, tuple):
        text, below = found
        return text, below
    assert isinstance(found, str)
    return found, {}


#: a program's last name to the key of its table
TABLE_OF: Final[dict[bytes, str]] = {
    name.encode(): key for key in TABLES for name in key.split("|")
}
for _names, _key in SAME:
    for _name in _names.split():
        TABLE_OF[_name.encode()] = _key
