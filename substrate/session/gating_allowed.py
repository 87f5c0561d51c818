"""What somebody has allowed together with a whole command: which execs of it need no second question.

Of the text that was shown, each command line counts as often as it stands there, for the program that its first
word leads to along the command's own PATH in its world, in its directory, with its variables. Whatever is not that
is asked about for itself: the person saw `kubectl apply`, and neither /tmp/evil/kubectl nor a hundred of them. A line
in a loop is asked about once more, and then known for the rest of the command. Spec: policy.md §3; ADR 0024.
"""

from __future__ import annotations

from substrate.session.gating_environ import listed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from substrate.policy.rules import Verdict
    from substrate.session.approvals_values import Answer
    from substrate.session.gating_looks import Looks
    from substrate.telemetry.capture.holds import Hold

#: with these a command says that it goes elsewhere
_GOES: Final = ((b"cd",), (b"pushd",), (b"popd",), (b"env",), (b"sudo",))


class Allowed:
    """One answer. `environ`: of the command, as it is run."""

    def __init__(
        self,
        verdict: Verdict,
        answer: Answer,
        cwd: bytes,
        environ: Iterable[tuple[bytes, bytes]],
        looks: Looks,
    ) -> None:
        self.answer, self._looks = answer, looks
        goes = any(plain(argv)[:1] in _GOES for argv in verdict.read_as)
        self._cwd = None if goes else cwd
        own = dict(environ)
        self._path = own.get(b"PATH", b"/usr/bin:/bin")
        self._variables = _named(listed(b"%s=%s" % pair for pair in own.items()))
        text = b"\0".join(verdict.read_as[0]) if verdict.read_as else b""
        #: what is set in it was read by whoever allowed it
        self._text = text
        #: by argv with a plain name: the first words as they stand, one a time that it may run
        self._left: dict[tuple[bytes, ...], list[bytes]] = {}
        for argv in verdict.read_as:
            if argv:
                self._left.setdefault(plain(argv), []).append(argv[0])
        #: who has had one, and of what: the same process that execs the same again runs no second one
        self._taken: dict[int, tuple[bytes, ...]] = {}

    def take(self, hold: Hold, cwd: bytes) -> Answer | None:
        """The answer, if this exec is one of those that it was for; then it is used up."""
        words = plain(hold.argv)
        left = self._left.get(words)
        if left is None or hold.cut or self._cwd not in (None, cwd) or not hold.programs:
            return None
        if self._taken.get(hold.tid) == words:  # what a shim execs
            return self.answer if self._is_it(hold, hold.argv[0]) else None
        for number, word in enumerate(left):
            if self._is_it(hold, word):
                del left[number]
                self._taken[hold.tid] = words
                return self.answer
        return None

    def _is_it(self, hold: Hold, word: bytes) -> bool:
        if hold.programs[0] not in self._looks.leads_to(hold.tid, word, self._path):
            return False
        found = self._looks.variables_of(hold.tid)
        if found is None:
            return False
        now = _named(found)
        return all(
            now.get(name) == self._variables.get(name) or name + b"=" in self._text
            for name in now.keys() | self._variables.keys()
        )


def _named(variables: Iterable[bytes]) -> dict[bytes, bytes]:
    """Without PATH, which a login shell sets anew: where it leads is looked at by itself."""
    found = dict(word.partition(b"=")[::2] for word in variables)
    found.pop(b"PATH", None)
    return found


def plain(argv: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """An argv whose program goes by its last name."""
    return (argv[0][argv[0].rfind(b"/") + 1 :], *argv[1:]) if argv else argv
