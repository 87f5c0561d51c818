"""A device node that the host has outside /dev (in a chroot's tree) is no device in a world."""

import os
import stat

import pytest

from tests.world.attacks.conftest import ROOT_BACKENDS, root_only

pytestmark = root_only
ZERO = os.makedev(1, 5)  # harmless where it can be opened


def plant(directory):
    node = directory / "zero"
    os.mknod(node, stat.S_IFCHR | 0o666, ZERO)
    node.chmod(0o666)
    return node


@pytest.mark.parametrize("backend", [*ROOT_BACKENDS, "ns-user"])
def test_a_node_of_the_host_cannot_be_opened(place, backend):
    node = plant(place.work)
    done = place.run("--backend", backend, "-c", f"head -c 1 {node}", status=1)
    assert b"Permission denied" in done.stderr


def test_nor_without_rights(rootless):
    node = plant(rootless.base)  # below no overlay: part of the read-only tree
    done = rootless.run("-c", f"head -c 1 {node}", status=1)
    assert b"Permission denied" in done.stderr


@pytest.mark.parametrize("backend", ROOT_BACKENDS)
def test_nor_below_a_frozen_layer_that_lies_inside(place, backend):
    node = plant(place.work)
    place.run("--backend", backend, "-c", "touch first")
    done = place.run("-c", f"head -c 1 {node}", status=1)
    assert b"Permission denied" in done.stderr


@pytest.mark.parametrize("backend", ROOT_BACKENDS)
def test_the_worlds_own_devices_work(place, backend):
    assert (
        place.out("--backend", backend, "-c", "head -c 2 /dev/zero | wc -c; : >/dev/null") == "2\n"
    )
