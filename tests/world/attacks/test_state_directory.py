"""What substrate keeps is never seen by a world, wherever it was put."""


def private(path):
    path.mkdir(mode=0o700)
    return path


def refused(done):
    assert done.returncode == 125, done.stdout
    assert b"cannot be hidden from a world" in done.stderr
    assert b"digest.key" not in done.stdout


def test_working_inside_it_is_refused(place):
    place.run("-c", "true")
    refused(place.run("--fresh", "-c", "ls ../keys", cwd=place.home / "sessions", status=None))


def test_so_is_it_without_rights(rootless):
    rootless.work.chmod(0o700)
    refused(rootless.run("-c", "ls keys", SUBSTRATE_HOME=str(rootless.work), status=None))


def test_the_workspace_as_state_is_refused(place):
    place.work.chmod(0o700)
    refused(place.run("-c", "ls keys", SUBSTRATE_HOME=str(place.work), status=None))


def test_the_home_as_state_is_refused(place):
    home = place.base / "user"
    home.chmod(0o700)
    refused(place.run("-c", f"ls {home}/keys", SUBSTRATE_HOME=str(home), status=None))


def test_the_usual_state_directory_is_hidden_beside_another_one(place):
    other = private(place.base / "user" / ".substrate")
    (other / "secret").write_text("recorded")
    done = place.run("-c", f"cat {other}/secret", status=1)
    assert b"No such file" in done.stderr
