"""git in worlds: what it leaves is what it leaves on a plain copy (plain_copy.py).

Two runs of git differ in the stat data of an index, in the order of its packs' objects (threads)
and in the names that depend on it; these are compared by what they mean, and the repository
is asked the same questions.
"""

import re
import subprocess

import pytest

from tests.system.plain_copy import Place, anything, need

#: identity is given by the prelude; one thread, so that a pack is the same each time
_PRELUDE = """
git() { command git -c pack.threads=1 -c gc.auto=0 -c protocol.file.allow=always \\
    -c init.defaultBranch=main -c core.logAllRefUpdates=true -c advice.detachedHead=false "$@"; }
save() { git add -A && git commit -qm "$1"; }
ask() { git status --porcelain && git log --all --oneline --graph --decorate \\
    && git stash list && git fsck --full --strict && git ls-files -s; }
"""
_SETUP = """
git init -q
mkdir -p src/deep docs
seq 40 > numbers; printf '#!/bin/sh\\necho run\\n' > run; chmod 755 run
for n in 1 2 3 4 5; do echo "int f$n;" > src/f$n.c; echo $n > src/deep/d$n; done
printf 'one\\r\\ntwo\\r\\n' > docs/crlf.txt; ln -s ../numbers docs/link; ln -s nowhere dangling
save first
"""


def _index(path):
    """The entries of an index, without what lstat(2) said of the files."""
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-s", "-z"],
        env={"PATH": "/usr/bin:/bin", "GIT_INDEX_FILE": path, "GIT_DIR": path.parent},
        capture_output=True,
        check=True,
        cwd=path.parent,
    )
    return done.stdout.hex()


_READERS = ((r"(.*/)?\.git/(.*/)?index", _index),)


def _place(caller, setup=_SETUP, **given):
    need("git")
    given.setdefault("readers", _READERS)
    given.setdefault("special", True)  # of .git/config and hooks an apply asks
    return Place(caller=caller, setup=setup, prelude=_PRELUDE, **given)


def test_branch_merge_rebase_and_stash(every_caller):
    _place(every_caller).compare(
        """
        git checkout -qb side; sed -i 's/^7$/seven/' numbers; save side-1
        echo more > src/more.c; save side-2; rm src/f1.c; save side-3
        git checkout -q main; sed -i 's/^30$/thirty/' numbers; save main-1
        git merge -q --no-edit side; ask
        """,
        # a conflict, resolved by hand
        """
        git checkout -qb one; sed -i 's/^1$/ein/' numbers; save ein
        git checkout -q main; sed -i 's/^1$/uno/' numbers; save uno
        ! git merge one; git status --porcelain
        """,
        "sed -i -e '/^[<=>]/d' -e '/^ein/d' numbers; save merged; ask",
        # an editor of the list of a rebase: drops, squashes and swaps
        """
        git checkout -q -b work HEAD~1
        for n in 1 2 3 4; do echo $n > work-$n; save "work $n"; done
        cat > .git/editor <<'END'
#!/bin/sh
sed -i -e '2s/^pick/drop/' -e '4s/^pick/fixup/' "$1"
END
        chmod +x .git/editor
        GIT_SEQUENCE_EDITOR=$PWD/.git/editor git rebase -q -i main; ask
        """,
        """
        git checkout -q main; git cherry-pick work; git revert --no-edit HEAD >/dev/null
        echo dirty >> numbers; echo new > untracked; git stash -q -u; git stash list
        git checkout -q -b later; git stash pop -q; ask
        """,
        "save later; git checkout -q main; git branch -D one side; git tag -a v1 -m v1; ask",
    )


