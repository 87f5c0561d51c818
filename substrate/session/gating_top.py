"""The command itself, decided before it starts: by its words, since no process is there to look at.

What is denied never starts; what wants a world of its own runs in one that is thrown away; what has to be
asked is asked once, and what its text was read as is not asked again when the gate meets it. Inside the
command the gate decides each exec (gating.py); where there is none, this is the only decision.

Without a world nothing contains a command. Whoever takes the world away (--no-world, or settings that no
project can make) is who would be asked, so what no rule names runs there without a second question; rules
hold as everywhere. Spec: policy.md §1, §4; shell.md §1 (126).
"""

from __future__ import annotations

import os
import stat

from substrate.policy import rules
from substrate.session import request as requests
from substrate.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from substrate.policy.rules import Verdict
    from substrate.session.approvals_values import Answer, Held
    from substrate.session.gating import Gating
    from substrate.session.request import RunRequest
    from substrate.telemetry.trace.events.command import Decision

_MOST_SHOWN: Final = 200
#: of a program that is digested before it starts
_MOST_BYTES: Final = 1 << 30
_CUT: Final = "there is more in it than could be read, and no gate that looks at what it runs"


@value
class Top:
    """What was decided of the command, and what was answered where it was asked."""

    verdict: Verdict
    answer: Answer | None = None
    #: why nobody was asked: `nobody`; `gate`: what it runs is, when it comes to that
    how: str = ""

    @property
    def denied(self) -> bool:
        """Whether it never starts."""
        action = self.verdict.action
        if action != rules.ASK or self.how == "gate":
            return action == rules.DENY
        return self.answer is None or not self.answer.allowed

    @property
    def isolated(self) -> bool:
        """Whether what it changes is dropped: also of what is asked, where a layer may not put a question in
        place of that."""
        action = self.verdict.action
        return action == rules.ISOLATE or (action == rules.ASK and self.verdict.isolates)

    def decision(self) -> Decision:
        """As `command_start` has it."""
        from substrate.telemetry.trace.events.command import Decision

        verdict, answer = self.verdict, self.answer
        extra: list[tuple[str, Any]] = [("layer", verdict.layer)]
        if verdict.place:
            extra.append(("place", verdict.place))
        if verdict.risk != "low":
            extra += [("risk", verdict.risk), ("risk_reason", verdict.risk_reason)]
        if answer is not None:
            extra += [("allowed", answer.allowed), ("how", answer.how), *answer.extra]
            if answer.approved_by is not None:
                extra.append(("approved_by", answer.approved_by))
            if answer.approved_for_us is not None:
                extra.append(("approved_for_us", answer.approved_for_us))
        elif self.how:
            extra += [("allowed", self.how == "gate"), ("how", self.how)]
        if verdict.action == rules.AUDIT:
            extra.append(("audited", True))
        return Decision(
            action=rules.ALLOW if verdict.action == rules.AUDIT else verdict.action,
            reason=verdict.reason or ("" if verdict.rule else "the default action"),
            restrictions=("its changes are dropped",) if self.isolated else (),
            rule=verdict.rule,
            extra=tuple(extra),
        )


def decide(gating: Gating, request: RunRequest, cwd: bytes, *, in_world: bool) -> Top:
    """Before anything of it is there. Where a strict gate follows, files are its to look at."""
    program = b"" if gating.force == "strict" else look_up(request.file, cwd)
    subject = rules.Subject(argv=request.argv, program=program, name=request.file, cwd=cwd)
    verdict = gating.patience.decide(gating.broker.compiled, subject, digest_of)
    lets = verdict.action in (rules.ALLOW, rules.AUDIT)
    if lets and verdict.is_cut and gating.force != "strict" and gating.broker.compiled.holds_back:
        # no exec of it meets a rule later
        verdict = replace(verdict, action=rules.ASK, rule=None, reason=_CUT)
    drops = verdict.action == rules.ASK and verdict.isolates
    if (verdict.action == rules.ISOLATE or drops) and not in_world:
        verdict = replace(
            verdict,
            action=rules.DENY,
            reason=f"{verdict.reason or 'isolate'}; there is no world to isolate it in",
        )
    return Top(verdict=verdict)


