"""Programs whose doing is known, for the tests of capture: what they print must not depend on
whether, and with what, they are captured.

Each is a text for the system's Python, run in an empty directory. None prints what differs between
two runs (pids, times). Numbers of calls are x86_64's.
"""

_CALLS = """
import ctypes, errno, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    result = libc.syscall(*[ctypes.c_long(w) if type(w) is int else w for w in words])
    return result, errno.errorcode.get(ctypes.get_errno(), "") if result < 0 else ""
def install(nr, action, flags=0):
    program = b"".join(struct.pack("=HBBI", *line) for line in (
        (0x20, 0, 0, 0), (0x15, 0, 1, nr), (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)))
    kept = ctypes.create_string_buffer(program)
    given = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 4, ctypes.addressof(kept)))
    libc.prctl(38, 1, 0, 0, 0)
    return call(317, 1, flags, given)
MKDIR = 83
"""

PROGRAMS = {
    # seccomp(2): RET_ERRNO, and RET_TRACE where nobody traces
    "a filter of its own": _CALLS
    + """
print(install(39, 0x7FF00007)[0], call(39))
print(install(84, 0x00050000 | 13)[0], call(84, b"made"))
""",
    "not dumpable": _CALLS
    + """
print(libc.prctl(4, 0, 0, 0, 0), libc.prctl(3, 0, 0, 0, 0))
open("one", "w").write("x")
os.rename("one", "two")
print(os.listdir(), os.waitstatus_to_exitcode(os.system("/bin/true; exit 6")))
""",
    "ways to start a program": _CALLS
    + """
import subprocess, threading
def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(end(os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], {})))
print(subprocess.run(["/bin/sh", "-c", "kill -9 $$"]).returncode)
try:
    os.posix_spawn("/no/such/program", ["x"], {})
except OSError as error:
    print(error.errno)
arguments = ctypes.create_string_buffer(struct.pack("=11Q", 0, 0, 0, 0, 17, *[0] * 6))
pid, _ = call(435, arguments, 88)
if pid == 0:
    os._exit(7)
print(end(pid) if pid > 0 else 7)  # a world has no clone3
for flags in (17, 0x00800000 | 17):  # CLONE_UNTRACED
    pid, _ = call(56, flags, 0, 0, 0, 0)
    if pid == 0:
        os._exit(8)
    print(end(pid))
os.chmod(os.open("empty", os.O_CREAT | os.O_WRONLY), 0o755)
try:
    os.execv("empty", ["empty"])
except OSError as error:
    print(errno.errorcode[error.errno])
threading.Thread(target=os.execv, args=("/bin/echo", ["echo", "from a thread"])).start()
threading.Event().wait(60)
""",
    "signals": """
import os, signal, time
came = []
signal.signal(signal.SIGALRM, lambda *_: came.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
began = time.monotonic()
while (took := time.monotonic() - began) < 0.15 or (len(came) <= 20 and took < 20):
    os.close(os.open("/etc/passwd", os.O_RDONLY))
    os.close(os.open("written", os.O_WRONLY | os.O_CREAT))
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(came) > 20)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
print(signal.sigwait([signal.SIGUSR1]), signal.sigtimedwait([signal.SIGUSR2], 0.01))
""",
    "stops": """
import os, signal, time
def wait(pid):
    status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)[1]
    print(status)
for stop in (signal.SIGSTOP, signal.SIGTSTP):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.write(go, b"x")
        while True:
            os.close(os.open("/etc/passwd", os.O_RDONLY))
            os.close(os.open("written", os.O_WRONLY | os.O_CREAT))
    os.read(ready, 1)
    os.kill(pid, stop)
    wait(pid)
    time.sleep(0.02)
    print(os.waitpid(pid, os.WNOHANG)[0])
    os.kill(pid, signal.SIGCONT)
    wait(pid)
    os.kill(pid, signal.SIGTERM)
    wait(pid)
""",
    "blocking calls and signals": """
import os, signal, socket, threading, time
fifo = "fifo"
os.mkfifo(fifo)
signal.signal(signal.SIGALRM, lambda *_: print("came"))
signal.setitimer(signal.ITIMER_REAL, 0.05)
threading.Timer(0.15, lambda: open(fifo, "w").write("through")).start()
print(open(fifo).read())  # an open that waits, and is begun again
listener = socket.create_server(("127.0.0.1", 0))
signal.setitimer(signal.ITIMER_REAL, 0.05)
threading.Timer(0.15, lambda: socket.create_connection(listener.getsockname())).start()
listener.accept()
print("accepted")
""",
}