def test_files_that_are_moved_and_cleaned(every_caller):
    """A directory is moved by mv(1), which copies where rename(2) is EXDEV."""
    after = _place(every_caller).compare(
        "mv src lib; git add -A; git mv lib/deep/d1 lib/top; git status --porcelain",
        "save moved; git log --stat -M --oneline -1",
        """
        echo '*.o' > .gitignore; mkdir -p obj/a; touch obj/a/x.o y.o 'name with space.o'
        ln -s / obj/root; mkfifo obj/pipe; git clean -ndx; git clean -fdxq; git status --porcelain
        """,
        "git rm -rq docs; git checkout -q HEAD -- docs; rm -rf lib; git checkout -q -- lib; ask",
        """
        chmod +x numbers; git diff --summary; save executable
        rm dangling; echo file > dangling; rm run; ln -s numbers run; git status --porcelain
        save types; ask
        """,
        """
        git config core.autocrlf true; rm docs/crlf.txt numbers
        git checkout -q -- . 2>&1; od -c numbers | head -2; git status --porcelain
        """,
    )
    assert after["numbers"]["mode"] == "0o755"
    assert "lib/deep/d2" in after and "src" not in after


def test_git_mv_of_a_directory_that_lies_below(caller):
    """overlayfs renames no directory of a lower layer (EXDEV, overlayfs.rst "renaming
    directories"), and git mv does not copy: it says so and leaves all as it was. A directory
    that this very command made is renamed. docs/how-to/recipes.md."""
    place = _place(caller)
    place.make()
    refused = place.world("git mv src lib")
    assert refused.returncode == 128 and b"Invalid cross-device link" in refused.stderr
    assert place.world("git status --porcelain; ls lib").stdout == b""
    assert place.world("mkdir own; git mv numbers own/; git mv own other").returncode == 0
    assert place.world("git mv other again").returncode == 128


def test_packs_history_and_bisect(caller):
    _place(
        caller,
        # names of packs come of their objects; a multi-pack index and a graph keep times
        setup=_SETUP
        + """
        for n in 1 2 3 4 5 6 7 8; do echo $n >> numbers; save "number $n"; done
        /usr/bin/python3 -c "import random; random.seed(1); open('big', 'wb').write(random.randbytes(3 << 20))"
        save big; head -c 2000000 big > big2; save big2
        """,
    ).compare(
        "git gc -q --prune=now; git count-objects -v; git fsck --full; ls .git/objects/pack",
        """
        git bisect start HEAD HEAD~9 >/dev/null
        git bisect run sh -c '! grep -qx 5 numbers || [ $(grep -cx 5 numbers) -lt 2 ]' | tail -1
        git bisect reset >/dev/null 2>&1
        """,
        "git repack -q -a -d -f --depth=10 --window=10; git commit-graph write; git fsck --full",
        # every commit again, without the big files
        """
        export FILTER_BRANCH_SQUELCH_WARNING=1
        git filter-branch -f --index-filter 'git rm -q --cached --ignore-unmatch big big2' \\
            HEAD >/dev/null 2>&1
        rm -rf .git/refs/original; git reflog expire --expire=now --all
        git gc -q --prune=now; git count-objects -v; ask
        """,
        "git bundle create -q ../work/all.bundle --all; git clone -q all.bundle again; ls again",
    )


def test_worktrees_and_submodules_made_in_a_world(at_home):
    _place(
        at_home,
        setup="git init -q library; (cd library; echo lib > lib.c; save lib)\n"
        "git init -q app; cd app; echo app > app.c; save app",
        directory="app",
    ).compare(
        """
        git worktree add -q ../new -b feature 2>&1; git worktree move ../new ../feature
        cd ../feature; echo f > f.c; save feature; git worktree list --porcelain
        """,
        'git submodule add -q "file://$(realpath ../library)" vendor/library; save vendored; git submodule status',
        """
        (cd ../library; echo 2 >> lib.c; save second)
        git submodule update -q --remote; git diff --submodule=log; save updated; ask
        """,
        "cd ../feature; git merge -q --no-edit main; git submodule update -q --init; cat vendor/library/lib.c; ask",
        "git worktree lock ../feature; cd ../feature; git submodule foreach -q 'git rev-parse HEAD'",
        """
        git worktree unlock ../feature; git worktree remove --force ../feature
        git worktree prune; git worktree list; ask
        """,
    )


