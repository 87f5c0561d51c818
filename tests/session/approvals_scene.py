"""What asks in these tests: held execs, a policy that asks, a session's directory."""

import os
import time
from pathlib import Path

from substrate.policy.rules import (
    ApprovalRules,
    CommandRule,
    FsRules,
    Layer,
    LimitRules,
    NetRules,
    Policy,
    Verdict,
)
from substrate.session.approvals_values import Asked, Held
from substrate.session.approving import open_approving
from substrate.session.home import Home
from substrate.session.store import SessionFiles
from substrate.telemetry.trace.digests import Digester
from substrate.telemetry.trace.ids import new_session_id
from substrate.values import replace

digest = Digester(b"k" * 32).digest_bytes
VERDICT = Verdict(
    action="ask", rule="builtin command[1]", layer="builtin:test", reason="publishing",
    place="builtin:test, line 3", risk="high", risk_reason="changes a remote repository",
)  # fmt: skip


def held(*argv, program=b"/usr/bin/git", cwd=b"/work", content="a" * 64, **more):
    words = tuple(word.encode() if isinstance(word, str) else word for word in argv)
    return Held(argv=words, program=program, cwd=cwd, digests=(content,), **more)


def asked(ticket, *argv, action="spn_1", verdict=VERDICT, given=None, **more):
    what = given if given is not None else held(*(argv or ("git", "push")))
    return Asked(
        ticket=ticket, action=action, held=what, verdict=verdict, policy_digest="0" * 64, **more
    )


def policy(rules=(), **approval):
    layer = Layer(kind="builtin", name="builtin:test", digest="0" * 64, commands=tuple(rules))
    return Policy(
        layers=(layer,), digest="0" * 64, default_action="allow", net=NetRules(), fs=FsRules(),
        limits=LimitRules(), allow_operators=True, approval=ApprovalRules(**approval),
    )  # fmt: skip


def rule(name="builtin command[1]", action="ask", **more):
    return CommandRule(name=name, place="here:1", action=action, match=(b"git", b"**"), **more)


class Place:
    """A home with one session in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        home, config = base / "home", base / "config"
        session_id = new_session_id()
        directory = home / "sessions" / session_id
        for path in (home, directory.parent, directory, home / "keys", config):
            path.mkdir(mode=0o700)
        self.home = Home(path=os.fsencode(home), fd=os.open(home, os.O_RDONLY | os.O_CLOEXEC))
        self.files = SessionFiles(
            session_id=session_id,
            path=os.fsencode(directory),
            fd=os.open(directory, os.O_RDONLY | os.O_CLOEXEC),
        )
        self.environ = {
            **os.environb, b"XDG_CONFIG_HOME": os.fsencode(config), b"HOME": os.fsencode(base),
        }  # fmt: skip
        self.policy_file = config / "substrate" / "policy.toml"

    def approving(self, *, terminal=False, door=False, paused=None, **approval):
        return open_approving(
            home=self.home, files=self.files, policy=policy([rule()], **approval), digest=digest,
            paused=paused or (lambda: None), terminal=terminal, door=door, environ=self.environ,
        )  # fmt: skip

    def close(self) -> None:
        os.close(self.home.fd)
        os.close(self.files.fd)


def run_until(approving, done, bound_s=20.0):
    """Pumps it as a loop would, until `done()`; returns the answers that came."""
    import select

    answers = []
    deadline = time.monotonic() + bound_s
    while not done(answers):
        now = time.monotonic()
        assert now < deadline, f"it did not come to that: {answers}"
        poll = select.poll()
        for fd, events in approving.fds():
            poll.register(fd, events)
        look = approving.next_look()
        limit = 0.2 if look is None else min(0.2, max(0.0, look - now))
        poll.poll(limit * 1000 + 1)
        approving.pump(time.monotonic())
        answers += approving.answers()
    return answers


def with_read_as(*lines):
    rows = tuple(tuple(word.encode() for word in line.split()) for line in lines)
    return replace(VERDICT, read_as=rows)
