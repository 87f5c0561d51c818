"""`substrate` behaves as the bash that it stands for: status, streams, files (shell.md §1).

Each case runs by substrate in a tree, then by bash in the same tree, as the same user. What the
world holds afterwards is read by a second command in it; the host's tree must be as it was.
"""

import os
import subprocess

import pytest

from tests.system.caller import remove
from tests.system.transparency_cases import CASES, CHOICE, LISTING, TREE


def _status(done):
    return 128 - done.returncode if done.returncode < 0 else done.returncode


def _run(caller, program, case, *ours):
    words = [program, *ours, *case.command()]
    if case.outer:
        words = ["/bin/bash", "-c", case.outer, "outer", *words]
    options = {} if case.input is None else {"input": case.input}
    cwd = os.path.join(caller.work, case.cwd)
    environ = {**caller.environ, "PWD": os.path.normpath(cwd), **case.env}
    done = caller.call(*words, cwd=cwd, env=environ, **options)
    return {"status": _status(done), "stdout": done.stdout, "stderr": done.stderr}


def _listing(caller, program="bash"):
    done = caller.call(program, "-c", LISTING)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.fixture(scope="session")
def template(base):
    """The tree that every case starts in, once a user: its path and its listing."""
    made = {}

    def make(caller):
        if caller.uid not in made:
            tree = caller.make_directory(base / f"template-{caller.uid}")
            script = ["bash", "-ec", TREE]
            subprocess.run(script, cwd=tree, check=True, umask=0o022, **caller.as_them())
            made[caller.uid] = tree, caller.call("bash", "-c", LISTING, cwd=tree).stdout
        return made[caller.uid]

    return make


def _is_untouched(session):
    """Whether no file lies in the world's layers; read from the disk, not by our own diff."""
    uppers = session.glob("world/layers/*/*/upper")
    return not any(files or below for upper in uppers for _, below, files in os.walk(upper))


def _compare(caller, case, template):
    tree, before = template(caller)
    remove(caller.work)
    caller.call("cp", "-a", tree, caller.work, cwd=caller.base)
    found = _run(caller, caller.command, case, "--fresh", *case.ours)
    assert _listing(caller) == before, "the host's tree was changed"
    in_world = before
    if not _is_untouched(caller.sessions()[-1]):
        in_world = _listing(caller, caller.command)
    expected = _run(caller, "bash", case)
    assert found == expected
    assert in_world == _listing(caller), "other files than bash leaves"


@pytest.mark.parametrize("name", CASES)
def test_like_bash_as_root(idmap, name, template):
    _compare(idmap, CASES[name], template)


@pytest.mark.parametrize("name", CASES)
def test_like_bash_as_a_user(user, name, template):
    _compare(user, CASES[name], template)


@pytest.mark.parametrize("name", CHOICE)
def test_like_bash_without_a_user_namespace(root, name, template):
    _compare(root, CASES[name], template)
