"""What others can put in the way: trees, sockets, variables, answers. Nothing of it runs a command, gets
a descriptor of the caller, or brings a shim down."""

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from tests.shim.supervisor import SESSION, SPAN, Supervisor, encode, start_ticks

AS_ROOT = os.geteuid() == 0
#: a command, and a shell, whose terminal would be sent
CALLS = [("tool",), ("bash", "-c", "echo ran")]


def refused(place, words=("tool",), **options):
    done = place.call(*words, **options)
    assert (done.returncode, done.stdout) == (125, b""), done
    assert done.stderr.startswith(b"substrate: "), done.stderr
    assert b"\nhint: " in done.stderr
    return done.stderr.decode()


@pytest.fixture(params=CALLS, ids=lambda words: words[0])
def words(request):
    return request.param


def test_what_a_tree_holds_is_not_looked_at(place, tmp_path):
    """A cloned repository with a .substrate, sockets and a session of its own in it."""
    (place.work / ".git").mkdir()
    planted = place.work / ".substrate"
    planted.mkdir()
    stranger = Supervisor(planted)
    try:
        for name in ("sessions", "current", "worlds"):
            (place.work / name).symlink_to(stranger.home / name)
        stranger.make_current(place.work)
        environ = {k: v for k, v in place.environ.items() if not k.startswith("SUBSTRATE_")}
        refused(place, env=environ)
        assert stranger.connections == 0
    finally:
        stranger.close()


@pytest.mark.parametrize(
    "value",
    [
        "../../work",
        "/etc",
        "sessions/x",
        "w7/../../x",
        "w",
        "w-1",
        "w99999999999999999999",
        "ses_01920000-0000-7000-8000-0123456789aB",
        "ses_01920000-0000-7000-8000-0123456789ab/..",
        "ses_" + "../" * 12,
        "\x1b[2J" * 30,
        "x" * 100_000,
        "\udcff",
    ],
)
def test_a_session_is_never_a_path(place, supervisor, value):
    place.extra["SUBSTRATE_SESSION"] = value
    said = refused(place)
    assert "\x1b" not in said
    assert supervisor.connections == 0


@pytest.mark.parametrize("value", ["state", "./state", "~", "x" * 100_000, "/" + "x" * 4095])
def test_a_home_is_an_absolute_path(place, supervisor, value):
    place.extra["SUBSTRATE_HOME"] = value
    refused(place, cwd=place.base)
    assert supervisor.connections == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o701])
def test_a_home_that_others_enter_is_refused(place, supervisor, words, mode):
    supervisor.home.chmod(mode)
    assert "expected" in refused(place, words)
    assert supervisor.connections == 0


@pytest.mark.parametrize("part", ["sessions", f"sessions/{SESSION}"])
def test_directories_on_the_way_belong_to_us_alone(place, supervisor, words, part):
    (supervisor.home / part).chmod(0o777)
    refused(place, words)
    assert supervisor.connections == 0


def test_a_session_is_no_symlink(place, supervisor, words):
    elsewhere = place.base / "elsewhere"
    supervisor.session.rename(elsewhere)
    supervisor.session.symlink_to(elsewhere)
    refused(place, words)
    assert supervisor.connections == 0


def test_a_link_of_ours_leads_to_a_session_alone(place, supervisor):
    link = supervisor.home / "worlds" / "w8"
    for target in ("/tmp", "../../work", f"../sessions/{SESSION}/x", "x" * 300):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        place.extra["SUBSTRATE_SESSION"] = "w8"
        refused(place)
    assert supervisor.connections == 0


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o777])
def test_a_socket_that_others_reach_is_refused(place, supervisor, words, mode):
    supervisor.path.chmod(mode)
    refused(place, words)
    assert supervisor.connections == 0


def test_a_symlink_is_no_socket(place, supervisor, words):
    elsewhere = supervisor.session / "other"
    supervisor.path.rename(elsewhere)
    supervisor.path.symlink_to(elsewhere)
    refused(place, words)
    supervisor.path.unlink()
    supervisor.path.write_text("no socket")
    supervisor.path.chmod(0o600)
    refused(place, words)
    assert supervisor.connections == 0


