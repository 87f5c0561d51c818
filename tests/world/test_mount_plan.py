from substrate.world.mount_plan import plan_rootless
from substrate.world.mountinfo import parse_mountinfo

_MOUNTS = parse_mountinfo(b"20 1 8:1 / / rw,relatime - ext4 /dev/sda rw\n")


def _overlays(writable, foreign=()):
    return plan_rootless(
        _MOUNTS, writable, lambda _: True, (), lambda path: path not in foreign
    ).overlays


def test_a_root_inside_another_one_is_part_of_it():
    assert _overlays((b"/home/u", b"/home/u/project", b"/tmp")) == (b"/home/u", b"/tmp")


def test_a_root_behind_a_foreign_directory_is_overlaid_by_itself():
    overlays = _overlays((b"/tmp", b"/tmp/shared/mine"), foreign=(b"/tmp/shared",))
    assert overlays == (b"/tmp", b"/tmp/shared/mine")


def test_the_owner_of_the_roots_themselves_does_not_matter():
    assert _overlays((b"/tmp", b"/tmp/mine"), foreign=(b"/tmp", b"/tmp/mine")) == (b"/tmp",)
