"""A question to a webhook: what is sent, the key, and the process that sends it (approvals_post.py).

Invariants: nothing that can be told as a secret is sent; without a key that only this user can read
nothing is; whatever goes wrong is a failure with words, never an answer. Spec: policy.md §3.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time

from substrate.errors import ConfigError
from substrate.session import approvals_text as text
from substrate.session.approvals_values import DENY, ONCE, SESSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from substrate.session.approvals_values import Question

KEY_NAME: Final = b"keys/webhook.key"
_KEY_LEAST: Final = 32
_KEY_MOST: Final = 1024
_LARGEST: Final = 65536
_MOST_WORDS: Final = 1000
_SECONDS_LESS: Final = 0.5


def load_key(home_fd: int) -> bytes:
    """The key that signs. Raises ConfigError."""
    hint = "`substrate approvals key` makes one"
    try:
        fd = os.open(
            KEY_NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=home_fd
        )
    except OSError as error:
        raise ConfigError(f"there is no key for it ({error.strerror})", hint=hint) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise ConfigError("its key is no file of this user", hint=hint)
    with open(fd, "rb") as file:
        if status.st_mode & 0o077:
            raise ConfigError("others can read its key", hint="make a new one; " + hint)
        key = file.read(_KEY_MOST + 1)
    if not _KEY_LEAST <= len(key) <= _KEY_MOST:
        raise ConfigError(
            f"its key has {len(key)} bytes, expected {_KEY_LEAST} at least", hint=hint
        )
    return key


def make_key(home_fd: int) -> bytes:
    """The key that is there, or a new one. Raises ConfigError, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(KEY_NAME, flags, 0o600, dir_fd=home_fd)
    except FileExistsError:
        return load_key(home_fd)
    with open(fd, "wb") as file:
        file.write(os.urandom(_KEY_LEAST))
        file.flush()
        os.fsync(fd)
    return load_key(home_fd)


def message(question: Question, session_id: str, nonce: str, now: float) -> dict[str, Any]:
    """What is sent of it (schema substrate.approval-question/1)."""
    asked = question.asked
    verdict = asked.verdict
    words = [text.show_text(w) for w in text.redacted(asked.held.argv[:_MOST_WORDS])]
    wall = time.time()
    return {
        "schema": "substrate.approval-question/1",
        "id": f"{session_id}:{question.number}",
        "nonce": nonce,
        "session_id": session_id,
        "number": question.number,
        "command": text.show_redacted(asked),
        "argv": [text.cut_middle(word, 2000) for word in words],
        "cut": asked.held.cut or len(asked.held.argv) > _MOST_WORDS,
        "program": text.show_path(asked.held.program),
        "sha256": asked.held.digests[0] if asked.held.digests else None,
        "cwd": text.show_path(asked.held.cwd),
        "variables": [
            text.show_redacted_line(v) for v in text.shown_variables(asked.held.variables)
        ],
        "parents": [text.show_redacted_line(line) for line in asked.chain[:8]],
        "rule": verdict.rule,
        "reason": verdict.reason,
        "risk": verdict.risk,
        "risk_reason": verdict.risk_reason,
        "touches": [text.show_text(t)[:200] for t in asked.touches[:50]],
        "policy_digest": asked.policy_digest,
        "host": socket.gethostname(),
        "uid": os.geteuid(),
        "asked_at": int(wall),
        "expires_at": int(wall + max(0.0, question.deadline - now)),
    }


class WebhookAsking:
    """One question on its way. `pump` until it has a result. Raises ConfigError, OSError."""

    def __init__(
        self, question: Question, url: str, home_fd: int, session_id: str, now: float
    ) -> None:
        import json

        self.number = question.number
        self._deadline = question.deadline
        nonce = os.urandom(16).hex()
        body = json.dumps(message(question, session_id, nonce, now))
        if len(body) > 4 * _LARGEST:
            raise ConfigError("the command is too long to be sent", hint="answer at a terminal")
        given = {
            "url": url,
            "key": load_key(home_fd).hex(),
            "body": body,
            "id": f"{session_id}:{question.number}",
            "nonce": nonce,
            "seconds": max(0.1, question.deadline - now - _SECONDS_LESS),
        }
        self._got = b""
        self._pid, self._fd = _start(json.dumps(given).encode())

    def fileno(self) -> int:
        return self._fd

    def pump(self) -> tuple[str, str, str] | None:
        """(choice, by, "") or ("", "", why it failed) when it is over."""
        try:
            more = os.read(self._fd, _LARGEST)
        except BlockingIOError:
            return None
        self._got += more
        if more and len(self._got) <= _LARGEST:
            return None
        got = self._got
        self.close()
        return _result(got)

    def close(self) -> None:
        """Ends the process. May be called twice."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            return  # somebody waits for all children here


def _start(given: bytes) -> tuple[int, int]:
    """(pid, what it writes). It gets nothing of ours but these two."""
    stdin = os.memfd_create("substrate-webhook", os.MFD_CLOEXEC)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        left = memoryview(given)
        while left:
            left = left[os.write(stdin, left) :]
        os.lseek(stdin, 0, os.SEEK_SET)
        folder = os.path.dirname(os.path.abspath(__file__))
        program = [sys.executable, "-I", "-B", os.path.join(folder, _PROGRAM)]
        pid = os.posix_spawn(
            sys.executable,
            program,
            {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **_certificates()},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            ],
            setsid=True,  # keys and signals of the terminal are not its
            setsigmask=[],
            setsigdef=[*signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}],
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(stdin)
        os.close(writing)
    os.set_blocking(reading, False)
    return pid, reading


_PROGRAM: Final = "approvals_post.py"


def _certificates() -> dict[str, str]:
    """Where the user says that certificates of authorities are (OpenSSL), and an interpreter's own
    library."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}


def _result(got: bytes) -> tuple[str, str, str]:
    import json

    try:
        found = json.loads(got)
    except ValueError:
        return "", "", "its process ended without an answer"
    if "failed" in found:
        return "", "", text.show_text(str(found["failed"]))
    by = f" by {text.show_text(found['by'])}" if found["by"] else ""
    if found["answer"] == "allow":
        return (SESSION if found["for"] == "session" else ONCE), by, ""
    return DENY, by, ""
