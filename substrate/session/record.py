"""What the one-shot supervisor writes into the trace, event by event (trace.md §4).

Turns what happened into event bodies and blobs; the writer redacts, chains and stores them.
Invariant: raw argv, environment and streams go into blobs only, which can be erased; lines
hold redacted text and references.
"""

from __future__ import annotations

import os
import pwd

from substrate import __version__
from substrate.session.scaffolding import find_scaffolding
from substrate.telemetry.trace.events.changes import MAX_ENTRIES, FsDiff, FsEntry
from substrate.telemetry.trace.events.command import (
    CommandEnd,
    CommandStart,
    DiffCounts,
    Display,
    Rusage,
    Scope,
    Stream,
    Terminal,
)
from substrate.telemetry.trace.events.session import (
    CaptureInForce,
    Deterministic,
    Isolation,
    IsolationLayer,
    SessionStart,
    User,
)
from substrate.telemetry.trace.events.world import LayerCut, WorldStart
from substrate.telemetry.trace.ids import new_span_id
from substrate.telemetry.trace.octets import text_or_b64
from substrate.telemetry.trace.rfc8785 import encode
from substrate.values import value
from substrate.world.change import summary
from substrate.world.environment import is_secret_name
from substrate.world.limits import core_leak
from substrate.world.linux import landlock_abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from substrate.session.capture_choice import Choice
    from substrate.session.command_run import Ended
    from substrate.session.covers import Covers
    from substrate.session.denials import Denial
    from substrate.session.reported import Joined
    from substrate.session.settings import Settings
    from substrate.session.streams import Recording, Streams
    from substrate.session.world_file import WorldFile
    from substrate.telemetry.trace.envelope import Event
    from substrate.telemetry.trace.events.command import Decision
    from substrate.telemetry.trace.pack import BlobRef
    from substrate.telemetry.trace.writer import TraceWriter
    from substrate.world.change import Change
    from substrate.world.egress.ports import Ports
    from substrate.world.limits import Enforcement
    from substrate.world.spec import CommandSpec

_ROUTED = (
    "--net veth: packets leave by the host's routes to what rules of addresses let through; names are not "
    "checked, and nothing that is said is looked at"
)
#: said of a world whose workspace is the host's own (shell.md §3)
SHELL_ONLY = (
    "--shell-only: the workspace is the host's own: what is changed there is changed at once and for good; "
    "the rest is copy-on-write"
)
_OCTETS = "application/octet-stream"
_OWN_SPAN = b"SUBSTRATE_PARENT_SPAN"
_JSON = "application/json"
_MOST_OPEN = 20
_NO_GATE = IsolationLayer(on=False, why="no exec policy is loaded")
#: the version of Landlock that scopes abstract sockets (world.holder)
_SCOPES = 6


