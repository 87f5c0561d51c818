"""What a command has told the terminal to be, read off the bytes that it wrote: pure.

While a question stands on the screen the terminal is ours: no scroll region, mouse reports or colours
of the command's, since these could hide or fake what is asked. Then it is the command's again, as it
had set it. Invariant: what is sent before a question does not depend on the command having told the
truth: it is sent anyway. Spec: XTerm Control Sequences; ECMA-48; console_codes(4).
"""

from __future__ import annotations

import re

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: private modes that are set to this for a question; what they are without anybody
_OURS: Final = {
    1: 0, 5: 0, 6: 0, 7: 1, 9: 0, 25: 1, 66: 0, 69: 0, 1000: 0, 1001: 0, 1002: 0, 1003: 0,
    1004: 0, 1005: 0, 1006: 0, 1015: 0, 1016: 0, 2004: 0,
}  # fmt: skip
_ALTERNATE: Final = (47, 1047, 1049)
_CSI: Final = rb"(?:\x1b\[|\xc2\x9b)"
_FOUND: Final = re.compile(
    rb"%(csi)s\?([0-9;]{1,64})([hl])|%(csi)s([0-9]{0,5};[0-9]{0,5}|)r|(\x1b[=>])|(\x1bc)"
    % {b"csi": _CSI}
)
_COLOURS: Final = re.compile(rb"(?:\x1b\]|\xc2\x9d)(?:4|5|1[0-9]);")
#: what a sequence looks like that has no end yet
_BEGUN: Final = re.compile(
    rb"(?:\x1b(?:\[[0-?]*[ -/]*|[ -/]*|[\]PX^_][^\x07\x1b\x18\x1a]*\x1b?)?"
    rb"|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z"
)
_LONGEST_BEGUN: Final = 4096


@value
class Modes:
    """`private`: those that the command has set or reset last. `alternate`: it draws on the second
    screen. `begun`: a sequence that it has written the beginning of."""

    private: tuple[tuple[int, bool], ...] = ()
    region: bytes = b""
    keypad: bytes = b""
    alternate: bool = False
    colours: bool = False
    begun: bytes = b""


def modes_of(written: bytes) -> Modes:
    """What all of it, in its order, has left."""
    private: dict[int, bool] = {}
    region = keypad = b""
    alternate = False
    for found in _FOUND.finditer(written):
        numbers, way, lines, pad, reset = found.groups()
        if numbers is not None:
            for number in (int(n[:5]) for n in numbers.split(b";") if n):
                if number in _ALTERNATE:
                    alternate = way == b"h"
                elif number in _OURS:
                    private[number] = way == b"h"
        elif lines is not None:
            region = lines
        elif pad:
            keypad = pad
        elif reset:
            private, region, keypad, alternate = {}, b"", b"", False
    begun = _BEGUN.search(written, max(0, len(written) - _LONGEST_BEGUN))
    return Modes(
        private=tuple(sorted(private.items())),
        region=region,
        keypad=keypad,
        alternate=alternate,
        colours=_COLOURS.search(written) is not None,
        begun=begun[0] if begun else b"",
    )


def take_screen(modes: Modes, *, again: bool = False) -> bytes:
    """Makes the screen ours: the second one where the command has the first, in plain settings.
    `again`: it is ours already, and whatever it was set to meanwhile is undone."""
    out = []
    if not again:
        out.append(b"\x18\x1b\\" if modes.begun else b"")  # ends what was begun, without effect
        out.append(b"" if modes.alternate else b"\x1b[?1049h")  # keeps the cursor: only once
    # colours, character sets, scroll region, insert mode
    out.append(b"\x1b[0m\x1b(B\x0f\x1b[r\x1b[4l\x1b>")
    if modes.colours:
        out.append(b"\x1b]104\x1b\\\x1b]110\x1b\\\x1b]111\x1b\\\x1b]112\x1b\\")
    out += [b"\x1b[?%d%c" % (mode, b"lh"[on]) for mode, on in _OURS.items()]
    return b"".join(out)


CLEAR: Final = b"\x1b[H\x1b[2J"


def give_back(modes: Modes) -> bytes:
    """Makes it the command's again. Where it had the second screen that is empty now, and it has to
    draw it again."""
    out = [b"\x1b[0m"]
    if modes.alternate:
        out.append(b"\x1b[2J")
    set_to = dict(modes.private)
    for mode, ours in _OURS.items():
        if mode in set_to and set_to[mode] != bool(ours):
            out.append(b"\x1b[?%d%c" % (mode, b"lh"[set_to[mode]]))
    if modes.region:
        out.append(b"\x1b[" + modes.region + b"r")
    out.append(modes.keypad)
    if not modes.alternate:
        out.append(b"\x1b[?1049l")  # last: the cursor is put back where it was
    out.append(modes.begun)
    return b"".join(out)
