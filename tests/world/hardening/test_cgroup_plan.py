"""Where groups would be made, on hosts that are only directories."""

import os
import tempfile
from pathlib import Path

import pytest

from substrate.world.cgroup_plan import Hierarchy, choose
from substrate.world.limits import Limits

ALL = Limits(pids=100, memory_bytes=1 << 28, cpu_milli=1500)
V2 = b"31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def v1(controllers, options=b"rw", root=b"/"):
    return b"32 31 0:29 %s /sys/fs/cgroup/%s %s - cgroup cgroup rw,%s\n" % (
        root,
        controllers,
        options,
        controllers,
    )


class Host:
    """A fake /sys/fs/cgroup below a directory."""

    def __init__(self, root):
        self.root = root
        self.top = root / "sys/fs/cgroup"
        self.top.mkdir(parents=True)

    def group(self, path, **files):
        directory = self.top / path
        directory.mkdir(parents=True, exist_ok=True)
        texts = {"cgroup_procs": "", **files}
        for name, text in texts.items():
            stem, _, rest = name.partition("_")
            (directory / f"{stem}.{rest}").write_text(text)
        return os.fsencode(directory)

    def v2(self, path, controllers="", enabled="", kind="domain", procs="", **files):
        extra = {} if kind is None else {"cgroup_type": kind + "\n"}
        return self.group(
            path,
            cgroup_controllers=controllers + "\n",
            cgroup_subtree_control=enabled + "\n",
            cgroup_procs=procs,
            **extra,
            **files,
        )

    def choose(self, own, mounts, limits=ALL):
        return choose(limits, self_cgroup=own, mountinfo=mounts, root=os.fsencode(self.root))


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


EVERY = "cpu memory pids"


def test_v2_beside_the_caller(host):
    host.v2("", EVERY, EVERY, kind=None)
    parent = host.v2("app.slice", EVERY, EVERY)
    host.v2("app.slice/me.scope", EVERY, procs="1\n2\n")
    plan = host.choose(b"0::/app.slice/me.scope\n", V2)
    assert plan.hierarchies == (
        Hierarchy(version=2, parent=parent, controllers=("pids", "memory", "cpu")),
    )
    assert plan.missing == ()
    assert plan.versions() == {"pids": 2, "memory": 2, "cpu": 2}


def test_v2_enables_what_the_parent_has_but_does_not_give(host):
    host.v2("app.slice", EVERY, "memory")
    host.v2("app.slice/me.scope", "memory", procs="1\n")
    (hierarchy,) = host.choose(b"0::/app.slice/me.scope\n", V2).hierarchies
    assert hierarchy.enable == ("pids", "cpu")
    assert not hierarchy.needs_leaf


@pytest.mark.parametrize(
    "limit", [{"memory_max": "1000\n"}, {"pids_max": "10\n"}, {"cpu_max": "50000 100000\n"}]
)
def test_a_limit_of_the_caller_is_not_escaped(host, limit):
    host.v2("a", EVERY, EVERY)
    own = host.v2("a/me", EVERY, procs=f"{os.getpid()}\n", **limit)
    (hierarchy,) = host.choose(b"0::/a/me\n", V2).hierarchies
    assert hierarchy.parent == own
    assert hierarchy.needs_leaf


def test_no_limit_of_the_caller_is_no_obstacle(host):
    parent = host.v2("a", EVERY, EVERY)
    host.v2("a/me", EVERY, procs="1\n", memory_max="max\n", cpu_max="max 100000\n")
    (hierarchy,) = host.choose(b"0::/a/me\n", V2).hierarchies
    assert hierarchy.parent == parent


def test_alone_at_the_top_of_a_container_the_caller_makes_room(host):
    own = host.v2("", EVERY, "", procs=f"{os.getpid()}\n")
    plan = host.choose(b"0::/\n", V2)
    assert plan.hierarchies == (
        Hierarchy(
            version=2,
            parent=own,
            controllers=("pids", "memory", "cpu"),
            enable=("pids", "memory", "cpu"),
            needs_leaf=True,
        ),
    )


def test_with_others_beside_it_the_caller_moves_nobody(host):
    own = host.v2("", EVERY, "", procs=f"1\n{os.getpid()}\n")
    plan = host.choose(b"0::/\n", V2)
    assert plan.hierarchies == (Hierarchy(version=2, parent=own, controllers=()),)
    assert [c for c, _ in plan.missing] == ["pids", "memory", "cpu"]
    assert "no internal processes" in plan.missing[0][1]


def test_the_hosts_root_may_hold_processes(host):
    own = host.v2("", EVERY, "", kind=None, procs="1\n2\n3\n")
    (hierarchy,) = host.choose(b"0::/\n", V2).hierarchies
    assert hierarchy.parent == own
    assert hierarchy.enable == ("pids", "memory", "cpu")
    assert not hierarchy.needs_leaf