def ask(
    gating: Gating,
    top: Top,
    request: RunRequest,
    span: str,
    cwd: bytes,
    environ: Mapping[bytes, bytes],
    *,
    watch: int,
    gone: Callable[[], bool],
) -> Top:
    """Where it has to be asked. `watch`, `gone`: a signal ends the question."""
    if top.verdict.action != rules.ASK:
        return top
    approver = gating.asking()
    if approver is None:
        return replace(top, how="nobody")
    from substrate.session.approvals_values import Asked
    from substrate.session.approving import ask_now

    held = held_of(request.file, request.argv, cwd, environ)
    asked = Asked(
        ticket=span,
        action=span,
        held=held,
        verdict=top.verdict,
        policy_digest=gating.broker.digest,
        span=span,
    )
    answer = ask_now(approver, asked, watch=watch, gone=gone)
    if answer.allowed:
        answer = if_same(answer, held, request.file, environ)
    if answer.allowed:
        gating.allow_with(top.verdict, answer, cwd, held)
    return replace(top, answer=answer)


def leave_to_gate(gating: Gating, top: Top, request: RunRequest) -> Top:
    """Of a command that comes to a supervisor which others wait for, too: nobody is asked before it starts.
    A strict gate asks for what it runs, exec by exec, while the others go on; for all of it at its own exec, where
    what is to be asked is no exec (a builtin). Without one it is denied."""
    if top.verdict.action != rules.ASK:
        return top
    if gating.force == "strict" and top.verdict.at_once:
        gating.ask_first(request.argv, top.verdict)
    return replace(top, how="gate" if gating.force == "strict" else "nobody")


def tell_denied(gating: Gating, top: Top, request: RunRequest) -> None:
    """The line for the user."""
    if top.answer is not None and top.answer.line:
        gating.refusals.put(top.answer.line, top.answer.hint)
        return
    from substrate.session.gating_lines import hint_of, ruled

    gating.refusals.put(
        f"denied: {_shown(request)} {ruled(top.verdict)}", hint_of(top.verdict, top.how)
    )


def tell_isolated(gating: Gating, top: Top, request: RunRequest) -> None:
    """What became of what it changed."""
    from substrate.session.gating_lines import ruled

    gating.refusals.put(
        f"isolated: {_shown(request)} {ruled(top.verdict)}: whatever it changed was dropped"
    )


def _shown(request: RunRequest) -> str:
    from substrate.session.gating_lines import in_words

    shown = request.cmd_text
    if shown is None or request.kind != requests.TEXT:
        return in_words(request.argv)
    text = os.fsdecode(shown)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} …"


def held_of(
    file: bytes, argv: tuple[bytes, ...], cwd: bytes, environ: Mapping[bytes, bytes]
) -> Held:
    """What an approval of it is for, as the host has it."""
    from substrate.policy.names import last_name
    from substrate.policy.wrappers import scripts_in
    from substrate.session.approvals_values import Held
    from substrate.session.gating_environ import listed

    program = look_up(file, cwd)
    words = scripts_in(last_name(program), argv)
    script = os.path.realpath(os.path.join(cwd, words[0])) if words else b""
    return Held(
        argv=argv,
        program=program,
        cwd=cwd,
        digests=(digest_of(program) or "",),
        variables=listed(b"%s=%s" % pair for pair in environ.items()),
        script=script,
        # which one it reads cannot be told where there are several
        script_digest=digest_of(script) or "" if len(words) == 1 else "",
    )


def if_same(answer: Answer, held: Held, file: bytes, environ: Mapping[bytes, bytes]) -> Answer:
    """A yes, if it still is what was asked about; else a no."""
    if held_of(file, held.argv, held.cwd, environ) == held:
        return answer
    from substrate.session.gating import CHANGED
    from substrate.session.gating_lines import in_words

    line = f"denied: {in_words(held.argv)}: {CHANGED}"
    return replace(answer, allowed=False, line=line, hint="")


def look_up(file: bytes, cwd: bytes) -> bytes:
    """The file that a name leads to on the host, without links; b"" where there is none."""
    places = [b""] if b"/" in file else os.environb.get(b"PATH", b"/usr/bin:/bin").split(b":")
    for place in places:
        path = os.path.join(cwd, place, file)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.realpath(path)
    return b""


def digest_of(path: bytes) -> str | None:
    if not path:
        return None
    from substrate.telemetry.trace.digests import sha256_fd

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None  # it can be run and not read: no rule of a digest meets it
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            return None  # nobody waits for it: a rule that holds back does
        return sha256_fd(fd)[0]
    finally:
        os.close(fd)
