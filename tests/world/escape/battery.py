"""Tries to get out of where it runs, and says what happened: one JSON object a line.

    python3 battery.py '{"host_pid": 4711, …}'

`{"attempt", "outcome": "blocked" | "ALLOWED", "errno", "detail"}`. Inside a world every
outcome must be "blocked"; outside (`"control": true`) most are "ALLOWED", which proves that
the attempt is a real one. Harmless there: every attempt runs in a child of its own, as root in
a mount namespace of its own, opens without writing, takes a file of its own where it would
remove one, and passes arguments that the kernel refuses after it has taken the call (such an
errno counts as ALLOWED: the kernel was reached). Standard library only; needs nothing of the
product.

Parameters, all optional: `control`; `first` (who is tried as pid 1, in a control); `host_pid` and `host_start` (ticks, proc_pid_stat(5)) of
a process outside; `sockets` (paths), `abstract` (names), `fifos` (paths with a reader
outside), `hidden` ([path of a file, text that stands in it]), `directory` (writable, in the
workspace), `namespace_fd` (a namespace that was passed along), `terminal` (path of a terminal
outside), `uid` (expected), `capabilities` (the mask that may be effective), `nested_namespaces`,
`nested_root` (the same, and this is the root of such a one) and `ptrace` (true where the world
allows them).
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys
import tempfile


def _leaked():
    """What the descriptors above 2 are, without the one of the listing itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            continue
    return [f"{fd} -> {what}" for fd, what in found if fd > 2]


LEAKED = _leaked()

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
ATTEMPTS = {}
NEWNS, NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REMOUNT, MS_REC, MS_PRIVATE = 4096, 32, 16384, 1 << 18
LOADS_MODULES = ("key", "smc", "smc by protocol", "tipc", "rds", "bluetooth", "SCTP", "can", "rxrpc",
                 "qipcrtr", "nfc", "kcm", "llc", "x25", "phonet", "L2TP", "DCCP")  # fmt: skip


class Blocked(Exception):
    """Not an error number, but no way out either."""


def call(x86, aarch64, *arguments, reached=()):
    """A raw system call; an errno in `reached` means that the kernel took it."""
    number = x86 if X86 else aarch64
    if number is None:
        raise Blocked("no such call on this machine")
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result >= 0:
        return f"returned {result}"
    code = ctypes.get_errno()
    if errno.errorcode.get(code) in reached:
        return f"reached the kernel: {errno.errorcode[code]}"
    raise OSError(code, os.strerror(code))


def attempt(name, *, unless=None):
    """Registers an attempt; `unless` names a parameter under which it is legitimate."""

    def register(function):
        ATTEMPTS[name] = (function, unless)
        return function

    return register


def simple(name, x86, aarch64, *arguments, reached=(), unless=None):
    ATTEMPTS[name] = (lambda p: call(x86, aarch64, *arguments, reached=reached), unless)


def mount(source, target, kind, flags):
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "mounted"


