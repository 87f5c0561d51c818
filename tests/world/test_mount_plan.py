"""Which places a world overlays and binds: mount tables and looks in, plans out."""

import pytest

from substrate.errors import HostUnsupported
from substrate.world import mount_plan
from substrate.world.mount_plan import plan_root, plan_rootless
from substrate.world.mountinfo import parse_mountinfo

_ROOT = b"20 1 8:1 / / rw,relatime - ext4 /dev/sda rw\n"


def table(*lines):
    """A root filesystem and more mounts on it: (point, filesystem, options, super options)."""
    text = _ROOT
    for number, (point, *rest) in enumerate(lines, 30):
        filesystem, options, super_options = (*rest, *(b"ext4", b"rw", b"rw")[len(rest) :])
        parents = [
            (other[0], n) for n, other in enumerate(lines, 30) if point.startswith(other[0] + b"/")
        ]
        parent = max(parents, default=(b"", 20))[1]
        text += b"%d %d 0:%d / %s %s - %s none %s\n" % (
            number, parent, number, point, options, filesystem, super_options,
        )  # fmt: skip
    return parse_mountinfo(text)


class Host:
    """What a plan asks of a host. `tree`: directory → names; a directory's end in a slash."""

    uid = 1000

    def __init__(self, tree=None, *, foreign=(), closed=(), files=(), locked=(), refused=None):
        self.tree = tree or {}
        self.foreign, self.closed, self.files = foreign, closed, files
        self.locked = locked
        self.refused = refused or {}
        self.asked = []

    def why_no_directory(self, path):
        return "a single file cannot be overlaid" if path in self.files else ""

    def is_mapped(self, path):
        return path not in self.foreign

    def is_writable(self, path):
        return path not in self.closed

    def is_open(self, path):
        return not any(path == d or path.startswith(d + b"/") for d in self.locked)

    def entries(self, directory):
        names = self.tree.get(directory, ())
        return tuple((name.rstrip(b"/"), name.endswith(b"/")) for name in names)

    def refusals(self, points):
        self.asked += points
        return {p: why for p, why in self.refused.items() if p in points}


def rootless(writable, host=None, *mounts, keep_out=(), workspace=b"/home/u/project"):
    return plan_rootless(table(*mounts), writable, host or Host(), keep_out, workspace)


# --- the roots of a rootless world


def test_a_root_inside_another_one_is_part_of_it():
    plan = rootless((b"/home/u", b"/home/u/project", b"/tmp"))
    assert plan.overlays == (b"/home/u", b"/tmp")
    assert plan.notes == ()
    assert plan.spines == ()


def test_a_root_behind_a_foreign_directory_is_overlaid_by_itself():
    plan = rootless((b"/tmp", b"/tmp/shared/mine"), Host(foreign=(b"/tmp/shared",)))
    assert plan.overlays == (b"/tmp", b"/tmp/shared/mine")


def test_a_root_of_somebody_else_inside_another_one_is_overlaid_by_itself():
    # nothing can be made in it otherwise: it would have to be copied up
    plan = rootless((b"/tmp", b"/tmp/open"), Host(foreign=(b"/tmp", b"/tmp/open")))
    assert plan.overlays == (b"/tmp", b"/tmp/open")


def test_the_owner_of_the_outer_root_does_not_matter():
    plan = rootless((b"/tmp", b"/tmp/mine"), Host(foreign=(b"/tmp",)))
    assert plan.overlays == (b"/tmp",)


def test_a_workspace_on_a_mount_of_its_own_in_the_home_is_overlaid():
    # the mount's own directory is root's, so it is no overlay that could hold the workspace
    plan = rootless(
        (b"/home/u", b"/home/u/disk/project"),
        Host({b"/home/u": [b"disk/"]}, closed=(b"/home/u/disk",)),
        (b"/home/u/disk",),
    )
    assert plan.overlays == (b"/home/u", b"/home/u/disk/project")
    assert plan.read_only == (b"/home/u/disk",)


def test_what_can_be_written_below_a_read_only_home_is_overlaid():
    plan = rootless(
        (b"/home/u", b"/home/u/project"),
        Host(),
        (b"/home/u", b"ext4", b"ro"),
        (b"/home/u/project",),
        (b"/home/u/.cache", b"tmpfs"),
    )
    assert plan.overlays == (b"/home/u/.cache", b"/home/u/project")
    assert plan.notes == ("/home/u stays read-only: it is mounted read-only",)


# --- spines


