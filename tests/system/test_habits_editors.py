"""Editors, and tools that save files, in worlds (plain_copy.py).

Each way to save is another one for an overlay: in place (the whole file is copied up first), by
a temporary file and a rename, by a backup, through a symlink, by a link made to an unnamed file,
by mmap(2), into a hole.
"""

from tests.system.plain_copy import Place, anything, need

_SETUP = """
mkdir -p dir/sub other; seq 20 > text; seq 5 > dir/a; seq 6 > dir/b; seq 7 > dir/sub/c
chmod 640 text; chmod 755 dir/a; ln -s dir/a link; ln -s ../text dir/up; cp dir/b linked
touch -d @1000000000 text dir/a dir/b dir/sub/c
"""


def _place(caller, setup=_SETUP, **given):
    return Place(caller=caller, setup=setup, **given)


def test_editors_and_stream_editors(every_caller):
    need("vi", "perl", "patch", "ed")
    _place(every_caller).compare(
        # the usual ways of vim: a rename of a backup, an overwritten file, a kept backup
        """
        vi -u NONE -es -c '%s/^7$/seven/' -c wq text
        vi -u NONE -es -c 'set backup backupcopy=no' -c '2d' -c wq dir/a
        vi -u NONE -es -c 'set nobackup backupcopy=yes' -c '3d' -c wq link
        vi -u NONE -es -c 'set writebackup backupcopy=auto,breakhardlink' -c '1d' -c wq linked
        vi -u NONE -es -c '1copy$' -c 'w made' -c q! text
        stat -c '%n %A' text dir/* link linked made; stat -c %h dir/a linked
        """,
        "sed -i 's/^1/one/' text dir/sub/c; sed -i.bak 2d dir/b; sed -i --follow-symlinks 1d dir/up",
        "perl -pi -e 's/5/five/' text dir/a; perl -pi.orig -e 's/6/six/' dir/sub/c; ls -R",
        "printf '2i\\nby ed\\n.\\nw\\nq\\n' | ed -s text; head -3 text",
        """
        cp text text.old; sed -i 5d text
        diff -u --label a --label b text.old text > change.patch || true
        mv text.old text; patch -s -b text < change.patch; ls -la --time-style=+ text text.orig |
            cut -c1-10; patch -s -R --dry-run text < change.patch
        """,
    )


_TYPIST = r"""
cat > typist.py <<'END'
import os, pty, sys
child, fd = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execlp("nano", "nano", "-I", "text")
seen = b""
def expect(what):
    global seen
    while what not in seen:
        seen += os.read(fd, 4096)
    seen = b""
for wait, keys in ((b"Exit", b"typed"), (b"typed", b"\r\x0f"), (b"to Write", b"\r"), (b"Wrote", b"\x18")):
    expect(wait)
    os.write(fd, keys)
try:
    while os.read(fd, 4096):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
END
"""


def test_nano_on_a_terminal(caller):
    """An editor that has no batch mode: typed into, on a terminal."""
    need("nano")
    _place(caller, _SETUP + _TYPIST).compare("/usr/bin/python3 typist.py; head -2 text")


_ATOMIC = r"""
cat > save.py <<'END'
import ctypes, fcntl, mmap, os, tempfile
def atomic(path, content, follow=False):
    path = os.path.realpath(path) if follow else path
    fd, name = tempfile.mkstemp(dir=os.path.dirname(path) or ".")
    os.write(fd, content); os.fchmod(fd, 0o644); os.fsync(fd); os.close(fd)
    os.replace(name, path)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY); os.fsync(directory)
atomic("text", b"atomic\n"); atomic("link", b"through the link\n", follow=True)
atomic("dir/up", b"in place of a link\n")
with open("dir/b", "r+b") as file:
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[0:3] = b"map"; memory.flush()
    assert os.pread(file.fileno(), 3, 0) == b"map"
with open("dir/sub/c", "r+b") as file:
    file.truncate(3); file.seek(1 << 20); file.write(b"end"); os.fdatasync(file.fileno())
fd = os.open("dir", os.O_TMPFILE | os.O_RDWR, 0o644); os.write(fd, b"unnamed\n")
libc = ctypes.CDLL(None, use_errno=True)
print(libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, b"dir/named", 0x400), ctypes.get_errno())
with open("log", "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX); file.write("a line\n")
fd = os.open("text", os.O_WRONLY | os.O_APPEND); os.write(fd, b"appended\n")
fd = os.open("hole", os.O_CREAT | os.O_RDWR, 0o600)
os.posix_fallocate(fd, 0, 8192); os.pwrite(fd, b"x", 100_000)
for new, old, flags in ((b"dir/a", b"dir/sub/c", 2), (b"dir/b", b"never", 1)):
    done = libc.renameat2(-100, new, -100, old, flags)
    print(new, done, os.strerror(ctypes.get_errno()) if done else "")
os.sendfile(os.open("sent", os.O_CREAT | os.O_WRONLY), os.open("text", os.O_RDONLY), 0, 99)
os.copy_file_range(os.open("dir/sub/c", os.O_RDONLY), os.open("ranged", os.O_CREAT | os.O_RDWR), 99)
END
"""


