"""Many small commands in one world (many_commands.py): more than a mount takes as layers."""

from substrate.world.layers import MAX_LOWERS
from tests.system.many_commands import ManyCommands


def test_more_commands_than_a_mount_has_layers(caller):
    many = ManyCommands(caller, seed=20261126)
    many.run(MAX_LOWERS + 5)
    assert 2 <= many.mounted() <= MAX_LOWERS + 1  # the host is one
    many.check()


def test_a_second_world_goes_on_from_what_the_first_applied(root):
    many = ManyCommands(root, seed=3)
    many.run(8)
    many.check()
    many.run(8)
    many.check()