def test_a_mount_in_the_home_makes_a_spine_and_overlays_beside_it():
    host = Host({b"/home/u": [b".bashrc", b".cache/", b".config/", b"project/"]})
    plan = rootless((b"/home/u",), host, (b"/home/u/.cache", b"tmpfs"))
    assert plan.overlays == (b"/home/u", b"/home/u/.cache", b"/home/u/.config", b"/home/u/project")
    (spine,) = plan.spines
    assert (spine.target, spine.ways, spine.bare) == (b"/home/u", (b"",), False)
    (note,) = plan.notes
    assert note.startswith("/home/u/.cache is mounted in /home/u")
    assert "EBUSY" in note


def test_a_file_that_is_mounted_deep_makes_ways_to_it():
    host = Host(
        {
            b"/home/u": [b".config/", b"project/"],
            b"/home/u/project": [b"Makefile", b"conf/", b"src/"],
            b"/home/u/project/conf": [b"env", b"more/"],
        },
        files=(b"/home/u/project/conf/env",),
    )
    plan = rootless((b"/home/u",), host, (b"/home/u/project/conf/env",))
    (spine,) = plan.spines
    assert spine.ways == (b"", b"project", b"project/conf")
    assert plan.overlays == (
        b"/home/u",
        b"/home/u/.config",
        b"/home/u/project/conf/more",
        b"/home/u/project/src",
    )
    assert plan.read_only == (b"/home/u/project/conf/env",)
    assert "/home/u/project/conf/env is read-only in the world: a single file" in plan.notes[-1]


def test_a_mount_in_a_mount_makes_a_spine_of_that():
    host = Host({b"/home/u": [b"disk/"], b"/home/u/disk": [b"a/", b"b/"]})
    plan = rootless((b"/home/u",), host, (b"/home/u/disk",), (b"/home/u/disk/a", b"xfs"))
    assert [(s.target, s.ways) for s in plan.spines] == [
        (b"/home/u", (b"",)),
        (b"/home/u/disk", (b"",)),
    ]
    assert plan.overlays == (b"/home/u", b"/home/u/disk", b"/home/u/disk/a", b"/home/u/disk/b")


def test_an_inner_overlay_is_a_seat_and_not_walked_twice():
    host = Host(
        {
            b"/home/u": [b"foreign/"],
            b"/home/u/foreign": [b"project/"],
            b"/home/u/foreign/project": [b".env", b"src/"],
        },
        foreign=(b"/home/u/foreign",),
    )
    project = b"/home/u/foreign/project"
    plan = rootless((b"/home/u", project), host, (project + b"/.env",), workspace=project)
    assert [(s.target, s.ways) for s in plan.spines] == [
        (b"/home/u", (b"", b"foreign")),
        (project, (b"",)),
    ]
    assert plan.overlays == (b"/home/u", project, project + b"/.env", project + b"/src")


def test_a_mount_out_of_reach_is_bound_with_the_directory_that_closes_it():
    host = Host({b"/tmp": [b"other/", b"mine/"]}, locked=(b"/tmp/other",))
    plan = rootless((b"/tmp",), host, (b"/tmp/other/deep/mount", b"tmpfs"))
    assert plan.overlays == (b"/tmp", b"/tmp/mine")
    assert plan.read_only == ()
    (spine,) = plan.spines
    assert spine.ways == (b"",)


def test_hidden_and_closed_places_beside_a_mount_need_no_overlay():
    host = Host(
        {b"/home/u": [b".cache/", b".ssh/", b".substrate/", b"roots/"]}, closed=(b"/home/u/roots",)
    )
    keep_out = (b"/home/u/.substrate", b"/home/u/.ssh")
    plan = rootless((b"/home/u",), host, (b"/home/u/.cache", b"tmpfs"), keep_out=keep_out)
    assert plan.overlays == (b"/home/u", b"/home/u/.cache")


def test_overlays_are_bounded_and_the_workspace_comes_first():
    names = [b"d%03d/" % i for i in range(200)]
    host = Host({b"/home/u": [b".cache/", b".config/", b"zz/", *names]})
    plan = rootless(
        (b"/home/u", b"/home/u/zz/project"),
        host,
        (b"/home/u/.cache", b"tmpfs"),
        workspace=b"/home/u/zz/project",
    )
    assert len(plan.overlays) == mount_plan.MAX_OVERLAYS
    assert {b"/home/u/zz", b"/home/u/.config"} <= set(plan.overlays)
    assert "directories of /home/u are read-only in the world, such as /home/u/d" in plan.notes[0]
    assert "--rw" in plan.notes[0]