#: prints what a call of each kind that a world takes for an attempt to get out comes to
ESCAPES = (
    _CALLS
    + """
NOTHING = ctypes.create_string_buffer(128)
TRIED = {
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, 0), "umount2": (166, b"/proc", 2),
    "pivot_root": (155, b".", b"."), "open_tree": (428, -100, b"/", 1),
    "move_mount": (429, -1, b"", -1, b"", 4), "fsopen": (430, b"tmpfs", 0),
    "fsconfig": (431, -1, 0, 0, 0, 0), "fsmount": (432, -1, 0, 0), "fspick": (433, -100, b"/tmp", 0),
    "mount_setattr": (442, -100, b"/", 0, 0, 0), "setns": (308, -1, 0),
    "unshare": (272, 0x10000000), "clone": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "ptrace": (101, 0x4206, 1, 0, -1), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "process_vm_writev": (311, 1, 0, 0, 0, 0, 0), "pidfd_getfd": (438, -1, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0), "bpf": (321, -1, 0, 0), "perf_event_open": (298, 0, 0, -1, -1, 0),
    "userfaultfd": (323, 0), "open_by_handle_at": (304, -1, NOTHING, 0),
    "add_key": (248, 0, 0, 0, 0, -3), "request_key": (249, 0, 0, 0, 0), "keyctl": (250, 0, -3, 0),
    "init_module": (175, 0, 0, 0), "finit_module": (313, -1, b"", 0),
    "delete_module": (176, b"no_such_module", 0), "kexec_load": (246, 0, 0, 0, -1),
    "kexec_file_load": (320, -1, -1, 0, 0, 0), "io_uring_setup": (425, 1, NOTHING),
}
for name, words in TRIED.items():
    result, error = call(*words)
    if name == "clone" and result == 0:
        os._exit(0)
    print(name, result, error)
"""
)

#: argv: a seed, numbers of calls. Children make calls with whatever for arguments: names that are no
#: text, that are too long, that end at the end of a page, addresses and messages of all kinds
FUZZ = """
import ctypes, os, random, signal, socket, struct, sys
random.seed(int(sys.argv[1]))
numbers = [int(word) for word in sys.argv[2].split(",")]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
PAGE = libc.mmap(0, 8192, 3, 0x22, -1, 0)
libc.munmap(ctypes.c_void_p(PAGE + 4096), ctypes.c_size_t(4096))
os.mkdir("below")
os.chdir("below")
NAMES = [
    b"", b".", b"..", b"/", b"a", b"b/c", b"\\xff\\xfe", b"\\n\\x1b[2J", b"x" * 255, b"x" * 300,
    b"/" * 4095, b"a/" * 2047, b"../" * 9 + b"etc/passwd", b"/proc/self/fd/0", b"/proc/self/exe",
    b"/dev/null", b"/proc/self/root/etc",
]
QUESTION = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\x03\\xff\\n.\\x02co\\0\\0\\1\\0\\1"
kept = []
def place(content):
    kept.append(ctypes.create_string_buffer(content))
    return ctypes.addressof(kept[-1])
def at_edge(content):
    content = content[-4096:]
    ctypes.memmove(PAGE + 4096 - len(content), content, len(content))
    return PAGE + 4096 - len(content)
def address():
    return struct.pack("=H", random.choice([0, 1, 2, 10, 16, 17, 40, 9999])) + random.choice([
        b"", bytes(14), b"\\x00\\x35\\x7f\\x00\\x00\\x01" + bytes(8), b"\\0name\\xff\\n",
        b"./socket\\xff", b"\\x01\\xbb" + b"\\xff" * 26, b"\\xaa" * 126])
def message():
    name = address()
    vector = place(struct.pack("=QQ", place(QUESTION), len(QUESTION)))
    return place(struct.pack("=QIxxxxQQQQI", place(name), len(name), vector, 1, 0, 0, 0) + bytes(64))
def argument():
    return random.choice([
        lambda: 0, lambda: -1, lambda: -100, lambda: random.randrange(12),
        lambda: place(random.choice(NAMES) + b"\\0"), lambda: place(random.choice(NAMES) + b"\\0"),
        lambda: at_edge(random.choice(NAMES) + random.choice([b"\\0", b""])),
        lambda: random.choice([1, 8, 4096, 0x7FFFFFFFFFFF, -(1 << 47), 0xDEADBEEF, -(1 << 63)]),
        lambda: random.choice([0o100, 0o1101, 0o2000000, 0o10000000, 0o20200002, 0xFFFFFFFF]),
        lambda: place(address()), lambda: random.choice([2, 8, 16, 28, 110, 128, 129, 4096, 1 << 31]),
        message, lambda: place(QUESTION), lambda: random.getrandbits(64) - (1 << 63),
    ])()
sockets = [socket.socket(2, 2), socket.socket(1, 1), socket.socket(2, 1)]
for each in sockets:
    each.setblocking(False)
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3, 12):
    if fd not in (each.fileno() for each in sockets):
        os.dup2(null, fd)
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        signal.alarm(2)
        for fd in range(3):
            os.dup2(null, fd)
        for _ in range(6):
            number = random.choice(numbers)
            words = [argument() for _ in range(6)]
            if number == 56:
                words[0] = random.choice([17, 0x00800011, 0x10000011, 0x4011])
            result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(word) for word in words])
            if number in (56, 57, 58, 435) and result == 0:
                os._exit(0)
        os._exit(0)
    random.random()
    os.waitpid(pid, 0)
os.write(1, b"done\\n")
"""