@pytest.mark.skipif(not AS_ROOT, reason="only root can make a socket of somebody else")
@pytest.mark.parametrize("part", ["control", "lock", "."])
def test_what_belongs_to_somebody_else_is_refused(place, supervisor, words, part):
    os.chown(supervisor.session / part, 12345, 12345)
    refused(place, words)
    assert supervisor.asked == []


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_a_server_of_somebody_else_is_refused(place, supervisor, words):
    """It listens on a socket file that looks right."""
    supervisor.path.unlink()
    code = """
import os, socket, sys, time
at = os.open(sys.argv[1], os.O_PATH)
os.setresuid(0, 12345, 0)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setresuid(0, 0, 0)
s.bind(f"/proc/self/fd/{at}/control")
os.chmod(f"/proc/self/fd/{at}/control", 0o600)
os.setresuid(12345, 12345, 12345)
s.listen(1)
print("ready", flush=True)
s.accept()[0].recv(1)
sys.stdin.read()
"""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", code, supervisor.session],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        supervisor.write_lock(process.pid, start_ticks(process.pid))
        assert "uid 12345" in refused(place, words)
        process.kill()


@pytest.mark.parametrize("wrong", ["pid", "start", "boot", "empty", "text", "missing", "huge"])
def test_the_server_has_to_hold_the_lock(place, supervisor, words, wrong):
    ticks = start_ticks(os.getpid())
    lock = supervisor.session / "lock"
    if wrong == "pid":
        supervisor.write_lock(1, start_ticks(1))
    elif wrong == "start":
        supervisor.write_lock(os.getpid(), ticks + 1)
    elif wrong == "boot":
        supervisor.write_lock(os.getpid(), ticks, "0" * 8)
    elif wrong == "missing":
        lock.unlink()
    else:
        lock.write_text({"empty": "", "text": "1 2", "huge": "9" * 10_000}[wrong])
    assert "does not hold the session's lock" in refused(place, words)
    assert supervisor.asked == []


def test_a_lock_that_others_write_says_nothing(place, supervisor, words):
    (supervisor.session / "lock").chmod(0o666)
    refused(place, words)
    assert supervisor.asked == []


# --- answers


def field(length, content=b""):
    return struct.pack("=I", length) + content


TORN = [
    b"A",
    b"A" + field(0),
    b"A" + field(40, b"x" * 40),
    b"A" + field(40, b"spn_01920000-0000-4000-8000-0123456789ab"),
    b"A" + field(41, SPAN.encode() + b"\n"),
    b"A" + field(0xFFFFFFFF, b"x"),
    b"A" + field(5, b"x"),
    b"A\0\0",
    b"A" + field(0) * 9,
    b"Z",
    b"\0" * 100,
    b"S" + field(2, b"19"),
    b"E" + field(1, b"0") + field(2, b"{}"),
    b"J" + field(2, b"{}"),
]


@pytest.mark.parametrize("answer", TORN, ids=lambda answer: answer[:9].hex())
def test_an_answer_that_is_none_lets_nothing_run(place, supervisor, answer):
    supervisor.answers["tool"] = [answer]
    refused(place)


@pytest.mark.parametrize(
    "answer", [t for t in TORN if t[:1] not in b"AES"], ids=lambda a: a[:9].hex()
)
def test_a_shell_too_refuses_what_is_no_answer(place, supervisor, answer):
    supervisor.answers["bash"] = [supervisor.accepted, answer]
    refused(place, ("bash", "-c", "echo ran"))


@pytest.mark.parametrize(
    ("status", "wanted"), [(b"0", 126), (b"", 126), (b"-1", 126), (b"99999999999", 126), (b"3", 3)]
)
def test_a_denial_is_never_a_success(place, supervisor, status, wanted):
    supervisor.answers["tool"] = [encode(b"D", status, b"no")]
    assert place.call("tool").returncode == wanted


@pytest.mark.parametrize(
    "outcome",
    [
        b"",
        b"{",
        b'{"signal":99}',
        b'{"signal":-9}',
        b'{"signal":"9"}',
        b'{"x":{"signal":9}}',
        b'{"x":"\\"signal\\":9"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"\xff\xfe",
    ],
    ids=lambda outcome: outcome[:20].decode("latin-1"),
)
def test_an_outcome_that_is_none_leaves_the_status(place, supervisor, outcome):
    supervisor.answers["bash"] = [supervisor.accepted, encode(b"E", b"137", outcome)]
    assert place.call("bash", "-c", "echo").returncode == 137


def test_an_answer_larger_than_a_packet_is_refused(place, supervisor):
    supervisor.answers["tool"] = [b"T" + field(100_000, b"x" * 100_000)]
    refused(place)


