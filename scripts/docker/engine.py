"""A Docker engine of our own, for the time of one run: nothing of the host's is used or left.

It lives in a mount namespace of its own, so none of its mounts are seen elsewhere; it has no
bridge and touches no firewall, so containers have no network but `lo`. Data, sockets and state
lie in one directory. It is ended by its pid, and its groups are removed. Needs root, and a
filesystem below the directory that can be an overlay's upper.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {"dockerd": "docker.io", "containerd": "containerd", "runc": "runc"}
#: what engines make outside of their own directories
_MADE_BESIDE = ("/run/docker", "/run/containerd", "/opt/containerd")
_READY_S = 30.0
_STOP_S = 30.0


def install_missing(programs: dict[str, str]) -> None:
    """Debian packages of the programs that are not here; no service is started by that."""
    wanted = sorted({package for name, package in programs.items() if which(name) is None})
    if not wanted:
        return
    print(f"installing {' '.join(wanted)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
    subprocess.run([*apt, "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*apt, "install", "-y", "--no-install-recommends", *wanted],
        check=True,
        env={**environment, "RUNLEVEL": "1"},  # invoke-rc.d(8): not where services start
        stdout=subprocess.DEVNULL,
    )


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Engine:
    """A running engine; `with` ends it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._groups_before = _groups()
        self._left = [path for path in _MADE_BESIDE if not os.path.exists(path)]

    def __enter__(self) -> "Engine":
        self.directory.mkdir(parents=True)
        dockerd = which("dockerd")
        assert dockerd is not None
        words = [
            "unshare", "--mount", "--propagation", "private",
            dockerd, "--data-root", self.directory / "data", "--exec-root", self.directory / "exec",
            "--pidfile", self.directory / "pid", "-H", f"unix://{self.socket}", "--bridge=none",
            "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        ]  # fmt: skip
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [os.fspath(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PATH": path},
            )
        deadline = time.monotonic() + _READY_S
        while self._docker("version").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                self.__exit__()
                raise RuntimeError(f"the engine did not start:\n{tail}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        left = self._docker("ps", "-aq").stdout.split()
        if left:
            self._docker("rm", "-f", *left)
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(self.directory)
        for group in sorted(_groups() - self._groups_before, reverse=True):
            os.rmdir(group)
        for path in self._left:
            if os.path.isdir(path):
                shutil.rmtree(path)

    def _docker(self, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
        client = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}"}
        return subprocess.run(
            [client, *words],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            **options,
        )  # type: ignore[call-overload,no-any-return]

    def try_docker(
        self, words: Sequence[str], timeout_s: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        """Runs the client; its status is the caller's to judge."""
        return self._docker(*words, timeout=timeout_s)

    def docker(self, *words: str) -> str:
        """Runs the client, which must succeed; returns its output."""
        done = self._docker(*words)
        if done.returncode != 0:
            raise RuntimeError(f"docker {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def version(self) -> str:
        """Versions of the engine and of what runs its containers."""
        engine = self.docker("version", "--format", "{{.Server.Version}}")
        runc = subprocess.run(
            [which("runc") or "runc", "--version"], capture_output=True, text=True, check=True
        )
        return f"Docker {engine}, {runc.stdout.splitlines()[0]}"


def _groups() -> set[str]:
    """What engines leave in the cgroup filesystems: `docker`, with nothing in it."""
    found = set()
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        if "docker" in names:
            for inner, _, _ in os.walk(os.path.join(top, "docker")):
                found.add(inner)
    return found
