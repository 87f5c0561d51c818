"""A mount inside another one: what is written there is pending like anything else."""

import os
import subprocess

from tests.cli.place import PROGRAM
from tests.world.attacks.conftest import root_only


def test_a_rootless_workspace_behind_a_foreign_directory_is_listed(rootless):
    # the directory between /var/tmp and the workspace is root's: two overlays, one in the other
    rootless.base.chmod(0o755)
    os.chown(rootless.base, 0, 0)
    os.mkdir(rootless.home, 0o700)
    os.chown(rootless.home, rootless.uid, rootless.uid)
    rootless.run("-c", "echo text > file")
    assert rootless.out("diff", "--stat") == "A file | 5 bytes\n1 changed: 1 added\n"
    rootless.run("apply", "--yes")
    assert (rootless.work / "file").read_text() == "text\n"


@root_only
def test_a_mount_of_its_own_below_the_root_is_listed(place):
    mount = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    script = f"""
        mount -t tmpfs none {place.work} && cd {place.work} &&
        substrate -c 'echo text > file' && substrate diff --stat && substrate apply --yes &&
        cat file
    """
    done = subprocess.run(
        [*mount, script],
        env={**place.environ, "PATH": f"{PROGRAM.parent}:{place.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "A file | 5 bytes\n1 changed: 1 added\ntext\n"
