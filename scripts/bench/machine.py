"""What the numbers were taken on: machine, kernel, load, filesystem, versions of peers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

#: program → how it tells its version
PEERS = {
    "bwrap": ["bwrap", "--version"],
    "unshare": ["unshare", "--version"],
    "strace": ["strace", "-V"],
    "reprozip": ["reprozip", "--version"],
    "bpftrace": ["bpftrace", "--version"],
    "docker": ["docker", "version", "--format", "{{.Server.Version}}"],
    "try": ["try", "-v"],
    "srt": ["srt", "--version"],
    "tinyproxy": ["tinyproxy", "-v"],
    "nft": ["nft", "--version"],
    "rsync": ["rsync", "--version"],
    "cp": ["cp", "--version"],
    "sqlite3 (module)": [],
}


def describe(scratch: str) -> dict[str, str]:
    """Plain facts by name, for the head of a report."""
    return {
        "cpu": f"{_cpu()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} usable",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 30} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": _os_release(),
        "scratch": _filesystem(scratch),
    }


def load() -> str:
    """The load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{x:.2f}" for x in os.getloadavg())


def peer_versions() -> dict[str, str]:
    """Version of each peer program, or why it is not here."""
    found = {}
    for name, argv in PEERS.items():
        if not argv:
            import sqlite3

            found[name] = sqlite3.sqlite_version
            continue
        if shutil.which(argv[0]) is None:
            found[name] = "absent"
            continue
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        lines = (done.stdout or done.stderr).strip().splitlines()
        found[name] = lines[0] if done.returncode == 0 and lines else "present, not usable"
    return found


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _os_release() -> str:
    with open("/etc/os-release", encoding="utf-8") as file:
        for line in file:
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip('"')
    return "unknown"


def _filesystem(path: str) -> str:
    """Type of the filesystem that holds `path`, by the longest mount point above it."""
    best, kind = "", "unknown"
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split()[4]
            if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, right.split()[0]
    return kind