def test_a_workspace_that_is_a_worktree(at_home):
    """Its .git is a file that leads out of the workspace: into the repository beside it, which
    is of the same world."""
    _place(
        at_home,
        setup="git init -q main; cd main; echo 1 > file; save one; git worktree add -q ../side",
        directory="side",
    ).compare(
        "echo 2 > file; save two; ask",
        "git checkout -q -b more; git rm -q file; save none; git log --oneline --all; ask",
        "git -C ../main merge -q more; git -C ../main status --porcelain; ls ../main",
    )


def test_hooks_and_a_lock_that_is_left_behind(caller):
    place = _place(caller, setup=_SETUP + "echo 1 >> numbers")
    place.compare(
        """
        printf '#!/bin/sh\\necho checked >> "$GIT_DIR/checked"\\n' > .git/hooks/pre-commit
        printf '#!/bin/sh\\necho "by a hook" >> "$1"\\n' > .git/hooks/commit-msg
        chmod +x .git/hooks/pre-commit .git/hooks/commit-msg
        GIT_DIR=$PWD/.git git commit -qam hooked; git log -1 --format=%B; cat .git/checked
        """,
        "touch .git/index.lock; ! git add -A; rm .git/index.lock; git add -A",
        # damaged, then mended from what is there
        """
        echo nonsense > .git/index; ! git status --porcelain 2>/dev/null
        rm .git/index; git reset -q; git status --porcelain
        echo nonsense > h; mv h .git/HEAD; ! git status 2>/dev/null
        """,
        "echo ref: refs/heads/main > .git/HEAD; ask",
        "git config alias.last 'log -1 --oneline'; git last; git config --unset alias.last; touch .git/index.lock",
    )
    # the lock came to the host with the rest: the host's git says so too
    refused = place.plainly("git commit -qam refused")
    assert refused.returncode != 0 and b"index.lock" in refused.stderr


def test_a_clone_from_the_world_is_the_hosts_after_it(caller):
    """A bare repository on the host that a world clones, pushes to, and that only the apply
    changes. (`git push` is asked about without a policy that allows it.)"""
    with caller.names_alone():
        _check_clone(caller)


def _check_clone(caller):
    place = _place(
        caller,
        setup="git init -q --bare origin.git; git clone -q origin.git first 2>/dev/null; cd first\n"
        "echo 1 > file; save one; git push -q origin main",
    )
    place.compare(
        "git clone -q --no-hardlinks origin.git second; cd second; echo 2 > file; save two; git push -q",
        'git clone -q --depth 1 "file://$PWD/origin.git" shallow; git -C shallow log --oneline',
        "cd first; git pull -q --ff-only; cat file; git gc -q; git -C ../origin.git gc -q; ask",
    )
    assert place.plainly("git -C origin.git log --oneline").stdout.count(b"\n") == 2


def test_a_clone_by_path_has_links_that_git_does_not_believe(caller):
    """A host's file that is linked in a world gets another inode number under its new name
    where the kernel cannot name its origin (rootless, and below frozen layers), and git
    compares the two. What it says, and what does work: docs/how-to/recipes.md."""
    place = _place(caller)
    place.make()
    assert place.world("touch one").returncode == 0
    by_path = place.world("git clone -q . copy")
    assert by_path.returncode == 0 or b"hardlink different from source" in by_path.stderr
    for way in ("git clone -q --no-hardlinks . ", 'git clone -q "file://$PWD" '):
        done = place.world(f"rm -rf copy; {way} copy; git -C copy fsck --strict; ls copy")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["git checkout -q -f main", "git stash -q"])
def test_what_git_puts_back_is_only_touched(caller, text):
    """The contents are what they were; the files were written, as outside."""
    place = _place(caller, readers=(*_READERS, (r"\.git/.*", anything)))
    place.make()
    for step in ("sed -i s/4/four/ numbers; echo x > docs/crlf.txt; rm src/f2.c", text):
        done = place.world(step)
        assert done.returncode == 0, done.stderr
    outside = {p: k for p, k in place.pending().items() if not re.match(r"\.git(/|$)", p)}
    assert outside == dict.fromkeys(("docs/crlf.txt", "numbers", "src/f2.c"), "meta")
