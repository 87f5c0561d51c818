"""The removal of a routed network's link: that one, and no other that has its name by then."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import socket, subprocess
from substrate.world.egress import link
def make():
    subprocess.run("ip link add substrate0 type veth peer name other".split(), check=True)
    return socket.if_nametoindex("substrate0")
first = make()
link.remove(first)
second = make()
link.remove(first)  # as a supervisor does, that hears of the end a moment later
assert second != first and socket.if_nametoindex("substrate0") == second
link.remove(second)
assert [name for _, name in socket.if_nameindex()] == ["lo"]
print("well")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="a network namespace needs root")
def test_a_link_of_the_same_name_stays():
    words = ["unshare", "-n", sys.executable, "-c", _PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "well\n", done.stderr
