"""Hosts without control groups that could be written: limits become rlimits, marked soft, and
what was required is refused (world.md §1 E-CGROUP-RO, §7 "Limits")."""

import json
import os

import pytest

from tests.system.other_host import PLAIN_ROOT, other_host

if os.geteuid() != 0:
    pytest.skip("making another host of mounts needs root", allow_module_level=True)

#: name -> what makes such a host
HOSTS = {
    "none": "umount -l /sys/fs/cgroup",
    "read-only": """
        for at in $(awk '$5 ~ "^/sys/fs/cgroup" { print $5 }' /proc/self/mountinfo); do
            mount -o remount,bind,ro "$at"
        done
    """,
}


@pytest.fixture(params=HOSTS)
def there(request, make_caller, base):
    caller = make_caller("ns-root-idmap")
    with other_host(caller, base / f"no-cgroup-{request.param}", PLAIN_ROOT,
                    HOSTS[request.param]) as resident:  # fmt: skip
        yield resident


def test_limits_are_held_by_rlimits_and_called_soft(there):
    done = there.substrate(
        "--limit", "pids=20", "--limit", "memory=64m", "-c", "ulimit -u; ulimit -d"
    )
    assert (done.returncode, done.stdout) == (0, b"20\n65536\n"), done
    (start,) = [e for e in there.events() if e["event_type"] == "session_start"]
    layers = start["body"]["isolation"]["layers"]
    for name in ("limit_pids", "limit_memory_bytes"):
        assert layers[name]["on"] and layers[name]["why"].startswith("rlimit, soft: "), layers[name]


def test_a_limit_that_nothing_holds_is_said_to_be_off(there):
    done = there.substrate("--limit", "cpu=1", "-c", "true")
    assert done.returncode == 0, done
    (start,) = [e for e in there.events() if e["event_type"] == "session_start"]
    assert not start["body"]["isolation"]["layers"]["limit_cpu_milli"]["on"]


def test_required_limits_are_refused(there):
    done = there.substrate("--limit", "memory=64m", "--require", "fs,limits", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, b""), done
    assert b"limits is required" in done.stderr


def test_doctor_tells_why(there):
    done = there.substrate("doctor", "--format", "json")
    checks = [c for c in json.loads(done.stdout)["checks"] if c["name"].startswith("limit ")]
    assert [c["name"] for c in checks] == ["limit pids", "limit memory", "limit cpu"]
    for check in checks:
        assert not check["ok"] and check["code"] == "E-CGROUP-RO" and check["remedy"]
        assert "mounted" in check["text"], check


def test_no_process_is_left_without_a_group_to_kill(there):
    done = there.substrate("--background", "100ms", "-c", "sleep 871234 & echo out")
    assert (done.returncode, done.stdout) == (0, b"out\n"), done
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                assert b"871234" not in file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