def test_what_programs_do_to_save_a_file(every_caller):
    after = _place(every_caller, _SETUP + _ATOMIC).compare(
        "/usr/bin/python3 save.py; stat -c '%n %A' * dir/*; stat -c %h%s dir/[ab] text hole; cat dir/up ranged; md5sum dir/a never text",
        "/usr/bin/python3 save.py 2>&1 | tail -1; cat log",
    )
    assert after["hole"]["content"] != after["ranged"]["content"]


def test_files_that_are_copied_moved_and_linked(every_caller):
    need("rsync", "tar", "install")
    _place(
        every_caller,
        _SETUP
        + """
        # rsync leaves times alone that differ by less than a second, and tar brings them back
        touch -h -d @1000000000 dir/up dir/sub dir
        tar -cf all.tar text dir link linked other; rm -rf other/*
        mkdir -p tree/x tree/y; for n in 1 2 3; do seq $n > tree/x/$n; seq 9$n > tree/y/$n; done
        cp -a tree mirror; rm mirror/x/1; echo changed > mirror/y/2; echo more > mirror/extra
        touch -d @1100000000 tree/y/3; touch -d @1200000000 tree/x/2 tree/x tree/y tree
        touch -d @1000000000 text dir/* dir/sub/c
        """,
        # tar and rsync and cp -a set the times that the archive has
        times="unpacked/.*|(mirror|inplace)/[xy]/.*|copied/sub/.*|rsynced(/.*)?",
    ).compare(
        "mkdir unpacked; tar -xf all.tar -C unpacked; tar -xf all.tar; echo 1 >> text; tar -xf all.tar text",
        "tar -df all.tar; tar --overwrite -xf all.tar dir/a; tar -xf all.tar --unlink-first link",
        "rsync -a --delete --itemize-changes tree/ mirror/; rsync -a --delete --itemize-changes tree/ mirror/",
        """
        mkdir inplace; rsync -a tree/ inplace/; echo 2 >> tree/x/2
        rsync -a --inplace --no-whole-file -c tree/ inplace/; rsync -aH --link-dest=../tree tree/ linked-tree/
        stat -c '%n %h' linked-tree/*/* tree/*/*
        """,
        "install -m 751 dir/a installed; install -D -p text deep/er/text; install -b text installed",
        """
        cp -a --reflink=auto dir copied; cp --remove-destination -p text copied/a; cp -u text dir/b
        cp -al dir hard; chmod 600 hard/b; stat -c %A dir/b; rsync -aH hard/ rsynced/; rm -r hard
        """,
        # renames of directories that lie below: mv copies them
        "mv dir moved; mv moved/sub .; mv -T sub moved/sub; mv -b text moved/a; mv moved other/",
        """
        ln -sf nowhere link; ln -sfn other/moved link; ln -f linked other/again; ln -srf other/moved/a rel
        readlink rel link; truncate -s 3 linked; truncate -s 1M grown
        dd if=/dev/zero of=linked bs=1 count=2 seek=1 conv=notrunc status=none; od -c other/again
        cat linked other/moved/b > both; cat both >> linked; : > both; tee -a both < linked >/dev/null
        """,
        """
        find . -newer tree/x/2 -type f -not -newermt @1300000000 | sort
        find tree -newermt @1500000000 -type f | sort; find . -depth -name x -exec rm -r {} +
        """,
        "rm -rf tree mirror/y && mkdir mirror/y && touch -d @1200000000 mirror/y mirror/y/new; rmdir deep 2>&1 || true",
    )