def test_a_workspace_with_too_much_beside_a_mount_is_refused():
    work = b"/home/u/project"
    for names in ([b"d%04d/" % i for i in range(200)], [b"f%05d" % i for i in range(3000)]):
        host = Host({b"/home/u": [b"project/"], work: [b".env", *names]}, files=(work + b"/.env",))
        with pytest.raises(HostUnsupported) as refused:
            rootless((b"/home/u",), host, (work + b"/.env",))
        assert refused.value.code == "E-LOWER-SUBMOUNT"
        assert "/home/u/project/.env" in str(refused.value)
        assert "unmount /home/u/project/.env" in refused.value.hint


def test_scratch_with_too_much_beside_a_mount_is_empty():
    names = [b"f%05d" % i for i in range(3000)]
    host = Host({b"/tmp": [b".mount_app/", b"mine/", *names]})
    plan = rootless((b"/home/u", b"/tmp", b"/tmp/mine/x"), host, (b"/tmp/.mount_app", b"tmpfs"))
    (spine,) = plan.spines
    assert (spine.target, spine.bare) == (b"/tmp", True)
    assert plan.overlays == (b"/home/u", b"/tmp", b"/tmp/.mount_app", b"/tmp/mine")
    assert plan.notes[0].startswith("/tmp is empty in the world")


# --- other mounts


def test_what_cannot_be_overlaid_is_bound_and_named_once_a_reason():
    host = Host(files=(b"/etc/hosts", b"/etc/hostname"), refused={b"/nas": "the kernel says no"})
    host.uid = 0
    mounts = table(
        (b"/boot/efi", b"vfat"),
        (b"/etc/hosts",),
        (b"/etc/hostname",),
        (b"/nas", b"nfs4"),
        (b"/data", b"xfs"),
        (b"/cdrom", b"iso9660", b"ro"),
        (b"/home/u/remote", b"fuse.sshfs", b"rw", b"rw,user_id=1000"),
        (b"/pool", b"fuse.mergerfs", b"rw", b"rw,user_id=0,allow_other"),
        (b"/dev", b"devtmpfs"),
        (b"/run/user/1000", b"tmpfs"),
        (b"/state/x", b"tmpfs"),
    )
    plan = plan_root(mounts, host, (b"/state",), idmapped=False)
    assert plan.overlays == (b"/", b"/data", b"/pool")
    assert plan.read_only == (
        b"/boot/efi",
        b"/cdrom",
        b"/etc/hostname",
        b"/etc/hosts",
        b"/home/u/remote",
        b"/nas",
    )
    assert plan.notes == (
        "/boot/efi is read-only in the world: vfat cannot be overlaid",
        "/etc/hostname and /etc/hosts are read-only in the world: a single file cannot be overlaid",
        "/home/u/remote is read-only in the world: a FUSE filesystem of uid 1000 is not overlaid",
        "/nas is read-only in the world: the kernel says no",
    )
    assert host.asked == [b"/nas", b"/pool"]  # the others' types tell


def test_a_read_only_root_is_overlaid_and_told():
    mounts = parse_mountinfo(_ROOT.replace(b"rw,relatime", b"ro"))
    plan = plan_root(mounts, Host(), (), idmapped=True)
    assert plan.overlays == (b"/",)
    assert plan.notes == ("/ is mounted read-only: what is changed in it cannot be applied",)


def test_a_tmpfs_is_tried_out_where_owners_are_shifted():
    host = Host()
    plan_root(table((b"/scratch", b"tmpfs")), host, (), idmapped=True)
    assert host.asked == [b"/scratch"]


def test_a_mount_whose_source_was_removed_is_left_out():
    text = _ROOT + b"30 20 8:1 /gone//deleted /bind rw - ext4 /dev/sda rw\n"
    plan = plan_root(parse_mountinfo(text), Host(), (), idmapped=False)
    assert (plan.overlays, plan.read_only) == ((b"/",), ())
    assert plan.notes == ("/bind is read-only in the world: what is mounted there was removed",)


def test_what_is_mounted_twice_is_told():
    text = _ROOT + b"30 20 8:1 /home /srv/home rw - ext4 /dev/sda rw\n"
    text += b"31 20 8:2 / /a rw - ext4 /dev/sdb rw\n32 20 8:2 / /b rw - ext4 /dev/sdb rw\n"
    plan = plan_root(parse_mountinfo(text), Host(), (), idmapped=False)
    assert plan.notes == (
        "mounted twice: /b (as /a), /srv/home (as /home): what the world changes in one place is "
        "not seen in the other before it is applied",
    )