def open_real(path, flags):
    """Opens and closes; a path that is covered by /dev/null is no way out."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
        raise Blocked("covered by /dev/null")
    return f"opened {path}"


def openable(name, path, flags):
    def run(p):
        return open_real(path, flags)

    ATTEMPTS[name] = (run, None)


def read_some(path):
    with open(path, "rb", buffering=0) as file:
        if not file.read(16):
            raise Blocked("empty")
    return f"read {path}"


def readable(name, path):
    ATTEMPTS[name] = (lambda p: read_some(path), None)


# --- mounts and namespaces


@attempt("mount a tmpfs", unless="nested_namespaces")
def _(p):
    return mount(b"none", b"/tmp", b"tmpfs", 0)


@attempt("bind a directory over another", unless="nested_namespaces")
def _(p):
    return mount(b"/", b"/tmp", None, MS_BIND)


@attempt("remount the root", unless="nested_namespaces")
def _(p):
    return mount(None, b"/", None, MS_REMOUNT | MS_BIND)


@attempt("unmount what covers /proc", unless="nested_namespaces")
def _(p):
    if libc.umount2(b"/proc", 2) < 0:
        raise OSError(ctypes.get_errno(), "umount2")
    return "unmounted"


simple("pivot_root", 155, 41, b".", b".", reached=("EINVAL", "EBUSY"), unless="nested_namespaces")
simple("open_tree a copy of /", 428, 428, -100, b"/", 1, unless="nested_namespaces")
simple("fsopen tmpfs", 430, 430, b"tmpfs", 0, unless="nested_namespaces")
simple("fsmount", 432, 432, -1, 0, 0, reached=("EBADF",), unless="nested_namespaces")
simple(
    "move_mount",
    429,
    429,
    -1,
    b"",
    -1,
    b"",
    4,
    reached=("EBADF", "ENOENT"),
    unless="nested_namespaces",
)
simple(
    "mount_setattr", 442, 442, -100, b"/", 0, 0, 0, reached=("EINVAL",), unless="nested_namespaces"
)
simple(
    "open_tree_attr", 467, 467, -100, b"/", 1, 0, 0, reached=("EINVAL",), unless="nested_namespaces"
)
simple(
    "fsconfig", 431, 431, -1, 0, 0, 0, 0, reached=("EINVAL", "EBADF"), unless="nested_namespaces"
)
simple("fspick", 433, 433, -100, b"/tmp", 0, reached=("EINVAL",), unless="nested_namespaces")
simple(
    "umount2 of nothing",
    166,
    39,
    b"/no/such/place",
    0,
    reached=("ENOENT",),
    unless="nested_namespaces",
)
simple("a call newer than the filter", 470, 470, 0, 0, 0, 0, reached=("EINVAL", "EFAULT"))
simple("unshare a user namespace", 272, 97, NEWUSER, unless="nested_namespaces")
simple("unshare a mount namespace", 272, 97, NEWNS, unless="nested_namespaces")
simple("unshare a network namespace", 272, 97, 0x40000000, unless="nested_namespaces")
simple("clone3", 435, 435, 0, 0, reached=("EINVAL", "EFAULT"))
simple("setns by a bad fd", 308, 268, -1, 0, reached=("EBADF",), unless="nested_namespaces")


@attempt("clone a user namespace", unless="nested_namespaces")
def _(p):
    result = libc.syscall(
        ctypes.c_long(56 if X86 else 220), ctypes.c_long(NEWUSER | 17), 0, 0, 0, 0
    )
    if result == 0:
        os._exit(0)
    if result < 0:
        raise OSError(ctypes.get_errno(), "clone")
    os.waitpid(result, 0)
    return "cloned"


def enter(path):
    fd = os.open(path, os.O_RDONLY)
    return call(308, 268, fd, 0)


def first(p):
    """The world's pid 1. (A control has a process of its own for that.)"""
    return p.get("first", 1)


@attempt("setns to pid 1's mount namespace")
def _(p):
    return enter(f"/proc/{first(p)}/ns/mnt")


@attempt("setns to the host process' network")
def _(p):
    _is_host_process(p)
    return enter(f"/proc/{p['host_pid']}/ns/net")


@attempt("setns by a pidfd of pid 1")
def _(p):
    return call(308, 268, os.pidfd_open(first(p)), NEWNS)


@attempt("take pid 1's mount namespace from its pidfd")
def _(p):
    return f"fd {fcntl.ioctl(os.pidfd_open(first(p)), 0xFF03)}"  # PIDFD_GET_MNT_NAMESPACE


@attempt("setns by a passed fd")
def _(p):
    if "namespace_fd" not in p:
        raise Blocked("no fd was passed")
    return call(308, 268, p["namespace_fd"], 0)


@attempt("open a file by its handle")
def _(p):
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    call(303, 264, -100, b"/etc", handle, ctypes.byref(mount_id), 0)
    fd = os.open("/", os.O_RDONLY)
    return call(304, 265, fd, handle, os.O_RDONLY)


@attempt("open the root inode by a forged handle")
def _(p):
    handle = ctypes.create_string_buffer(struct.pack("=IiII", 8, 1, 2, 0))
    return call(304, 265, os.open("/", os.O_RDONLY), handle, os.O_RDONLY, reached=("ESTALE",))


@attempt("open a process by its handle")
def _(p):
    """open_by_handle_at(2) with FD_PIDFS_ROOT (Linux 6.18) needs no right to search."""
    handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, 0xF1, os.getpid()))
    return call(304, 265, -10002, handle, 0, reached=("ESTALE", "EINVAL"))


@attempt("chroot", unless="nested_root")
def _(p):
    os.chroot("/tmp")
    return "chrooted"


# --- devices, /proc, /sys


def node(kind, major, minor):
    def run(p):
        path = os.path.join(p["directory"], f"node-{major}-{minor}")
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
        os.unlink(path)
        return f"made {path}"

    return run