def isolation_of(
    backend: str,
    settings: Settings,
    held: tuple[Enforcement, ...] = (),
    covers: Covers | None = None,
    *,
    listened: Ports | None = None,
    gate: IsolationLayer = _NO_GATE,
) -> Isolation:
    """What is really in force, layer by layer, with what weakens it. `listened`: the ports that lead
    out of a filtered network without packet filter, None for any other network. `gate`: the exec gate."""
    in_world = backend != "none"
    off = None if in_world else "no world was asked for"
    if backend == "guard":
        layers = {**_without_namespaces(settings, held, covers), "gate": gate}
        return Isolation(backend=backend, layers=layers)
    layers = {
        name: IsolationLayer(on=in_world, why=off)
        for name in ("fs", "pid", "ipc", "uts", "cgroup_ns", "hidden", "seccomp", "no_new_privs")
    }
    layers["capabilities"] = IsolationLayer(on=in_world, why=off)
    if in_world and settings.shell_only:
        layers["fs"] = IsolationLayer(on=True, why=SHELL_ONLY)
    layers["net"] = (
        IsolationLayer(on=True, why=None if listened is None else by_listeners(listened))
        if in_world and settings.net != "host"
        else IsolationLayer(on=False, why=off or "--net host: the world shares the host's network")
    )
    if in_world and settings.net == "veth":
        layers["net"] = IsolationLayer(on=True, why=_ROUTED)
    layers["abstract_sockets"] = IsolationLayer(on=in_world, why=off)
    if in_world and settings.net == "host" and landlock_abi() < _SCOPES:
        layers["abstract_sockets"] = IsolationLayer(
            on=False, why="--net host, and this kernel's Landlock does not scope them (Linux 6.12)"
        )
    layers["user"] = (
        IsolationLayer(on=True)
        if backend in ("ns-root-idmap", "ns-user")
        else IsolationLayer(on=False, why=off or f"backend {backend} has no user namespace")
    )
    loosened = [
        *(["ptrace inside the world is allowed"] if settings.ptrace else []),
        *(["namespaces and mounts inside the world are allowed"] if settings.userns else []),
    ]
    if loosened and in_world:
        layers["seccomp"] = IsolationLayer(on=True, why="; ".join(loosened))
    if in_world and covers is not None:
        layers["hidden"] = IsolationLayer(on=True, why=_what_is_open(covers))
    leak = _core_leak() if in_world else ""
    layers["core_dumps"] = IsolationLayer(on=in_world and not leak, why=leak or off)
    layers.update(_held(held))
    layers["gate"] = gate
    return Isolation(backend=backend, layers=layers)


def _held(held: tuple[Enforcement, ...]) -> dict[str, IsolationLayer]:
    layers = {}
    for limit in held:
        layers[f"limit_{limit.limit}"] = IsolationLayer(
            on=limit.by != "none",
            why=f"{limit.by}{', soft: ' + limit.why if limit.soft else ''}",
        )
    return layers


def _without_namespaces(
    settings: Settings, held: tuple[Enforcement, ...], covers: Covers | None
) -> dict[str, IsolationLayer]:
    """What `guard` gives: Landlock, filters and a copy."""
    opened = _what_is_open(covers) if covers is not None else None
    net = "no socket but pairs"
    if settings.net == "filtered":
        net = (
            "no namespace: sockets are made and connected for the command. What listens in the "
            "world is on the host's loopback, and other users of the host reach it there; network interfaces "
            "and connections of the host can be seen"
        )
    leak = _core_leak()
    return {
        "fs": IsolationLayer(
            on=True,
            why="no mounts: Landlock, and a private copy of the workspace at another path; what else lies "
            "there can be read, not written. Locks (flock) and FIFOs of the host can be reached",
        ),
        "hidden": IsolationLayer(
            on=True,
            why="; ".join(
                filter(
                    None, ("names and metadata of what is hidden can be seen, contents not", opened)
                )
            ),
        ),
        "net": IsolationLayer(on=True, why=net),
        "pid": IsolationLayer(
            on=False,
            why="no namespace: the host's processes can be listed, not signalled, traced or looked into. At "
            "the end the descendants of the command are killed; when the processes that hold the world are killed "
            "from outside, what runs goes on, in the copy and without a network",
        ),
        "ipc": IsolationLayer(
            on=True, why="System V and POSIX queues, memory and semaphores are refused"
        ),
        "uts": IsolationLayer(on=False, why="no namespace: the host's name can be seen, not set"),
        "cgroup_ns": IsolationLayer(on=False, why="no namespace"),
        "user": IsolationLayer(on=False, why="no namespace: the caller's own ids, without rights"),
        "seccomp": IsolationLayer(
            on=True, why="ptrace inside the world is allowed" if settings.ptrace else None
        ),
        "no_new_privs": IsolationLayer(on=True),
        "capabilities": IsolationLayer(on=True),
        "abstract_sockets": IsolationLayer(on=True, why="there are no UNIX sockets but pairs"),
        "core_dumps": IsolationLayer(on=not leak, why=leak or None),
        **_held(held),
    }


