"""A place with shims, of both stubs, and a real supervisor that is asked."""

import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from substrate.shim import deploying
from tests.shim.supervisor import SESSION, Supervisor

TOOLS = ("tool", "other", "python3", "bash", "sh")


@dataclass
class Place:
    """`shims`, `bin` with real commands, `work`; calls of shims by somebody who has little else."""

    base: Path
    kind: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def shims(self) -> Path:
        return self.base / "shims"

    @property
    def bin(self) -> Path:
        return self.base / "bin"

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self.shims}:{self.bin}:/usr/bin:/bin",
            "HOME": str(self.base),
            "SUBSTRATE_HOME": str(self.base / "state"),
            "SUBSTRATE_SESSION": SESSION,
            "LANG": "C.UTF-8",
            **{k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")},
            **self.extra,
        }

    def deploy(self, *, fail_open: bool = False, substrate: bytes | None = None) -> None:
        planned = deploying.plan(
            os.fsencode(self.shims),
            TOOLS,
            every=True,
            fail_open=fail_open,
            python=self.kind == "python",
        )
        if substrate is not None:
            planned = replace(planned, substrate=substrate)
        deploying.deploy(planned)

    def script(self, name: str, text: str, directory: Path | None = None) -> Path:
        path = (directory or self.bin) / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def call(self, *words, env=None, **options) -> subprocess.CompletedProcess[bytes]:
        """`words[0]`: the name of a shim, or a path."""
        file = words[0] if "/" in str(words[0]) else self.shims / words[0]
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [file, *words[1:]],
            env=self.environ if env is None else env,
            cwd=options.pop("cwd", self.work),
            capture_output=True,
            timeout=60,
            **options,
        )


@pytest.fixture(scope="session", autouse=True)
def stub_of_fuzzing():
    """scripts/fuzz-stub runs these tests with a stub of its own."""
    given = os.environ.get("SUBSTRATE_TEST_STUB")
    if given:
        deploying.built_stub = lambda: os.fsencode(given)
    return given


@pytest.fixture(params=["c", "python"])
def place(request, tmp_path):
    made = Place(tmp_path, request.param)
    for directory in (made.bin, made.work):
        directory.mkdir()
    made.script(
        "tool", '#!/bin/sh\nprintf "%s|" tool "$@"\necho "$SUBSTRATE_PARENT_SPAN"\nexit 7\n'
    )
    made.deploy()
    return made


@pytest.fixture
def supervisor(tmp_path):
    made = Supervisor(tmp_path)
    yield made
    made.close()