ATTEMPTS["mknod a block device"] = (node(stat.S_IFBLK, 254, 0), None)
ATTEMPTS["mknod /dev/mem"] = (node(stat.S_IFCHR, 1, 1), None)
ATTEMPTS["mknod a whiteout"] = (node(stat.S_IFCHR, 0, 0), None)


@attempt("change the mode of a device")
def _(p):
    """A bind of a device is the host's own inode. (The mode that it has.)"""
    os.chmod("/dev/null", stat.S_IMODE(os.stat("/dev/null").st_mode))
    return "changed"


@attempt("change the times of a device")
def _(p):
    status = os.stat("/dev/full")
    os.utime("/dev/full", ns=(status.st_atime_ns, status.st_mtime_ns))
    return "changed"


@attempt("change the mode of what covers /proc")
def _(p):
    os.chmod("/proc/keys", stat.S_IMODE(os.stat("/proc/keys").st_mode))
    return "changed"


@attempt("open a terminal of the host")
def _(p):
    return open_real(p["terminal"], os.O_RDWR | os.O_NOCTTY) if "terminal" in p else _none()


def _none():
    raise Blocked("nothing was named")


for device in [
    "mem",
    "kmem",
    "port",
    "kmsg",
    "kvm",
    "fuse",
    "net/tun",
    "vsock",
    "loop-control",
    "vda",
    "sda",
    "nvme0n1",
    "cuse",
    "uinput",
    "userfaultfd",
]:
    openable(f"open /dev/{device}", f"/dev/{device}", os.O_RDONLY)
for file in (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/pressure/memory",
    "/proc/mtrr",
    "/proc/slabinfo",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/unified/cgroup.procs",
    "/sys/fs/cgroup/pids/cgroup.procs",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/memory/notify_on_release",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
):
    openable(f"write {file}", file, os.O_WRONLY)
for file in (
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/kallsyms",
    "/proc/iomem",
    "/proc/vmallocinfo",
    "/sys/kernel/debug/sched/features",
    "/sys/kernel/tracing/README",
):
    readable(f"read {file}", file)


@attempt("make a control group")
def _(p):
    def make(parent):
        path = f"{parent}/escape-{os.getpid()}"
        os.mkdir(path)
        real = os.path.exists(path + "/cgroup.procs")
        os.rmdir(path)
        if not real:
            raise Blocked("only a directory")
        return f"made {path}"

    return _each([f"/sys/fs/cgroup{part}" for part in ("", "/unified", "/pids")], make)


for word, way in (
    ("look through pid 1's root", lambda pid: f"{len(os.listdir(f'/proc/{pid}/root/'))} entries"),
    ("look through pid 1's cwd", lambda pid: f"{len(os.listdir(f'/proc/{pid}/cwd/'))} entries"),
    ("read /proc/1/environ", lambda pid: read_some(f"/proc/{pid}/environ")),
    ("read /proc/1/maps", lambda pid: read_some(f"/proc/{pid}/maps")),
    ("write /proc/1/mem", lambda pid: open_real(f"/proc/{pid}/mem", os.O_WRONLY)),
):
    ATTEMPTS[word] = (lambda p, way=way: way(first(p)), None)


@attempt("overwrite pid 1's program")
def _(p):
    try:
        return open_real(f"/proc/{first(p)}/exe", os.O_WRONLY)
    except OSError as error:
        if error.errno == errno.ETXTBSY:
            return "reached the kernel: ETXTBSY"
        raise


# --- processes


def _is_host_process(p):
    """Numbers repeat between pid namespaces: only the start time tells that it is the one."""
    if "host_pid" not in p:
        raise Blocked("no host process was named")
    with open(f"/proc/{p['host_pid']}/stat", "rb") as file:
        if int(file.read().rpartition(b")")[2].split()[19]) != p["host_start"]:
            raise Blocked("another process has that number here")


@attempt("signal the host process")
def _(p):
    _is_host_process(p)
    os.kill(p["host_pid"], 0)
    return "delivered"


@attempt("open a pidfd of the host process")
def _(p):
    _is_host_process(p)
    os.pidfd_open(p["host_pid"])
    return "opened"


@attempt("read the host process' memory map")
def _(p):
    _is_host_process(p)
    with open(f"/proc/{p['host_pid']}/maps") as file:
        return f"{len(file.read())} bytes"