def test_attributes_lists_and_holes_go_through_tar(every_caller):
    """A round trip of what tar keeps only when it is asked to. A rootless world knows no ids but
    one's own, in lists too."""
    need("setfattr", "setfacl", "tar")
    uid, gid = every_caller.uid, every_caller.gid
    one, two, three = (1, 2, 3) if uid == 0 else (uid, gid, uid)
    after = _place(
        every_caller,
        "mkdir dir; echo 1 > dir/a; echo 2 > dir/b; setfattr -n user.one -v 1 dir/a; truncate -s 4M dir/hole; echo end >> dir/hole",
        prelude=f"one={one} two={two} three={three}\n",
    ).compare(
        """
        setfattr -n user.two -v 2 dir/b; setfattr -n user.one -v other dir/a; setfattr -x user.one dir/a
        setfattr -n user.dir -v d dir; setfacl -m u:$one:rw,g:$two:r dir/b; setfacl -d -m u:$three:rx dir
        echo 3 > dir/inherits; mkdir dir/below; getfacl -p dir dir/*; getfattr -d dir dir/*
        """,
        "tar --xattrs --acls --sparse -cf all.tar dir; mkdir again; tar --xattrs --acls --sparse -xpf all.tar -C again",
        "getfacl -p again/* again/*/*; getfattr -d again/* again/*/*; stat -c '%s' again/dir/hole; cmp dir/hole again/dir/hole",
        "chmod 2755 again/dir 2>/dev/null || true; chmod 1777 dir/below; setfacl -b dir/b; rm all.tar",
        # how much is allocated counts in KiB that filesystems choose: less than a quarter is a hole
        "test $(du -k again/dir/hole | cut -f1) -lt 1024 && test $(du -k dir/hole | cut -f1) -lt 1024",
    )
    assert after["again/dir/b"]["xattr"]["user.two"] == b"2".hex()
    assert "system.posix_acl_access" in after["again/dir/b"]["xattr"]
    assert "system.posix_acl_default" in after["dir/below"]["xattr"]


def test_a_watcher_in_the_world_sees_what_changes_there(caller):
    """Also of a host's file that is only now copied up: the events are of the name."""
    need("inotifywait")
    _place(
        caller,
        readers=(("events.*", anything),),
    ).compare(
        """
        coproc watcher { exec inotifywait -m -r --format '%w%f %e' . 2>&1; }
        read -r line <&"${watcher[0]}"; until [[ $line == *established* ]]; do
            read -r line <&"${watcher[0]}"; done
        echo more >> text; mv dir/a dir/renamed; rm dir/sub/c; chmod 600 dir/renamed; echo last > last
        while read -r line; do
            case $line in *OPEN*|*ACCESS*|*CLOSE_NOWRITE*) continue;; esac
            echo "$line"; [[ $line == *'/last CLOSE'* ]] && break
        done <&"${watcher[0]}"
        kill "$watcher_PID"
        """
    )


def test_locks_hold_between_processes_of_a_world(caller):
    """flock(2) and fcntl(2) locks on a host's file, which is copied up while it is locked."""
    need("flock")
    _place(caller).compare(
        """
        exec 9>>text; flock 9; echo locked >> text; ! flock -n text -c true
        flock -u 9; flock -n text -c 'echo free >> text'; tail -2 text
        """,
        r"""
        for n in 1 2 3 4 5 6 7 8; do
            (for i in 1 2 3 4 5; do flock counter -c 'n=$(cat counter); echo $((n + 1)) > counter'; done) &
        done; wait; cat counter
        """,
    )


def test_a_file_saved_again_and_again_over_layers(caller):
    """Each command saves in another way what the layer below it holds."""
    ways = (
        "echo {n} >> text",
        "sed -i 's/$/ {n}/' text",
        "cp text new; mv new text",
        "rm text; seq {n} > text",
        "ln -f text hard; rm text; echo {n} > text",
        "truncate -s 5 text; chmod 60{m} text",
        "mv text away; mv away text",
        "mkdir -p d; mv text d/; rm -rf d/x; mv d/text .; rmdir d",
    )
    _place(caller).compare(*(w.format(n=t * 7 + 3, m=t * 2) for t in range(3) for w in ways))


def test_a_hard_link_of_a_lower_layer_is_taken_apart(every_caller):
    """Without an index overlayfs copies up one name of a file (overlayfs.rst "non-standard
    behavior"): the others keep the content that they had. The apply does what the world
    showed. docs/how-to/recipes.md."""
    place = _place(every_caller)
    place.make()
    before = place.listing()
    place.run_in_world(("echo more >> linked; seq 3 > one; ln one two; cat linked dir/b",))
    (_, out, _) = place.in_world[0]
    assert out.count(b"more") == 1
    place.run_in_world(("echo 4 >> one; cmp one two",))
    assert place.in_world[-1][0] == 1
    assert place.pending() == {"linked": "modified", "one": "added", "two": "added"}
    shown = place.seen()
    place.apply()
    after = place.listing()
    assert after["dir/b"] == {**before["dir/b"], "same": "dir/b"}
    assert {n: after[n]["content"] for n in after if "content" in after[n]} == {
        n: shown[n]["content"] for n in shown if "content" in shown[n]
    }
