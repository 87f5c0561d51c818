"""Errors, split by who must act: the user, the host, the trace, or us.

A message says what happened, what was expected, what was got, where, and what to do
next. Bugs stay built-in exceptions with a traceback. This module imports nothing: the
hot path of `-c` loads it.
"""


class SubstrateError(Exception):
    """Base of all errors that are meant for a person. `hint` says what to do next."""

    #: exit status of a verb other than `-c`, `-f`, `run` (shell.md §1)
    exit_status = 3

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} [{self.code}]" if self.code else text


class UsageError(SubstrateError):
    """The words of the call are wrong. The user acts."""

    exit_status = 2


class ConfigError(SubstrateError):
    """A configuration file or variable is wrong. The user acts."""

    exit_status = 2


class PolicyDenied(SubstrateError):
    """The policy does not allow it. The user or whoever wrote the policy acts."""


class HostUnsupported(SubstrateError):
    """The host lacks something that was required. `code` is one of world.md §1."""


class SessionBusy(SubstrateError):
    """Another supervisor holds the session."""


class StateError(SubstrateError):
    """The files under $SUBSTRATE_HOME, or the disk below them, cannot be used."""


class TraceCorrupt(SubstrateError):
    """A trace does not hold. `seq` and `offset` (bytes) say where."""

    def __init__(
        self,
        message: str,
        *,
        seq: int | None = None,
        offset: int | None = None,
        hint: str = "",
        code: str = "",
    ) -> None:
        where = [f"seq {seq}"] if seq is not None else []
        if offset is not None:
            where.append(f"byte {offset}")
        super().__init__(
            f"{message} ({', '.join(where)})" if where else message, hint=hint, code=code
        )
        self.seq = seq
        self.offset = offset


class TraceVersionError(SubstrateError):
    """A trace, world or session was made by a newer version."""


class ReplayImpossible(SubstrateError):
    """What was recorded cannot be run again."""