def at_first(name, x86, aarch64, *arguments, reached=(), unless=None):
    """A call on pid 1, whose place in the arguments holds `first`."""

    def run(p):
        given = [first(p) if a is first else a for a in arguments]
        return call(x86, aarch64, *given, reached=reached)

    ATTEMPTS[name] = (run, unless)


# PTRACE_SEIZE with options that do not exist: refused by the kernel before it touches pid 1
at_first("ptrace pid 1", 101, 117, 0x4206, first, 0, -1, reached=("EIO", "EINVAL"), unless="ptrace")
simple("ptrace: be traced", 101, 117, 0, 0, 0, 0, unless="ptrace")
at_first("process_vm_readv of pid 1", 310, 270, first, 0, 0, 0, 0, 0, unless="ptrace")
at_first("process_vm_writev to pid 1", 311, 271, first, 0, 0, 0, 0, 0, unless="ptrace")
at_first("kcmp with pid 1", 312, 272, first, first, 0, 0, 0, unless="ptrace")
simple("pidfd_getfd", 438, 438, -1, 0, 0, reached=("EBADF",), unless="ptrace")


@attempt("ptrace a sibling", unless="ptrace")
def _(p):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        return call(101, 117, 0x4206, pid, 0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)


@attempt("keep a trap for core dumps")
def _(p):
    """Only the limit 1 stops core_pattern's program; lowering it to 0 would start it again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if (soft, hard) == (1, 1):
        raise Blocked("the limit stays 1")
    return f"limits {soft}, {hard}"


@attempt("gain rights by a set-user-id program")
def _(p):
    """su waits for a password; meanwhile its effective uid can be read."""
    if os.geteuid() == 0:
        raise Blocked("root is expected")
    own, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        for fd in (0, 1, 2):
            os.dup2(theirs.fileno(), fd)
        os.execv("/usr/bin/su", ["su", "-c", "true"])
    theirs.close()
    try:
        own.recv(100)  # the question, or a refusal
        with open(f"/proc/{pid}/status") as file:
            ids = next(line for line in file if line.startswith("Uid:")).split()[1:]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if ids[1] != "0":
        raise Blocked(f"uids {ids}")
    return f"uids {ids}"


simple("process_madvise", 440, 440, -1, 0, 0, 0, 0, reached=("EBADF", "EINVAL"))
simple("move_pages", 279, 239, 0, 0, 0, 0, 0, 0, reached=("EINVAL",))
simple("migrate_pages", 256, 238, 0, 0, 0, 0, reached=("EINVAL",))


@attempt("descriptors beyond the first three")
def _(p):
    if not LEAKED:
        raise Blocked("none")
    return ", ".join(LEAKED)


# --- sockets, pipes, hidden files


@attempt("connect to a host socket by path")
def _(p):
    return _each(p.get("sockets", ()), _connect)


@attempt("connect to an abstract host socket")
def _(p):
    return _each(["\0" + name for name in p.get("abstract", ())], _connect)


@attempt("write to a host FIFO")
def _(p):
    return _each(p.get("fifos", ()), lambda path: open_real(path, os.O_WRONLY))


def _each(things, action):
    """The first that works; the error of the last one otherwise."""
    error = Blocked("nothing was named")
    for thing in things:
        try:
            return action(thing)
        except (OSError, Blocked) as refused:
            error = refused
    raise error


def _connect(address):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(2)
        stream.connect(address)
    return f"connected to {address!r}"


def _holds(path, text):
    with open(path) as file:
        if text not in file.read():
            raise Blocked("covered")
    return f"read {path}"


@attempt("read a hidden file")
def _(p):
    return _any_hidden(p, lambda path: path)


@attempt("read a hidden file by /proc/self/root")
def _(p):
    return _any_hidden(p, lambda path: "/proc/self/root" + path)


@attempt("hard link to a hidden file")
def _(p):
    def link(path):
        new = os.path.join(p["directory"], f"link-{os.getpid()}")
        os.link(path, new)
        return new

    return _any_hidden(p, link, unlink=True)


@attempt("read a hidden file by an opened directory")
def _(p):
    def way(path):
        return f"/proc/self/fd/{os.open(os.path.dirname(path), os.O_PATH)}/{os.path.basename(path)}"

    return _any_hidden(p, way)


@attempt("read a hidden file by another case of its name")
def _(p):
    return _any_hidden(p, lambda path: path.replace("/.ssh/", "/.SSH/"))


def removing(name):
    """Registers an attempt that takes (path, a new path beside) and would remove the cover of a
    hidden file, or move it; a control gets a file of its own for it."""

    def register(function):
        def run(p):
            if not p.get("control"):
                return _each(
                    [path for path, _ in p.get("hidden", ())],
                    lambda path: function(path, os.path.join(p["directory"], f"new-{os.getpid()}")),
                )
            with tempfile.TemporaryDirectory(dir=p["directory"], ignore_cleanup_errors=True) as own:
                path = os.path.join(own, "above", ".ssh", "id")
                os.makedirs(os.path.dirname(path))
                open(path, "w").close()
                return function(path, os.path.join(own, "new"))

        ATTEMPTS[name] = (run, None)

    return register


@removing("rename the directory above a hidden one")
def _(path, new):
    above = os.path.dirname(os.path.dirname(path))
    os.rename(above, above + "-moved")
    os.rename(above + "-moved", above)
    return "moved"


@removing("take away what covers a hidden file")
def _(path, new):
    try:
        os.unlink(path)
    except OSError:
        os.rmdir(os.path.dirname(path))
    return "taken away"


@removing("exchange what covers a hidden file")
def _(path, new):
    os.mkdir(new)
    try:
        return call(316, 276, -100, os.path.dirname(path).encode(), -100, new.encode(), 2)
    except OSError:
        os.rmdir(new)
        raise


@removing("rename what covers a hidden file")
def _(path, new):
    os.rename(os.path.dirname(path), new)
    return "moved"


def _any_hidden(p, way, unlink=False):
    error = Blocked("nothing was named")
    for path, text in p.get("hidden", ()):
        try:
            reached = way(path)
            try:
                return _holds(reached, text)
            finally:
                if unlink:
                    os.unlink(reached)
        except (OSError, Blocked) as refused:
            error = refused
    raise error


# --- parts of the kernel

NULL_PARAMETERS = ctypes.create_string_buffer(120)
simple("io_uring_setup", 425, 425, 1, NULL_PARAMETERS)
simple("bpf", 321, 280, -1, 0, 0, reached=("EINVAL", "EFAULT"))
simple("perf_event_open", 298, 241, 0, 0, -1, -1, 0, reached=("EFAULT", "EINVAL"))
simple("userfaultfd", 323, 282, -1, reached=("EINVAL",))
simple("keyctl", 250, 219, 0, -3, 0, reached=("ENOKEY",))
simple("add_key", 248, 217, 0, 0, 0, 0, -3, reached=("EFAULT",))
simple("request_key", 249, 218, 0, 0, 0, 0, reached=("EFAULT",))
simple("memfd_secret", 447, 447, 0)
simple("fanotify_init", 300, 262, 0, 0)
simple("kexec_file_load", 320, 294, -1, -1, 0, 0, 0, reached=("EBADF", "EINVAL"))
simple("quotactl_fd", 443, 443, -1, 0, 0, 0, reached=("EBADF",))
simple("swapoff", 168, 225, b"/no/such/file", reached=("ENOENT",))
simple("adjtimex", 159, 171, ctypes.create_string_buffer(b"\xff" * 208, 208), reached=("EINVAL",))
simple("init_module", 175, 105, 0, 0, 0, reached=("ENOEXEC", "EFAULT", "EINVAL"))
simple("finit_module", 313, 273, -1, b"", 0, reached=("EBADF",))
simple("delete_module", 176, 106, b"no_such_module", 0, reached=("ENOENT",))
simple("kexec_load", 246, 104, 0, 0, 0, -1, reached=("EINVAL",))
simple("reboot", 169, 142, 0, 0, 0, 0, reached=("EINVAL",))
simple("swapon", 167, 224, b"/no/such/file", 0, reached=("ENOENT",))
simple("acct", 163, 89, b"/no/such/file", reached=("ENOENT",))
simple("quotactl", 179, 60, -1, 0, 0, 0, reached=("EINVAL", "ENODEV", "ENOTBLK"))
simple("clock_settime", 227, 112, 0, (ctypes.c_long * 2)(0, -1), reached=("EINVAL",))
simple("settimeofday", 164, 170, (ctypes.c_long * 2)(0, -1), 0, reached=("EINVAL",))
simple("syslog", 103, 116, 10, 0, 0)
simple("iopl", 172, None, 3)
simple("ioperm", 173, None, 0x80, 1, 1)
simple("modify_ldt", 154, None, 0, NULL_PARAMETERS, 120)
simple("personality: executable data", 135, 92, 0x0400000)
simple("prctl: forge the program's name", 157, 167, 35, 15, ctypes.create_string_buffer(8), 0, 0)


@attempt("sethostname")
def _(p):
    socket.sethostname(socket.gethostname())
    return "set"


@attempt("call by the x32 way")
def _(p):
    return call(0x40000000 | 39, None)


@attempt("call by the i386 way")
def _(p):
    if not X86:
        raise Blocked("no such call on this machine")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if function() != os.getpid():
        raise Blocked("no such call")
    return "getpid"


for label, family, kind, protocol in (
    ("vsock", 40, 1, 0),
    ("alg", 38, 5, 0),
    ("packet", 17, 3, 0),
    ("packet in disguise", 2, 10, 0x300),
    ("key", 15, 3, 2),
    ("xdp", 44, 3, 0),
    ("smc", 43, 1, 0),
    ("smc by protocol", 2, 1, 256),
    ("tipc", 30, 1, 0),
    ("rds", 21, 5, 0),
    ("bluetooth", 31, 3, 1),
    ("raw ICMP", 2, 3, 1),
    ("raw ICMPv6", 10, 3, 58),
    ("MPTCP", 2, 1, 262),
    ("SCTP", 2, 1, 132),
    ("DCCP", 2, 6, 33),
    ("L2TP", 2, 2, 115),
    ("UDP-Lite", 2, 2, 136),
    ("can", 29, 3, 1),
    ("rxrpc", 33, 2, 2),
    ("qipcrtr", 42, 2, 0),
    ("nfc", 39, 3, 0),
    ("kcm", 41, 2, 0),
    ("llc", 26, 1, 0),
    ("x25", 9, 5, 0),
    ("phonet", 35, 2, 0),
    ("netlink netfilter", 16, 3, 12),
    ("netlink audit", 16, 3, 9),
    ("netlink sock_diag", 16, 3, 4),
    ("netlink kobject_uevent", 16, 3, 15),
):

    def open_socket(p, family=family, kind=kind, protocol=protocol, label=label):
        # these may make the kernel load a module, which a control run must not
        if p.get("control") and label in LOADS_MODULES:
            raise Blocked("not tried outside: it may load a module")
        socket.socket(family, kind, protocol).close()
        return "opened"

    ATTEMPTS[f"socket {label}"] = (open_socket, None)


# --- the terminal, limits, the overlay


def _on_own_terminal(request, argument, reached=()):
    """ioctl on a terminal that is this child's controlling one."""
    os.setsid()
    _, slave = os.openpty()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
    return call(16, 29, slave, request, argument, reached=reached)


