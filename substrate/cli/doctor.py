"""`substrate doctor`: what works on this host, found out by trying, and what to do otherwise.

Starts a world with each backend, makes a control group, writes into the home. Nothing is
concluded from versions (world.md §1); versions are only shown.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from substrate import __version__
from substrate.cli import output
from substrate.cli.progress import working
from substrate.cli.target import here
from substrate.cli.verb import Verb
from substrate.errors import HostUnsupported, SubstrateError
from substrate.session import capture_probe, layer_place
from substrate.session import home as homes
from substrate.session.probe import ProbeResult, probe, probe_all
from substrate.session.settings import load_settings, places
from substrate.session.workspace import current_directory
from substrate.telemetry.capture import engine
from substrate.world import cgroup, cgroup_plan
from substrate.world.handle import Zygote
from substrate.world.limits import Limits

_LITTLE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tried. `ok` is None for what is only told."""

    name: str
    ok: bool | None
    text: str
    code: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`wanted`: the backend of the settings, `auto` for the best."""

    backends: tuple[ProbeResult, ...]
    checks: tuple[Check, ...]
    wanted: str

    @property
    def used(self) -> str | None:
        """The backend of a new world; None where it would not start."""
        return _used(self.backends, self.wanted)

    @property
    def works(self) -> bool:
        """Whether a command can run in a world here."""
        well = all(check.ok for check in self.checks if check.name in ("home", "settings"))
        return well and self.used is not None


def _used(backends: Sequence[ProbeResult], wanted: str) -> str | None:
    return next((b.backend for b in backends if b.works and wanted in ("auto", b.backend)), None)


def run() -> Result:
    """Tries everything. Never raises for what does not work: that is the result."""
    path = homes.default_path(os.environb)
    backends: list[ProbeResult] = []
    wanted, checks = _wanted()
    try:
        home = homes.open_home(path)
    except SubstrateError as error:
        checks.append(Check(name="home", ok=False, text=str(error), remedy=error.hint))
    else:
        text = f"{os.fsdecode(path)}, yours, mode 0700"
        checks.append(Check(name="home", ok=True, text=text))
        zygote = Zygote()
        try:
            backends = probe_all(home, zygote)
            checks += _network(_used(backends, wanted), home, zygote)
        except OSError as error:
            checks.append(Check(name="probe", ok=False, text=str(error), remedy="see the home"))
        except SubstrateError as error:
            checks.append(Check(name="probe", ok=False, text=str(error), remedy=error.hint))
        finally:
            zygote.close()
        checks += [_layers(note) for note in sorted({b.note for b in backends if b.note})]
        births = layer_place.without_births(layer_place.parent_of_all(home) or path)
        if births:
            checks.append(Check(name="births", ok=None, text=births, code="E-BTIME"))
        os.close(home.fd)
        checks.append(_disk(path))
    checks += _limits()
    checks += _capture()
    checks += _shims()
    checks += _told()
    return Result(backends=tuple(backends), checks=tuple(checks), wanted=wanted)


def _wanted() -> tuple[str, list[Check]]:
    """The backend of the settings, and what is wrong with these."""
    try:
        where = places(os.environb, current_directory(), here().path)
        loaded = load_settings((), os.environb, where, on_terminal=False)
    except SubstrateError as error:
        return "auto", [Check(name="settings", ok=False, text=str(error), remedy=error.hint)]
    return loaded.settings.backend, []


def _network(backend: str | None, home: homes.Home, zygote: Zygote) -> list[Check]:
    """By what a filtered network of the backend that is used is filtered."""
    if backend is None:
        return []
    if backend == "guard":
        text = "filtered: sockets are made and connected in place of the command"
        return [Check(name="network", ok=True, text=text)]
    found = probe(backend, home, zygote, "filtered")
    if not found.works:
        return [
            Check(name="network", ok=False, text=found.why, code=found.code, remedy=found.remedy)
        ]
    if found.filter == "nf_tables":
        return [Check(name="network", ok=True, text="filtered by nf_tables")]
    text = (
        "filtered by listeners, as nf_tables is missing: the ports alone that rules name lead out"
    )
    return [Check(name="network", ok=None, text=text, code="E-NFT")]


def _layers(note: str) -> Check:
    return Check(name="layers", ok=None, text=note, code="E-UPPER-OVERLAY")


def _disk(path: bytes) -> Check:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    text = f"{output.show_size(free)} free, {status.f_favail} files"
    if free < _LITTLE_BYTES or status.f_favail < 10_000:
        return Check(
            name="disk",
            ok=False,
            text=text,
            remedy="make room, or set SUBSTRATE_HOME to another disk; `substrate world gc`",
        )
    return Check(name="disk", ok=True, text=text)


def _limits() -> list[Check]:
    """A control group with every limit, made and removed again."""
    with open("/proc/self/cgroup", "rb") as file:
        own = file.read()
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = file.read()
    wanted = Limits(pids=64, memory_bytes=64 << 20, cpu_milli=500)
    plan = cgroup_plan.choose(wanted, self_cgroup=own, mountinfo=mounts)
    versions = plan.versions()
    try:
        made = cgroup.create(plan, cgroup.group_name(0))
        left = made.remove()
    except HostUnsupported as error:
        return [Check(name="limits", ok=False, text=str(error), code=error.code, remedy=error.hint)]
    checks = []
    for controller in ("pids", "memory", "cpu"):
        if controller in versions:
            text = f"cgroup v{versions[controller]}"
            checks.append(Check(name=f"limit {controller}", ok=True, text=text))
        else:
            checks.append(
                Check(
                    name=f"limit {controller}",
                    ok=False,
                    text=f"{dict(plan.missing).get(controller, 'no cgroup')}: an rlimit stands in, "
                    "which a determined program gets around",
                    code="E-CGROUP-RO",
                    remedy="make the cgroup writable (systemd: Delegate=yes; docker: "
                    "--cgroupns=private with a writable /sys/fs/cgroup)",
                )
            )
    if left:
        listed = ", ".join(map(os.fsdecode, left))
        checks.append(Check(name="cgroups", ok=False, text=f"still busy: {listed}"))
    return checks


def _capture() -> list[Check]:
    """Each capture backend, with a child of ours."""
    checks = []
    if not engine.is_built():
        checks.append(
            Check(
                name="capture engine",
                ok=False,
                text="the C extension was not built when substrate was installed: what captures "
                "without it is many times slower",
                code="E-NO-ENGINE",
                remedy="install a C compiler and Python's headers (Debian: gcc python3-dev), then "
                "install substrate again",
            )
        )
    for found in capture_probe.probe_all():
        text = capture_probe.TELLS[found.backend]
        if not found.works:
            text = f"{found.step}: {found.why}"
        checks.append(Check(name=f"capture {found.backend}", ok=found.works, text=text))
    return checks


def _shims() -> list[Check]:
    """What a shim is here."""
    from substrate.shim.deploying import built_stub

    if built_stub() is not None:
        return [Check(name="shims", ok=True, text="the stub was built")]
    return [
        Check(
            name="shims",
            ok=False,
            text="the stub was not built when substrate was installed: shims are Python's, and each "
            "command behind one costs some 20 ms more",
            code="E-NO-STUB",
            remedy="install a C compiler (Debian: gcc libc6-dev), then install substrate again",
        )
    ]


def _told() -> list[Check]:
    uname = os.uname()
    return [
        Check(name="substrate", ok=None, text=__version__),
        Check(name="python", ok=None, text=platform.python_version()),
        Check(name="kernel", ok=None, text=f"{uname.release} {uname.machine}"),
        Check(name="user", ok=None, text=f"uid {os.geteuid()}"),
    ]


def as_object(result: Result) -> dict[str, Any]:
    return {
        "works": result.works,
        "backends": [
            {
                "backend": b.backend,
                "works": b.works,
                "code": b.code or None,
                "why": b.why or None,
                "remedy": b.remedy or None,
            }
            for b in result.backends
        ],
        "checks": [
            {
                "name": c.name,
                "ok": c.ok,
                "text": c.text,
                "code": c.code or None,
                "remedy": c.remedy or None,
            }
            for c in result.checks
        ],
    }


def render(result: Result, form: str) -> None:
    if form != "table":
        output.put_object("doctor", as_object(result), form)
        return
    for backend in result.backends:
        used = ", used" if backend.backend == result.used else ""
        text = f"works{used}" if backend.works else backend.why
        _line(backend.works, f"backend {backend.backend}", text, backend.code, backend.remedy)
    for check in result.checks:
        _line(check.ok, check.name, check.text, check.code, check.remedy)


def _line(ok: bool | None, name: str, text: str, code: str, remedy: str) -> None:
    mark = {True: "ok  ", False: "FAIL", None: "    "}[ok]
    tail = f" [{code}]" if code else ""
    output.put_visible(f"{mark} {name + ':':<24} {text}{tail}")
    if remedy and ok is False:
        output.put_visible(f"{'':<29} -> {remedy}")


@click.command("doctor", cls=Verb)
@output.format_option
def command(form: str) -> int:
    """Example:
      substrate doctor

    Tries what worlds need on this host: each backend, limits, the home, the disk. What does
    not work comes with its code and what to do. Exit status 1 where no world can start."""
    with working("trying"):
        result = run()
    render(result, form)
    return 0 if result.works else 1
