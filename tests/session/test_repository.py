"""Where git writes for a workspace: believed only where both sides say it."""

import os
import subprocess

import pytest

from substrate.session.repository import repository_elsewhere

GIT = [
    "git",
    "-c",
    "user.name=A",
    "-c",
    "user.email=a@example.org",
    "-c",
    "protocol.file.allow=always",
]


def git(cwd, *words):
    subprocess.run([*GIT, *words], cwd=cwd, check=True, capture_output=True)


def found(path):
    return repository_elsewhere(os.fsencode(path))


@pytest.fixture
def main(tmp_path):
    """A repository with a commit."""
    place = tmp_path / "main"
    place.mkdir()
    git(place, "init", "-q")
    (place / "a").write_text("a\n")
    git(place, "add", ".")
    git(place, "commit", "-qm", "first")
    return place


def test_a_repository_of_its_own_and_none(main, tmp_path):
    assert found(main) is None
    assert found(tmp_path) is None


def test_a_worktree(main, tmp_path):
    git(main, "worktree", "add", "-q", "../tree")
    assert found(tmp_path / "tree") == os.fsencode(main / ".git")


def test_a_worktree_of_a_bare_repository(main, tmp_path):
    git(tmp_path, "clone", "-q", "--bare", "main", "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "-q", "../tree")
    assert found(tmp_path / "tree") == os.fsencode(tmp_path / "bare.git")


def test_a_submodule(main, tmp_path):
    above = tmp_path / "super"
    above.mkdir()
    git(above, "init", "-q")
    git(above, "submodule", "-q", "add", "../main", "deep/lib")
    assert found(above / "deep" / "lib") == os.fsencode(above / ".git" / "modules" / "deep/lib")


def test_a_worktree_of_a_submodule(main, tmp_path):
    above = tmp_path / "super"
    above.mkdir()
    git(above, "init", "-q")
    git(above, "submodule", "-q", "add", "../main", "lib")
    git(above / "lib", "worktree", "add", "-q", tmp_path / "tree")
    assert found(tmp_path / "tree") == os.fsencode(above / ".git" / "modules" / "lib")


# --- what somebody who made the workspace could try


def test_a_file_that_names_somebody_else_s_repository(main, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for named in (main / ".git", main, tmp_path, "/", "/etc", "../main/.git", "", "x" * 5000):
        (work / ".git").write_text(f"gitdir: {named}\n")
        assert found(work) is None, named


def test_a_worktree_that_was_copied(main, tmp_path):
    git(main, "worktree", "add", "-q", "../tree")
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / ".git").write_bytes((tmp_path / "tree" / ".git").read_bytes())
    assert found(copied) is None  # the repository knows the first one


def test_a_made_up_worktree_whose_common_directory_lies_elsewhere(main, tmp_path):
    work, own = tmp_path / "work", tmp_path / "work" / "own" / "worktrees" / "x"
    own.mkdir(parents=True)
    (work / ".git").write_text(f"gitdir: {own}\n")
    (own / "gitdir").write_text(f"{work}/.git\n")
    (own / "commondir").write_text(f"{main}/.git\n")
    assert found(work) is None


@pytest.mark.parametrize(
    "content", [b"", b"gitdir: ", b"gitdir: a\nb\n", b"gitdir: a\0b\n", b"\xff\xfe", b"gitdir:x\n"]
)
def test_what_git_would_not_write(tmp_path, content):
    (tmp_path / ".git").write_bytes(content)
    assert found(tmp_path) is None


def test_what_is_no_file(main, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    os.mkfifo(work / ".git")
    assert found(work) is None
    (work / ".git").unlink()
    (work / ".git").symlink_to(main / ".git")
    assert found(work) is None


def test_a_repository_of_another_user(main, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("giving a repository away needs root")
    git(main, "worktree", "add", "-q", "../tree")
    os.chown(main / ".git", 54321, 54321)
    assert found(tmp_path / "tree") is None