@attempt("type into the terminal (TIOCSTI)")
def _(p):
    return _on_own_terminal(0x5412, b"x", reached=("EIO",))


@attempt("type into the terminal, with high bits in the request")
def _(p):
    return _on_own_terminal(0x5412 | 1 << 32, b"x", reached=("EIO",))


@attempt("paste into the console (TIOCLINUX)")
def _(p):
    return _on_own_terminal(0x541C, b"\x03", reached=("EINVAL", "ENOTTY"))


@attempt("set a line discipline")
def _(p):
    return _on_own_terminal(0x5423, struct.pack("i", 0))


@attempt("raise a hard limit")
def _(p):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        raise Blocked("there is no limit")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    except ValueError as refused:  # Python's word for EPERM here
        raise OSError(errno.EPERM, str(refused)) from None
    return "raised"


@attempt("forge an overlay mark")
def _(p):
    with tempfile.TemporaryDirectory(dir=p["directory"]) as directory:
        os.setxattr(directory, "trusted.overlay.opaque", b"y")
    return "set"


@attempt("become root")
def _(p):
    if p.get("uid", 0) == 0:
        raise Blocked("the world's root is expected")
    os.setuid(0)
    return "uid 0"


@attempt("have another uid than agreed")
def _(p):
    if "uid" not in p or os.getresuid() == (p["uid"],) * 3:
        raise Blocked("as agreed")
    return f"uids {os.getresuid()}"


