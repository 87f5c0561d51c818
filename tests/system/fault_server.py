"""Runs the command line of an installed substrate with one fault in it, again and again.

A script of its own, started with the Python of the installation and as the user who calls: the
tests cannot be imported there. It loads the product once and forks for each job, so that a run
costs milliseconds. One job a line on standard input, JSON:

    {"words": […], "fault": null | "kill" | "error" | "full", "at": N, "in": DIRECTORY, "out": DIRECTORY}

and one answer a line: {"status": N}. Counted are the calls of the process itself that change
something on a disk, in their order: before the N-th one it is killed, or that one fails once
(ENOSPC where it allocates, else EIO), or the disk is full from there on. In `out` are then the
files `out` and `err`, and of a run that was not killed `calls`: the names of the calls. With
"verify": [DIRECTORY, …] in place of words it is the standalone verifier that is run.
"""

import builtins
import errno
import fcntl
import functools
import importlib
import io
import json
import os
import pkgutil
import signal
import stat
import sys
import traceback

_FICLONE = 0x40049409
#: what a full disk refuses
ALLOCATES = frozenset(
    ["open", "write", "pwrite", "mkdir", "mknod", "link", "symlink", "setxattr", "ioctl"]
)
CALLS = (
    "mkdir",
    "mknod",
    "link",
    "symlink",
    "rename",
    "replace",
    "unlink",
    "remove",
    "rmdir",
    "ftruncate",
    "truncate",
    "fsync",
    "fdatasync",
    "chmod",
    "fchmod",
    "chown",
    "fchown",
    "lchown",
    "utime",
    "setxattr",
    "removexattr",
    "copy_file_range",
)
OURS = ("renameat2", "syncfs", "chown_fd")


class Faults:
    def __init__(self, job):
        self.pid = os.getpid()
        self.at = job.get("at", 0)
        self.fault = job["fault"]
        self.calls = []

    def before(self, name):
        if os.getpid() != self.pid:
            return  # the zygote: a process of its own
        self.calls.append(name)
        now = len(self.calls)
        if now == self.at and self.fault == "kill":
            os.kill(self.pid, signal.SIGKILL)
        if now == self.at and self.fault == "error":
            number = errno.ENOSPC if name in ALLOCATES else errno.EIO
            raise OSError(number, os.strerror(number))
        if now >= self.at and self.fault == "full" and name in ALLOCATES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def around(self, name, call, counts=lambda *_, **__: True):
        @functools.wraps(call)
        def faulty(*arguments, **options):
            if counts(*arguments, **options):
                self.before(name)
            return call(*arguments, **options)

        return faulty

    def around_files(self, call):
        """`open`: what a buffer holds is written when it is full, or at the end."""
        faults = self

        class Raw(io.FileIO):
            def write(self, content):
                faults.before("write")
                return super().write(content)

        @functools.wraps(call)
        def faulty(file, mode="r", *arguments, **options):
            if not _writes(file, mode):
                return call(file, mode, *arguments, **options)
            assert not arguments and "+" not in mode, "nobody opens a file like this"
            faults.before("open")
            buffered = io.BufferedWriter(Raw(file, mode.replace("b", "")))
            return buffered if "b" in mode else io.TextIOWrapper(buffered, **options)

        return faulty

    def inject(self):
        linux = importlib.import_module("substrate.world.linux")
        for name in CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        for name in OURS:
            setattr(linux, name, self.around(name, getattr(linux, name)))
        os.open = self.around("open", os.open, _makes)
        os.write = self.around("write", os.write, _to_a_file)
        os.pwrite = self.around("pwrite", os.pwrite, _to_a_file)
        builtins.open = self.around_files(builtins.open)
        fcntl.ioctl = self.around("ioctl", fcntl.ioctl, lambda fd, number, *_: number == _FICLONE)


def _makes(path, flags, *_, **__):
    return bool(flags & (os.O_CREAT | os.O_TRUNC))


def _to_a_file(fd, *_):
    return fd > 2 and stat.S_ISREG(os.fstat(fd).st_mode)


def _writes(file, mode="r", *_, **__):
    return bool(set(mode) & set("wax+")) and not isinstance(file, int)


def load_everything():
    import substrate

    for found in pkgutil.walk_packages(substrate.__path__, "substrate."):
        # shim.building is what a build of the package imports, with setuptools
        if not found.name.endswith(("import_bundle", "__main__", "shim.building")):
            importlib.import_module(found.name)


def run(job):
    """In the child: the command line, then the end of the process."""
    from substrate.cli.main import leave, main
    from substrate.telemetry.verifier import main as verify

    for fd, name in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(job["out"], name), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        os.dup2(file, fd)
        os.close(file)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(job["in"])
    if "verify" in job:
        leave(max(verify([path]) for path in job["verify"]))
    sys.argv = ["substrate", *job["words"]]
    faults = Faults(job)
    real_open, real_write = os.open, os.write
    if job["fault"] is not None or job.get("count"):
        faults.inject()
    status = main()
    faults.pid = 0
    path = os.path.join(job["out"], "calls")
    fd = real_open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    real_write(fd, json.dumps(faults.calls).encode())
    leave(status)


def main():
    load_everything()
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                run(job)
            except BaseException:  # noqa: BLE001 - the edge of the process
                traceback.print_exc()
            finally:
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps({"status": status}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