def test_descriptors_in_an_answer_are_not_kept(place, supervisor, tmp_path):
    place.script("tool", "#!/bin/sh\nls /proc/self/fd | wc -l\n")
    before = place.call("tool").stdout
    supervisor.close()
    supervisor.path.unlink()

    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    at = os.open(supervisor.session, os.O_PATH)
    server.bind(f"/proc/self/fd/{at}/control")
    supervisor.path.chmod(0o600)
    server.listen(1)

    def serve() -> None:
        client, _ = server.accept()
        client.recv(65536)
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        socket.send_fds(client, [supervisor.accepted], fds)
        client.recv(1)
        client.close()
        for fd in fds:
            os.close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    assert place.call("tool").stdout == before
    thread.join()
    server.close()
    os.close(at)


# --- how it is started


@pytest.mark.parametrize("argv", [[], [""], ["-"], ["/"], ["x" * 5000]], ids=repr)
def test_any_argv_0_will_do(place, supervisor, argv):
    """A file's own name counts. No argv at all is what execve(2) was given by an attacker once."""
    place.script("tool", "#!/bin/sh\nexit 7\n")
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None)
argv = {[a.encode() for a in argv]!r}
words = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
env = {[f"{k}={v}".encode() for k, v in place.environ.items()]!r}
libc.execve({os.fsencode(place.shims / "tool")!r}, words, (ctypes.c_char_p * (len(env) + 1))(*env, None))
"""
    done = subprocess.run(
        ["/usr/bin/python3", "-W", "ignore", "-c", code], cwd=place.work, timeout=60
    )
    assert done.returncode == 7


def test_the_stub_itself_is_no_command(place, supervisor):
    assert "by the name of a command" in refused(place, (place.shims / ".stub",))


def test_a_deleted_directory_is_said(place, supervisor):
    gone = place.base / "gone"
    gone.mkdir()
    script = f"cd {gone}; rmdir {gone}; exec {place.shims}/tool"
    done = subprocess.run(
        ["/bin/sh", "-c", script], env=place.environ, capture_output=True, timeout=60
    )
    assert done.returncode == 125
    assert b"current directory" in done.stderr


def test_hostile_variables_are_handed_on_and_not_believed(place, supervisor):
    place.extra |= {
        "SUBSTRATE_SHIM_DEPTH": "9" * 5000,
        "SUBSTRATE_ORIGINAL_PATH": ":" * 5000,
        "SUBSTRATE_PARENT_SPAN": "\x1b" * 5000,
        "SUBSTRATE_BYPASS": "1" * 5000,
        "PATH": f"{place.shims}:{'x' * 5000}:::{place.bin}",
    }
    assert place.call("tool").returncode == 7
    assert supervisor.asked[0].parent == b""
    assert supervisor.asked[0].flags == {}


def test_more_than_4_mib_is_said(place, supervisor):
    """What the kernel takes at most is a quarter of the stack's limit (execve(2))."""
    import resource

    def more() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (64 << 20, resource.RLIM_INFINITY))

    words = ["x" * 120_000 for _ in range(38)]
    done = place.call("tool", *words, preexec_fn=more)
    assert done.returncode == 125
    assert b"4 MiB" in done.stderr


def test_two_megabytes_pass(place, supervisor):
    import resource

    def more() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (64 << 20, resource.RLIM_INFINITY))

    place.script("tool", '#!/bin/sh\necho "$#"\n')
    words = ["x" * 120_000 for _ in range(10)]
    place.extra |= {f"LARGE_{n}": "y" * 100_000 for n in range(10)}
    done = place.call("tool", *words, preexec_fn=more)
    assert done.stdout == b"10\n"


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a program to somebody else's rights")
def test_a_set_uid_shim_does_nothing(place, supervisor):
    if place.kind == "python":
        return  # the kernel gives scripts no such rights
    directory = Path(tempfile.mkdtemp(prefix="substrate-suid-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        shutil.copy(place.shims / ".stub", directory / "tool")
        (directory / "tool").chmod(0o4755)
        done = subprocess.run(
            [directory / "tool"],
            user=12345,
            env=place.environ,
            capture_output=True,
            cwd="/",
            timeout=60,
        )
        assert done.returncode == 125
        assert b"set-uid" in done.stderr
    finally:
        shutil.rmtree(directory)