@attempt("have more capabilities than agreed")
def _(p):
    status = _status()
    beyond = (int(status["CapEff"], 16) | int(status["CapBnd"], 16)) & ~p.get("capabilities", 0)
    if not beyond:
        raise Blocked("none beyond")
    return f"{beyond:#x}"


@attempt("gain privileges at exec")
def _(p):
    status = _status()
    if status["NoNewPrivs"] == "1" and status["Seccomp"] == "2":
        raise Blocked("no_new_privs and a filter are set")
    return f"NoNewPrivs {status['NoNewPrivs']}, Seccomp {status['Seccomp']}"


def _status():
    with open("/proc/self/status") as file:
        return {key: rest.strip() for key, _, rest in (line.partition(":") for line in file)}


# --- as root of a nested user namespace, in a mount namespace of its own

MS_RDONLY, MS_MOVE, MNT_DETACH = 1, 8192, 2
READ_ONLY = ("/proc/sys", "/sys", "/dev/null")
NESTED = "nested: "


def nested(name):
    """An attempt of such a root. A control is one whose mounts are its own, so not locked."""
    return attempt(NESTED + name)


def cover(p):
    """What a world covers, once more, for a control."""
    for path, _ in p["hidden"]:
        mount(b"none", os.path.dirname(path).encode(), b"tmpfs", 0)
    for path in READ_ONLY:
        mount(path.encode(), path.encode(), None, MS_BIND | MS_REC)
        mount(None, path.encode(), None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount(b"/dev/null", b"/proc/version", None, MS_BIND)


def unmount(path):
    if libc.umount2(path.encode(), MNT_DETACH) < 0:
        raise OSError(ctypes.get_errno(), f"umount2 {path}")
    return f"unmounted {path}"


def at(p):
    """An empty directory."""
    return tempfile.mkdtemp(dir=p["directory"])


def hidden_directory(p):
    return os.path.dirname(p["hidden"][0][0])


@nested("unmount what covers a hidden path")
def _(p):
    return unmount(hidden_directory(p))


@nested("move what covers a hidden path")
def _(p):
    return mount(hidden_directory(p).encode(), at(p).encode(), None, MS_MOVE)


@nested("slip a mount beneath what covers a hidden path")
def _(p):
    place = at(p)
    mount(b"none", place.encode(), b"tmpfs", 0)
    tree = libc.syscall(ctypes.c_long(428), -100, place.encode(), 1)  # OPEN_TREE_CLONE
    if tree < 0:
        raise OSError(ctypes.get_errno(), "open_tree")
    call(429, 429, tree, b"", -100, hidden_directory(p).encode(), 0x4 | 0x200)
    return unmount(hidden_directory(p))


@nested("unmount what covers a file of /proc")
def _(p):
    return _each(["/proc/keys", "/proc/kmsg", "/proc/timer_list", "/proc/version"], unmount)


@nested("unmount what is read-only")
def _(p):
    return _each(READ_ONLY, unmount)


@nested("unmount the root")
def _(p):
    unmount("/")
    return _any_hidden(p, lambda path: path)


@nested("remount what is read-only")
def _(p):
    return _each(READ_ONLY, lambda path: mount(None, path.encode(), None, MS_REMOUNT | MS_BIND))


@nested("clear what is read-only by mount_setattr")
def _(p):
    def clear(path):
        attributes = struct.pack("=QQQQ", 0, 1, 0, 0)  # attr_clr = MOUNT_ATTR_RDONLY
        return call(442, 442, -100, path.encode(), 0, attributes, len(attributes))

    return _each(READ_ONLY, clear)


def below(p, place):
    """The hidden file through a copy of the directory above it."""
    above = os.path.dirname(hidden_directory(p))
    return _any_hidden(p, lambda path: place + path[len(above) :])


@nested("bind the directory above a hidden one, alone")
def _(p):
    place = at(p)
    mount(os.path.dirname(hidden_directory(p)).encode(), place.encode(), None, MS_BIND)
    return below(p, place)


@nested("bind the directory above a hidden one, with all in it, and unmount there")
def _(p):
    place = at(p)
    above = os.path.dirname(hidden_directory(p))
    mount(above.encode(), place.encode(), None, MS_BIND | MS_REC)
    unmount(place + hidden_directory(p)[len(above) :])
    return below(p, place)


@nested("clone the tree above a hidden directory, alone")
def _(p):
    place = at(p)
    above = os.path.dirname(hidden_directory(p)).encode()
    tree = libc.syscall(ctypes.c_long(428), -100, above, 1)
    if tree < 0:
        raise OSError(ctypes.get_errno(), "open_tree")
    call(429, 429, tree, b"", -100, place.encode(), 0x4)
    return below(p, place)


@nested("lay an overlay over the directory above a hidden one")
def _(p):
    place = at(p)
    above = os.path.dirname(hidden_directory(p))
    options = f"lowerdir={at(p)}:{above}" + (",userxattr" if p.get("nested_root") else "")
    if libc.mount(b"none", place.encode(), b"overlay", 0, options.encode()) < 0:
        raise OSError(ctypes.get_errno(), "overlay")
    return below(p, place)


@nested("pivot into a copy of the root and drop the old one")
def _(p):
    place = at(p)
    mount(b"/", place.encode(), None, MS_BIND | MS_REC)
    os.chdir(place)
    call(155, 41, b".", b".")
    unmount(".")
    if p.get("control"):  # a copy shows what lies over it, so that comes off first
        unmount(hidden_directory(p))
    return _any_hidden(p, lambda path: path)


@nested("climb out of a chroot")
def _(p):
    top = os.open("/", os.O_RDONLY)
    os.chroot(at(p))
    os.fchdir(top)
    for _step in range(64):
        os.chdir("..")
    os.chroot(".")
    if p.get("control"):
        unmount(hidden_directory(p))
    return _any_hidden(p, lambda path: path)


for kind in ("proc", "sysfs", "devtmpfs", "debugfs", "tracefs", "securityfs", "cgroup", "cgroup2"):

    def mount_new(p, kind=kind):
        if kind in ("cgroup", "cgroup2"):
            call(272, 97, 0x02000000)  # a namespace of control groups
        place = at(p)
        options = b"pids" if kind == "cgroup" else None
        if libc.mount(b"none", place.encode(), kind.encode(), 0, options) < 0:
            raise OSError(ctypes.get_errno(), kind)
        if kind.startswith("cgroup"):
            # the root of such a namespace may look; to write is what counts
            return open_real(f"{place}/cgroup.procs", os.O_WRONLY)
        return f"mounted {kind}"

    ATTEMPTS[f"{NESTED}mount a new {kind}"] = (mount_new, None)


@nested("mount a new proc with processes alone")
def _(p):
    if libc.mount(b"none", at(p).encode(), b"proc", 0, b"subset=pid") < 0:
        raise OSError(ctypes.get_errno(), "proc")
    return "mounted"


@nested("enter the mount namespace of the world")
def _(p):
    return enter(f"/proc/{os.getppid() if p.get('control') else 1}/ns/mnt")


@nested("find a network device beside lo")
def _(p):
    call(272, 97, 0x40000000) if p.get("nested_root") else None
    found = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not found:
        raise Blocked("only lo")
    return ", ".join(found)


@nested("a raw socket in a network namespace of its own")
def _(p):
    call(272, 97, 0x40000000)
    return str(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))