def test_only_what_is_delegated(host):
    host.v2("a", "memory pids", "memory pids")
    host.v2("a/me", "memory pids")
    plan = host.choose(b"0::/a/me\n", V2)
    assert plan.versions() == {"pids": 2, "memory": 2}
    ((controller, why),) = plan.missing
    assert controller == "cpu"
    assert "not delegated" in why


def test_a_threaded_group_takes_no_world(host):
    host.v2("a", EVERY, EVERY, kind="threaded")
    host.v2("a/me", EVERY, kind="threaded")
    plan = host.choose(b"0::/a/me\n", V2)
    assert plan.hierarchies == ()
    assert "threaded" in dict(plan.missing)["pids"]


def test_read_only_v2(host):
    host.v2("", EVERY, EVERY)
    plan = host.choose(b"0::/\n", V2.replace(b"rw - ", b"ro,nosuid - "))
    assert plan.hierarchies == ()
    assert all("read-only" in why for _, why in plan.missing)


def test_v1_each_controller_below_the_callers_own_group(host):
    pids = host.group("pids")
    memory = host.group("memory/process_api/abc")
    cpu = host.group("cpu,cpuacct")
    freezer = host.group("freezer")
    own = b"9:freezer:/\n8:pids:/\n4:memory:/process_api/abc\n3:cpu,cpuacct:/\n1:name=systemd:/\n"
    mounts = v1(b"pids") + v1(b"memory") + v1(b"cpu,cpuacct") + v1(b"freezer")
    plan = host.choose(own, mounts)
    assert plan.hierarchies == (
        Hierarchy(version=1, parent=pids, controllers=("pids",)),
        Hierarchy(version=1, parent=memory, controllers=("memory",)),
        Hierarchy(version=1, parent=cpu, controllers=("cpu",)),
        Hierarchy(version=1, parent=freezer, controllers=("freezer",)),
    )
    assert plan.missing == ()


def test_controllers_on_one_v1_hierarchy_make_one_group(host):
    both = host.group("cpu,memory")
    own = b"3:cpu,memory:/\n"
    plan = host.choose(own, v1(b"cpu,memory"), Limits(memory_bytes=1 << 30, cpu_milli=500))
    assert plan.hierarchies == (Hierarchy(version=1, parent=both, controllers=("memory", "cpu")),)


def test_a_v1_mount_that_shows_only_the_containers_part(host):
    pids = host.group("pids")
    plan = host.choose(b"8:pids:/docker/x\n", v1(b"pids", root=b"/docker/x"), Limits(pids=9))
    assert [h.parent for h in plan.hierarchies] == [pids]


def test_a_caller_outside_of_what_is_mounted(host):
    host.group("pids")
    plan = host.choose(b"8:pids:/other\n", v1(b"pids", root=b"/docker/x"), Limits(pids=9))
    assert plan.hierarchies == ()
    assert "outside" in dict(plan.missing)["pids"]


def test_one_read_only_v1_controller_is_missing_by_itself(host):
    host.group("pids")
    host.group("memory")
    own = b"8:pids:/\n4:memory:/\n"
    plan = host.choose(own, v1(b"pids") + v1(b"memory", b"ro"))
    assert plan.versions() == {"pids": 1}
    assert "read-only" in dict(plan.missing)["memory"]
    assert "no cgroup hierarchy" in dict(plan.missing)["cpu"]


def test_hybrid_kills_by_v2_and_limits_by_v1(host):
    unified = host.v2("unified", kind=None)
    pids = host.group("pids")
    mounts = b"31 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" + v1(b"pids")
    plan = host.choose(b"8:pids:/\n0::/\n", mounts + v1(b"freezer"), Limits(pids=9))
    assert plan.hierarchies == (
        Hierarchy(version=2, parent=unified, controllers=()),
        Hierarchy(version=1, parent=pids, controllers=("pids",)),
    )


def test_a_host_without_cgroups(host):
    plan = host.choose(b"", b"")
    assert plan.hierarchies == ()
    assert [c for c, _ in plan.missing] == ["pids", "memory", "cpu"]


def test_no_limits_need_no_controllers(host):
    host.v2("", EVERY, "", kind=None)
    (hierarchy,) = host.choose(b"0::/\n", V2, Limits()).hierarchies
    assert hierarchy.controllers == hierarchy.enable == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_somebody_elses_groups_are_not_writable(in_child):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        host = Host(Path(directory))
        host.v2("", EVERY, EVERY)

        def child():
            os.setresuid(65534, 65534, 65534)
            plan = host.choose(b"0::/\n", V2)
            return plan.hierarchies == () and "not writable for uid 65534" in plan.missing[0][1]

        assert in_child(child) == 1