def by_listeners(ports: Ports) -> str:
    """What a network without packet filter is."""
    from substrate.world.egress.ports import in_words

    return f"filtered by listeners on {in_words(ports.numbers)}, as nf_tables is missing"


def _what_is_open(covers: Covers) -> str | None:
    """What would be hidden and is not, in at most so many words."""
    said = [f"shown: {_key(os.fsdecode(path))}" for path in covers.shown]
    said += [f"open: {_key(os.fsdecode(path))} ({why})" for path, why in covers.left_open]
    if len(said) > _MOST_OPEN:
        said = [*said[:_MOST_OPEN], f"and {len(said) - _MOST_OPEN} more"]
    return "; ".join(said) or None


def _core_leak() -> str:
    import resource

    with open("/proc/sys/kernel/core_pattern", "rb") as file:
        pattern = file.read()
    return core_leak(pattern, resource.getrlimit(resource.RLIMIT_CORE)[1])


class Recorder:
    """Writes one command's events. `span` is its span id."""

    def __init__(self, writer: TraceWriter, settings: Settings) -> None:
        self.writer = writer
        self.settings = settings
        self.span = new_span_id()

    # --- session and world

    def session_start(
        self, isolation: Isolation, capture: Choice, policy_digest: str | None = None
    ) -> Event:
        uname = os.uname()
        uid = os.geteuid()
        try:
            name: str | None = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = None
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            boot_id = file.read().strip()
        return SessionStart(
            user=User(uid=uid, name=name),
            host=uname.nodename,
            boot_id=boot_id,
            kernel=uname.release,
            arch=uname.machine,
            substrate_version=__version__,
            policy_digest=policy_digest,
            isolation=isolation,
            capture=CaptureInForce(
                backend=capture.backend, level=capture.level, blind_spots=capture.blind_spots
            ),
            durability=self.settings.durability,
            overflow=self.settings.overflow,
            deterministic=Deterministic(seed=None, clock="real"),
        ).event("shell")

    def world_start(
        self,
        world: WorldFile,
        layers: int,
        notes: tuple[str, ...],
        *,
        continued: bool,
        scopes: Sequence[tuple[str, Any]] = (),
    ) -> Event:
        """`scopes`: what the policy's [net], [fs] and [limits] came to for it."""
        return WorldStart(
            world=world.name,
            backend=world.backend,
            workspace=world.workspace,
            layers=layers,
            continued=continued,
            network=self.settings.net,
            notes=notes or None,
            extra=(("scopes", dict(scopes)),) if scopes else (),
        ).event("world")

    # --- the command

    def command_start(
        self,
        spec: CommandSpec,
        cmd_text: bytes | None,
        layer: int | None,
        withheld: tuple[bytes, ...],
        isolation: Isolation,
        decision: Decision,
        *,
        parent: str | None = None,
        joined: Joined | None = None,
    ) -> Event:
        """`parent`: the span that asked for it; None where nobody in a world did. `joined`: the call of
        an agent's tool that it belongs to."""
        put = self.writer.blobs.put
        public: dict[str, object] = {}
        secret: dict[str, BlobRef] = {}
        for name, text in spec.environ:
            shown = os.fsdecode(name)
            if name == _OWN_SPAN and text == self.span.encode():
                continue  # it is this line's span_id; with it no two commands would share a blob
            if is_secret_name(name):
                secret[_key(shown)] = put(text, _OCTETS)
            else:
                public[_key(shown)] = text_or_b64(text)
        terminal = spec.terminal and Terminal(cols=spec.terminal[0], rows=spec.terminal[1])
        return CommandStart(
            display=_display(spec.argv, cmd_text),
            argv=put(encode([text_or_b64(word) for word in spec.argv]), _JSON),
            env=put(encode(public), _JSON),
            cmd=None if cmd_text is None else put(cmd_text, _OCTETS),
            secret_env=secret or None,
            cwd=spec.cwd,
            umask=spec.umask,
            env_names=tuple(name for name, _ in spec.environ),
            env_withheld=withheld,
            terminal=terminal,
            layer=layer,
            replay_context={"file": text_or_b64(spec.file), "isolation": isolation.to_body()},
            policy_decision=decision,
            extra=() if joined is None else (("tool_call", joined.to_body()),),
        ).event(
            "shell",
            span_id=self.span,
            **({} if parent is None else {"parent_span_id": parent}),
        )

    def command_end(
        self,
        ended: Ended,
        streams: Streams,
        diff: DiffCounts | None,
        denied: tuple[Denial, ...] = (),
        summary: dict[str, Any] | None = None,
        scopes: tuple[Scope, ...] = (),
    ) -> Event:
        status = ended.status
        exit_status = signal_number = None
        if status is not None:
            if os.WIFSIGNALED(status):
                signal_number = os.WTERMSIG(status)
            else:
                exit_status = os.WEXITSTATUS(status)
        reason = None
        if ended.failed is not None:
            reason = f"{ended.failed[0]}: {ended.failed[2]}"
        elif ended.background_ended:
            reason = "background processes ended with the world: " + ", ".join(
                ended.background_ended
            )
        extra: list[tuple[str, Any]] = []
        if denied:
            extra.append(("denials", [_denial(each) for each in denied]))
        if summary:
            extra.append(("summary", summary))
        return CommandEnd(
            duration_us=ended.duration_us,
            rusage=_rusage(ended.usage),
            stdin=self._stream(streams.stdin),
            stdout=self._stream(streams.stdout),
            stderr=self._stream(streams.stderr, joined="stdout" if streams.joined else None),
            fs_diff=diff,
            ended_by=ended.ended_by,
            exit=exit_status,
            signal=signal_number,
            reason=reason,
            scopes_used=scopes,
            extra=tuple(extra),
        ).event("shell", span_id=self.span)

    def _stream(self, recording: Recording, joined: str | None = None) -> Stream:
        blob = self.writer.blobs.put(bytes(recording.kept), _OCTETS) if recording.kept else None
        extra: tuple[tuple[str, object], ...] = ()
        if recording.withheld:
            extra = (("withheld", recording.withheld),)
        return Stream(
            size=recording.size,
            recorded=recording.complete,
            digest=recording.digest(),
            blob=blob,
            joined=joined,
            extra=extra,
        )

    # --- what it changed

    def fs_diff(
        self,
        layer: int,
        changes: list[Change],
        bases: Mapping[bytes, dict[str, Any]],
        *,
        span: bool,
        soft: SoftDiff | None = None,
        shared_with: Sequence[str] = (),
    ) -> tuple[Event, DiffCounts]:
        """The `fs_diff` event of a layer, and the counts that `command_end` repeats.

        `bases`: what changed paths were made from (world/witness.py). `span`: the layer is this
        command's (not one that a killed supervisor left). `soft`: it is what one span of it wrote."""
        counts = summary(changes)
        by_kind = {name: getattr(counts, name) for name in counts.__slots__}  # type: ignore[attr-defined]
        entries = [_entry(change, bases.get(change.path)) for change in changes]
        whole = encode([entry.to_body() for entry in entries])
        digest = sha256_hex(whole)
        shared = (tuple(shared_with) or None) if soft is None else soft.shared_with
        extra = () if soft is None else soft.extra()
        if len(entries) <= MAX_ENTRIES and len(whole) < 512 * 1024:
            body = FsDiff(
                layer=layer,
                counts=by_kind,
                entries=tuple(entries),
                shared_with=shared,
                extra=extra,
            )
        else:
            body = FsDiff(
                layer=layer,
                counts=by_kind,
                tree_hash=digest,
                list_=self.writer.blobs.put(whole, _JSON),
                shared_with=shared,
                extra=extra,
            )
        span_id = self.span if span else None
        return (
            body.event("world", span_id=span_id if soft is None else soft.span),
            DiffCounts(digest=digest, **by_kind),
        )

    def layer_cut(
        self,
        layer: int,
        tree_digest: str,
        changes: int,
        *,
        span: bool,
        soft: SoftDiff | None = None,
        shared_with: Sequence[str] = (),
    ) -> Event:
        """`span`, `soft`, `shared_with` as above; a layer of the command is durable where that was asked for."""
        span_id = self.span if span else None
        return LayerCut(
            layer=layer,
            tree_digest=tree_digest,
            entries=changes,
            durable=soft is None and span and self.settings.layer_sync,
            soft=None if soft is None else True,
            shared_with=(tuple(shared_with) or None) if soft is None else soft.shared_with,
            extra=() if soft is None else (("soft_layer", soft.number),),
        ).event("world", span_id=span_id if soft is None else soft.span)