@nested("load rules into a network namespace of its own")
def _(p):
    call(272, 97, 0x40000000)
    return str(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))


@nested("make a device in a filesystem of its own")
def _(p):
    place = at(p)
    mount(b"none", place.encode(), b"tmpfs", 0)
    os.mknod(f"{place}/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return open_real(f"{place}/null", os.O_RDWR) if not p.get("control") else "made"


# --- running them


def isolate():
    """Outside of a world: a mount namespace of the child's own, so that mounts stay in it."""
    if libc.unshare(NEWNS) < 0 or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) < 0:
        raise SystemExit("a control run needs a mount namespace of its own (root)")


def run(name, function, parameters):
    """The answer of one attempt, from a child that may die of it."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = ["blocked", None, "no answer"]
        try:
            os.close(readable)
            signal.alarm(10)
            if parameters.get("control") and os.geteuid() == 0:
                isolate()
                if name.startswith(NESTED):
                    cover(parameters)
            answer = ["ALLOWED", None, function(parameters) or ""]
        except Blocked as reason:
            answer = ["blocked", None, str(reason)]
        except OSError as error:
            answer = [
                "blocked",
                errno.errorcode.get(error.errno, error.errno),
                error.strerror or "",
            ]
        except Exception as error:  # noqa: BLE001 - the edge of a process
            answer = ["broken", None, repr(error)]
        finally:
            os.write(writable, json.dumps(answer).encode())
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return ["blocked", None, signal.Signals(os.WTERMSIG(status)).name]
    return json.loads(text)


def main():
    parameters = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    parameters.setdefault("directory", "/tmp")
    for name, (function, unless) in ATTEMPTS.items():
        if unless and parameters.get(unless):
            continue
        if name.startswith(NESTED) and not (
            parameters.get("nested_root") or parameters.get("control")
        ):
            continue
        outcome, code, detail = run(name, function, parameters)
        line = {"attempt": name, "outcome": outcome, "errno": code, "detail": detail}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
