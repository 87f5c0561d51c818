"""What is covered in a world stays covered, and what is not stands in the record."""

import json
import os

import pytest

from tests.world.attacks.conftest import root_only
from tests.world.escape.scene import PROGRAM, SECRET


def hidden_layer(scene):
    newest = max(scene.home.glob("sessions/*/trace.jsonl"), key=lambda p: p.stat().st_mtime)
    start = json.loads(newest.read_bytes().splitlines()[0])
    return start["body"]["isolation"]["layers"]["hidden"]


def signed_in(scene, name=".claude/.credentials.json"):
    path = scene.base / "user" / name
    scene.own_directory(path.parent)
    return scene.own_file(path, SECRET)


def program(scene, name):
    """A program of the user's own with this name, that shows what it sees of the sign-in."""
    tools = scene.own_directory(scene.base / "user" / "bin")
    path = scene.own_file(tools / name, "#!/bin/sh\ncat ~/.claude/.credentials.json\n")
    path.chmod(0o755)
    scene.environ["PATH"] = f"{tools}:{scene.environ['PATH']}"
    return path


def test_an_agent_sees_its_own_sign_in_and_nobody_else_does(own_scene):
    sign_in = signed_in(own_scene)
    other = signed_in(own_scene, ".codex/auth.json")
    program(own_scene, "claude")
    program(own_scene, "codex")
    assert own_scene.inside("claude").stdout == SECRET.encode()
    assert hidden_layer(own_scene)["why"] == f"shown: {sign_in}"
    assert own_scene.inside("./claude", cwd=own_scene.base / "user" / "bin").stdout != b""
    for words in (["codex"], ["sh", "-c", "claude"], ["cat", sign_in]):
        assert SECRET.encode() not in own_scene.inside(*words, status=None).stdout
    assert own_scene.inside("cat", other, status=None).stdout == b""
    # a -c of that name is a shell, not the agent
    done = own_scene.host(PROGRAM, "--fresh", "-c", "claude")
    assert SECRET.encode() not in done.stdout


def test_a_path_is_shown_where_the_user_says_so(own_scene):
    sign_in = signed_in(own_scene)
    own_scene.hidden_keys()
    keys = own_scene.base / "user" / ".ssh"
    assert own_scene.inside("cat", sign_in, status=None).stdout == b""
    options = ("--fresh", "--show", sign_in)
    assert own_scene.inside("cat", sign_in, options=options).stdout == SECRET.encode()
    assert own_scene.inside("ls", "-A", keys, options=options, status=None).stdout == b""
    both = own_scene.inside("cat", sign_in, keys / "id", options=("--fresh", "--show", "~"))
    assert both.stdout == SECRET.encode() * 2
    assert str(keys) in hidden_layer(own_scene)["why"]
    own_scene.environ["SUBSTRATE_SHOW"] = str(sign_in)
    assert own_scene.inside("cat", sign_in).stdout == SECRET.encode()


def test_a_project_cannot_show_anything(own_scene):
    sign_in = signed_in(own_scene)
    config = own_scene.own_directory(own_scene.work / ".substrate") / "config.toml"
    own_scene.own_file(config, f'show = ["{sign_in}"]\n')
    done = own_scene.inside("cat", sign_in, status=None)
    assert done.stdout == b""
    assert b"show is left out" in done.stderr


def test_a_part_of_a_hidden_directory_is_not_shown_alone(own_scene):
    keys = own_scene.hidden_keys()
    done = own_scene.inside("true", options=("--fresh", "--show", keys / "id"), status=125)
    assert b"hidden as a whole" in done.stderr
    assert str(keys).encode() in done.stderr


def test_the_state_is_never_shown(own_scene):
    own_scene.inside("true")
    look = ("ls", "-A", own_scene.home)
    for shown in (own_scene.home, own_scene.base):
        done = own_scene.inside(*look, options=("--fresh", "--show", shown), status=None)
        assert done.stdout == b""


def test_what_has_to_stay_open_is_in_the_record(own_scene):
    """The workspace lies in a directory of secrets: it is worked in, so it is seen."""
    work = own_scene.own_directory(own_scene.base / "user" / ".aws" / "work")
    own_scene.own(work.parent)
    later = own_scene.base / "user" / "later"
    own_scene.inside("true", options=("--fresh", "--hide", later), cwd=work)
    why = hidden_layer(own_scene)["why"]
    assert f"open: {work.parent} (the world works in {work})" in why
    assert f"open: {later} (it is not there" in why


def test_a_link_of_a_stranger_is_no_way_to_leave_a_path_open(own_scene):
    if os.geteuid() != 0:
        pytest.skip("makes a link of another user: root")
    link = own_scene.base / "link"
    link.symlink_to(own_scene.hidden_keys())
    os.chown(link, 4711, 4711, follow_symlinks=False)
    done = own_scene.inside("true", options=("--fresh", "--hide", link), status=125)
    assert b"cannot be hidden" in done.stderr


@root_only
@pytest.mark.parametrize("through", ["the world", "--ro"])
def test_what_the_host_replaces_below_a_bind_stays_hidden(own_scene, outside_overlays, through):
    """A cover on the host's own entry would go with it; the entries of a view stay."""
    place = outside_overlays
    os.mkdir(f"{place}/directory")
    for name in ("file", "directory/inner"):
        with open(f"{place}/{name}", "w") as file:
            file.write(SECRET)
    with open(f"{place}/seen", "w") as file:
        file.write("seen\n")
    options = ["--fresh", "--hide", f"{place}/file", "--hide", f"{place}/directory"]
    if through == "--ro":
        options += ["--ro", place]
    code = (
        "echo ready; read -r line; cat {0}/file {0}/directory/inner {0}/moved/inner; cat {0}/seen"
    )
    process = own_scene.start_inside("sh", "-c", code.format(place), options=options)
    assert process.stdout.readline() == b"ready\n"
    with open(f"{place}/new", "w") as file:
        file.write(SECRET)
    os.rename(f"{place}/new", f"{place}/file")
    os.rename(f"{place}/directory", f"{place}/moved")
    os.mkdir(f"{place}/directory")
    with open(f"{place}/directory/inner", "w") as file:
        file.write(SECRET)
    out, _ = process.communicate(b"go on\n", 30)
    assert out == b"seen\n"
    assert own_scene.host("cat", f"{place}/file").stdout == SECRET.encode()