@value
class SoftDiff:
    """That an `fs_diff` tells of what `span` wrote in a layer that it shared with others: `number`
    of the soft layer; `undoes`: of the one that this takes back, and then there is no span; `refused`: (path, why) of what cannot be told apart."""

    span: str | None
    number: int
    shared_with: tuple[str, ...]
    undoes: int = 0
    refused: tuple[tuple[bytes, str], ...] = ()

    def extra(self) -> tuple[tuple[str, Any], ...]:
        found: list[tuple[str, Any]] = [("soft", True), ("soft_layer", self.number)]
        if self.undoes:
            found.append(("undoes", self.undoes))
        if self.refused:
            listed = self.refused[:MAX_ENTRIES]
            plain = [{"path": text_or_b64(path), "why": _key(why)} for path, why in listed]
            found += [("refused", plain), ("refused_count", len(self.refused))]
        return tuple(found)


def _display(argv: tuple[bytes, ...], text: bytes | None) -> Display:
    """What people see: of an agent's scaffolding what it runs, with what else varies in it beside; argv
    has the whole."""
    found = None if text is None else find_scaffolding(text)
    if found is None:
        return Display(argv=argv, cmd=text)
    around: dict[str, Any] = {"by": found.by, "note": text_or_b64(found.note)}
    if found.snapshot is not None:
        around["snapshot"] = text_or_b64(found.snapshot)
    return Display(argv=argv, cmd=found.command, extra=(("scaffolding", around),))


