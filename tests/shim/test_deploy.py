"""The directory of shims: made at once, under a lock, never over what is not ours, gone without a rest."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from substrate.shim import deploying, place, standing

SUBSTRATE = Path(sys.prefix) / "bin" / "substrate"


@pytest.fixture
def call(tmp_path):
    def run(*words, env=None, path="/usr/bin:/bin", **options):
        environ = {"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8", **(env or {})}
        return subprocess.run(
            [SUBSTRATE, "shim", *words],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    return run


@pytest.fixture
def shims(tmp_path):
    return tmp_path / ".local/share/substrate/shims"


def test_it_is_made_used_told_about_and_removed(call, shims, tmp_path):
    done = call("deploy", "--commands", "git,sh")
    assert (done.returncode, done.stdout) == (0, f"export PATH={shims}:$PATH\n")
    assert "made 2 shims" in done.stderr
    assert {p.name for p in shims.iterdir()} == {"git", "sh", ".stub", ".substrate-shims"}
    found = call("status", "--format", "json", path=f"{shims}:/usr/bin:/bin")
    told = json.loads(found.stdout)
    assert (found.returncode, told["schema"], told["well"]) == (0, "substrate.shim/1", True)
    assert (told["position"], told["stub"], told["fail"]) == (1, "c", "closed")
    assert {each["name"]: each["original"] for each in told["shims"]} == {
        "git": "/usr/bin/git",
        "sh": "/usr/bin/sh",
    }
    assert "bash" in told["unprotected"]
    assert call("remove").returncode == 0
    assert not (tmp_path / ".local/share/substrate").exists()
    assert call("remove").returncode == 1
    assert call("status").returncode == 1


def test_the_list_is_what_is_installed_unless_all_is_asked_for(call, shims):
    assert call("deploy", path="/usr/bin:/bin").returncode == 0
    names = {p.name for p in shims.iterdir() if p.is_symlink()}
    assert {"sh", "bash", "git", "python3"} <= names < set(deploying.COMMANDS)
    assert call("deploy", "--all").returncode == 0
    assert {p.name for p in shims.iterdir() if p.is_symlink()} == set(deploying.COMMANDS)


def test_status_says_what_goes_past(call, shims, tmp_path):
    call("deploy", "--commands", "git,nosuchcommand,sh")
    first = tmp_path / "first"
    first.mkdir()
    (first / "git").write_text("#!/bin/sh\n")
    (first / "git").chmod(0o755)
    found = call("status", "--format", "jsonl", path=f"{first}:{shims}:/usr/bin")
    rows = {row["name"]: row for row in map(json.loads, found.stdout.splitlines())}
    assert found.returncode == 1
    assert rows["git"]["state"] == "shadowed"
    assert rows["git"]["before"] == str(first / "git")
    assert rows["nosuchcommand"]["state"] == "no command"
    assert rows["sh"]["state"] == "ok"
    assert "PATH: the directory is not in it" in call("status").stdout
    assert "absolute path" in call("status").stdout


def test_a_command_that_is_not_installed_is_named(call, shims):
    done = call("deploy", "--commands", "git,nosuchcommand")
    assert done.returncode == 0
    assert "not installed, so that their shims find nothing: nosuchcommand\n" in done.stderr


@pytest.mark.parametrize("kind", ["c", "python"])
def test_a_shell_says_whose_the_shims_have_to_be(call, shims, kind):
    call("deploy", "--commands", "bash", *(["--python"] if kind == "python" else []))
    (shims / ".substrate-shims").chmod(0o666)
    done = subprocess.run(
        [shims / "bash", "-c", "true"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(shims)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 125
    assert "which says where substrate is, is not there, or not yours alone" in done.stderr
    assert "hint: make shims of your own: `substrate shim deploy`\n" in done.stderr


def test_status_knows_a_stale_stub(call, shims):
    call("deploy", "--commands", "git")
    with (shims / ".stub").open("ab") as file:
        file.write(b"\0")
    found = call("status", path=f"{shims}:/usr/bin")
    assert (found.returncode, "stale" in found.stdout) == (1, True)
    call("deploy", "--commands", "git")
    assert call("status", path=f"{shims}:/usr/bin").returncode == 0


def test_dry_runs_change_nothing(call, shims, tmp_path):
    done = call("deploy", "--dry-run")
    assert (done.returncode, "would make" in done.stderr) == (0, True)
    assert list(tmp_path.iterdir()) == []
    call("deploy")
    assert "would remove" in call("remove", "--dry-run").stderr
    assert shims.exists()


@pytest.mark.parametrize("names", ["git,", "../x", "a/b", "a\nb", ".hidden", "-x", "substrate"])
def test_names_are_names(call, names):
    assert call("deploy", "--commands", names).returncode == 2


def seen(path):
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_uid, found.st_mtime_ns


@pytest.mark.parametrize("what", ["file", "link", "strangers", "writable", "full"])
def test_what_is_not_ours_is_left_alone(call, tmp_path, what):
    target = tmp_path / "there"
    if what == "file":
        target.write_text("mine")
    elif what == "link":
        (tmp_path / "other").mkdir()
        target.symlink_to(tmp_path / "other")
    else:
        target.mkdir()
        if what == "full":
            (target / "work").write_text("mine")
        if what == "writable":
            target.chmod(0o777)
        if what == "strangers":
            if os.geteuid() != 0:
                pytest.skip("only root can make a directory of somebody else")
            os.chown(target, 12345, 12345)
    before = seen(target)
    for verb in ("deploy", "remove", "status"):
        done = call(verb, "--dir", str(target))
        assert (done.returncode, "hint: give another one: --dir DIR" in done.stderr) == (3, True)
    assert seen(target) == before


def test_a_parent_in_which_others_write_is_refused(call, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert call("deploy", "--dir", str(shared / "shims")).returncode == 3
    shared.chmod(0o1777)
    assert call("deploy", "--dir", str(shared / "shims")).returncode == 0


def test_a_path_that_cannot_stand_in_path_is_refused(call, tmp_path):
    assert call("deploy", "--dir", str(tmp_path / "a:b")).returncode == 3


def test_an_empty_directory_may_be_taken(call, tmp_path):
    (tmp_path / "empty").mkdir(mode=0o700)
    assert call("deploy", "--dir", "empty", "--commands", "git").returncode == 0
    assert (tmp_path / "empty" / "git").is_symlink()


def test_half_made_ones_are_swept(call, shims):
    call("deploy", "--commands", "git")
    left = shims.parent / ".shims.new-123"
    left.mkdir()
    (left / "git").symlink_to(".stub")
    call("deploy", "--commands", "git")
    assert {p.name for p in shims.parent.iterdir()} == {"shims"}


def test_two_at_once_leave_one_whole_directory(call, shims):
    processes = [
        threading.Thread(target=call, args=("deploy", "--commands", names))
        for names in ("git,sh", "curl,make", "bash", "git,bash,go")
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    names = {p.name for p in shims.iterdir()} - {".stub", ".substrate-shims"}
    assert names in ({"git", "sh"}, {"curl", "make"}, {"bash"}, {"git", "bash", "go"})
    assert {p.name for p in shims.parent.iterdir()} == {"shims"}


@pytest.mark.parametrize("kind", ["c", "python"])
def test_shims_work_while_they_are_made_anew(tmp_path, kind):
    directory = os.fsencode(tmp_path / "shims")
    planned = deploying.plan(
        directory, ["true"], every=True, fail_open=True, python=kind == "python"
    )
    deploying.deploy(planned)
    stop = threading.Event()

    def again() -> None:
        while not stop.is_set():
            deploying.deploy(planned)

    thread = threading.Thread(target=again)
    thread.start()
    environ = {"PATH": f"{tmp_path}/shims:/usr/bin", "HOME": str(tmp_path)}
    try:
        for _ in range(1000 if kind == "c" else 30):
            done = subprocess.run([tmp_path / "shims/true"], env=environ, capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"")
    finally:
        stop.set()
        thread.join()


def test_a_file_system_without_exchange_gets_it_in_two_steps(tmp_path, monkeypatch):
    directory = os.fsencode(tmp_path / "shims")
    planned = deploying.plan(directory, ["git"], every=True, fail_open=False, python=False)
    deploying.deploy(planned)
    real = place._rename

    def without(old, new, flags):
        if flags == place._EXCHANGE:
            raise OSError(22, "Invalid argument")
        real(old, new, flags)

    monkeypatch.setattr(place, "_rename", without)
    deploying.deploy(planned)
    assert deploying.deployed(directory) == ("git",)
    assert os.listdir(tmp_path) == ["shims"]


def test_without_a_built_stub_the_script_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(deploying, "built_stub", lambda: None)
    planned = deploying.plan(
        os.fsencode(tmp_path / "shims"), ["git"], every=True, fail_open=False, python=False
    )
    assert planned.stub == "python"
    deploying.deploy(planned)
    found = standing.look(planned.directory)
    assert found is not None
    assert (found.stub, found.stale) == ("python", False)