def _denial(denial: Denial) -> dict[str, str]:
    return {"code": denial.code, "text": _key(denial.text)}


def _key(name: str) -> str:
    """Text, such as a variable's name as an object key: what is not UTF-8 is kept by escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entry(change: Change, base: dict[str, Any] | None) -> FsEntry:
    before, after = change.before, change.after
    extra: list[tuple[str, Any]] = [] if base is None else [("base", base)]
    if change.what:
        extra.append(("what", list(change.what)))
    return FsEntry(
        path=change.path,
        kind=change.kind,
        mode=None if after is None else after.mode,
        size=None if after is None else after.size,
        type_=(after or before).type if (after or before) is not None else None,  # type: ignore[union-attr]
        digest_before=None if before is None else before.digest,
        digest_after=None if after is None else after.digest,
        from_path=change.old_path,
        target=None if after is None else after.link,
        extra=tuple(extra),
    )


def _rusage(usage: tuple[int, ...]) -> Rusage | None:
    if len(usage) != 9:
        return None
    names = (
        "utime_us",
        "stime_us",
        "maxrss_kib",
        "minflt",
        "majflt",
        "inblock",
        "oublock",
        "nvcsw",
        "nivcsw",
    )
    return Rusage.from_body(dict(zip(names, usage, strict=True)))


def sha256_hex(data: bytes) -> str:
    """Of bytes, by the implementation that is the faster for so many."""
    from substrate.sha256 import bulk

    state = bulk(len(data))
    state.update(data)
    return state.hexdigest()
