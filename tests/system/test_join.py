"""Commands that join a session whose supervisor stays: real worlds, as root and as a user."""

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from tests.session.join_client import Client, call_memfd, encode, run
from tests.system import traces_left

HELPER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "session", "join_client.py")


class Live:
    """A session that was started by a caller, and clients of it, who are that caller."""

    def __init__(self, caller, *flags):
        self.caller = caller
        done = caller.substrate("world", "start", "--fresh", *flags)
        assert done.returncode == 0, done.stderr
        self.session = caller.sessions()[-1]
        self.status = self.verb("status")
        self.pid = self.status["pid"]

    def client(self):
        return Client(self.session)

    def verb(self, name, **more):
        kind, fields = self.as_caller(lambda: Client(self.session).verb(name, **more))
        return json.loads(fields[0]) if kind == b"J" else fields

    def as_caller(self, act):
        """What connects is the caller: SO_PEERCRED takes the ids of the moment (unix(7))."""
        if self.caller.uid == os.geteuid():
            return act()
        os.setegid(self.caller.gid)
        os.seteuid(self.caller.uid)
        try:
            return act()
        finally:
            os.seteuid(0)
            os.setegid(0)

    def run(self, *words, **more):
        more.setdefault("cwd", self.caller.work)
        more.setdefault("environ", {b"PATH": b"/usr/bin:/bin", b"HOME": b"/"})
        return run(self.session, *words, **more)

    def sh(self, text, **more):
        return self.run("/bin/sh", "-c", text, **more)

    def end(self):
        return self.caller.substrate("world", "stop", self.status["world"])

    def lines(self, *types):
        with open(self.session / "trace.jsonl", "rb") as file:
            found = [json.loads(line) for line in file if line.endswith(b"\n")]
        return [line for line in found if not types or line["event_type"] in types]


@pytest.fixture
def live(idmap):
    caller = idmap
    caller.forget()
    found = Live(caller)
    yield found
    if os.path.exists(f"/proc/{found.pid}"):
        found.end()
    left = traces_left.gone(lambda: traces_left.groups_of(found.pid))
    assert not left


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_command_is_run_as_by_a_call_of_its_own(live):
    done = live.sh("cat; echo more >&2; echo x > made; exit 3", stdin=b"given")
    assert (done.kind, done.status, done.out, done.err) == (b"E", 3, b"given", b"more\n")
    assert done.outcome["changes"]["added"] == 1
    assert done.outcome["layer"] == 1
    assert live.sh("cat made").out == b"x\n"
    live.end()
    live.caller.verify()
    assert len(live.lines("session_start")) == 1
    assert [line["body"]["exit"] for line in live.lines("command_end")] == [3, 0]
    (diff,) = live.lines("fs_diff")  # of a layer of its own, which is the command's
    assert diff["span_id"] == live.lines("command_start")[0]["span_id"]
    assert "soft" not in diff["body"]


def test_a_setting_that_would_not_hold_is_refused(live):
    for name, text in ((b"SUBSTRATE_POLICY", b"/x.toml"), (b"SUBSTRATE_HIDE", b"/etc/hostname")):
        refused = live.sh("echo ran", environ={b"PATH": b"/usr/bin:/bin", name: text})
        assert (refused.kind, refused.status, refused.out) == (b"F", 125, b"")
        assert name in refused.fields[1]
    (live.caller.work / "own.toml").write_text('[net]\nmode = "none"\n')
    refused = live.caller.substrate("--config", "own.toml", "-c", "echo ran")
    assert (refused.returncode, refused.stdout) == (125, b"")
    late = live.caller.substrate(
        "-c", "sleep 60", env={**live.caller.environ, "SUBSTRATE_TIMEOUT": "1"}
    )
    assert late.returncode == 124


def test_what_wants_a_world_of_its_own_is_denied_on_the_record(idmap):
    idmap.forget()
    policy = idmap.work / "own.toml"
    policy.write_text('[[command]]\nmatch = ["sleep", "**"]\naction = "isolate"\nreason = "slow"\n')
    live = Live(idmap, "--policy", str(policy))
    done = live.run("/bin/sleep", "1")
    assert (done.kind, done.status) == (b"D", 126), done.fields
    assert b"--fresh" in done.fields[1]
    live.end()
    (end,) = live.lines("command_end")
    assert end["body"]["ended_by"] == "denied"
    idmap.verify()


def test_it_keeps_no_descriptor_of_its_caller(idmap):
    idmap.forget()
    done = idmap.call("/bin/sh", "-c", 'exec 9> held; exec "$0" world start --fresh', idmap.command)
    assert done.returncode == 0, done.stderr
    live = Live.__new__(Live)
    live.caller, live.session = idmap, idmap.sessions()[-1]
    live.status = live.verb("status")
    there = f"/proc/{live.status['pid']}/fd"
    held = [os.readlink(f"{there}/{fd}") for fd in os.listdir(there)]
    live.end()
    assert str(idmap.work / "held") not in held


def test_how_it_ends_is_told(live):
    assert live.sh("kill -TERM $$").outcome["signal"] == signal.SIGTERM
    assert live.run("/no/such/file").status == 127
    assert live.sh("sleep 60", timeout=0.3).status == 124
    refused = live.run("/bin/true", cwd="/no/such/directory")
    assert refused.status == 125


def test_commands_at_once_share_a_layer_and_each_has_its_own_changes(live):
    done = {}

    def begin(name):
        text = f"echo {name} > {name}; echo {name} >> both; : > in-{name}; while [ ! -e go ]; do sleep 0.02; done"
        done[name] = live.sh(text)

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    until(lambda: len(live.verb("status")["commands"]) == 3)
    seen = live.sh(
        "while [ ! -e in-one -o ! -e in-two -o ! -e in-three ]; do sleep 0.02; done; ls; : > go"
    )
    for thread in threads:
        thread.join()
    assert set(seen.out.split()) == {
        b"both",
        b"one",
        b"two",
        b"three",
        b"in-one",
        b"in-two",
        b"in-three",
    }
    for name in ("one", "two", "three"):
        assert (done[name].kind, done[name].status) == (b"E", 0)
        assert done[name].outcome["changes"]["added"] == 2  # not what all wrote
    until(lambda: not live.verb("status")["lives"])
    live.end()
    live.caller.verify()
    diffs = live.lines("fs_diff")
    whole = [line for line in diffs if not line["body"].get("soft")]
    assert len(whole) == 1
    assert len(whole[0]["body"]["shared_with"]) == 4
    softs = [line for line in diffs if line["body"].get("soft")]
    assert len(softs) == 4
    assert all(line["body"]["layer"] == whole[0]["body"]["layer"] for line in softs)
    refused = [line["body"]["refused_count"] for line in softs if "refused_count" in line["body"]]
    assert refused == [1, 1, 1]


def test_what_is_left_in_the_background_goes_on_and_others_join_it(live):
    began = time.monotonic()
    first = live.sh(
        "(while [ ! -e stop ]; do sleep 0.02; done; echo late > late) >/dev/null 2>&1 & echo begun"
    )
    assert (first.status, first.out) == (0, b"begun\n")
    assert time.monotonic() - began < 20
    status = live.verb("status")
    assert (status["lives"], status["left"]) == (True, 1)
    assert live.sh(": > stop").status == 0
    until(lambda: not live.verb("status")["lives"])
    assert live.sh("cat late").out == b"late\n"
    live.end()
    live.caller.verify()


def test_a_stream_that_the_background_holds_goes_on_to_its_reader(live):
    client = live.client()
    out, put = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    client.execute(
        *("/bin/sh", "-c", "(while [ ! -e stop ]; do sleep 0.02; done; echo last) & echo first"),
        cwd=live.caller.work,
        fds=(null, put, null),
    )
    os.close(put)
    kind, fields, _ = client.answer()
    assert (kind, fields[0]) == (b"E", b"0")
    assert os.read(out, 100) == b"first\n"
    live.sh(": > stop")
    assert os.read(out, 100) == b"last\n"
    assert os.read(out, 100) == b""
    os.close(out)
    os.close(null)


def test_signals_and_stops_reach_the_command(live):
    client = live.client()
    out, put = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    client.execute(
        *(
            "/bin/sh",
            "-c",
            "trap 'echo caught; exit 7' TERM; echo on; while :; do sleep 0.02; done",
        ),
        cwd=live.caller.work,
        fds=(null, put, put),
    )
    os.close(put)
    assert client.receive()[0] == b"A"
    assert os.read(out, 100) == b"on\n"
    client.send(b"K", int(signal.SIGTSTP))
    kind, fields = client.receive()
    assert kind == b"S"
    client.send(b"C")
    client.send(b"K", int(signal.SIGTERM))
    kind, fields, _ = client.answer()
    assert (kind, fields[0]) == (b"E", b"7")
    # its group has it, as from a shell that ends a job: a part of it may say so
    assert os.read(out, 100).endswith(b"caught\n")
    os.close(out)
    os.close(null)


def test_a_client_that_goes_ends_its_command_and_no_other(live):
    other = {}
    thread = threading.Thread(
        target=lambda: other.update(done=live.sh("while [ ! -e go ]; do sleep 0.02; done; echo on"))
    )
    thread.start()
    until(lambda: len(live.verb("status")["commands"]) == 1)
    client = live.client()
    null = os.open("/dev/null", os.O_RDWR)
    client.execute("/bin/sleep", "1000", cwd=live.caller.work, fds=(null, null, null))
    assert client.receive()[0] == b"A"
    client.close()
    os.close(null)
    until(lambda: len(live.verb("status")["commands"]) == 1)
    live.sh(": > go")
    thread.join()
    assert other["done"].out == b"on\n"
    ends = [line["body"]["ended_by"] for line in live.lines("command_end")]
    assert sorted(ends) == ["client", "exit", "exit"]


def test_a_reader_that_does_not_read_holds_up_nobody_else(live):
    client = live.client()
    out, put = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    client.execute("/bin/sh", "-c", "yes", cwd=live.caller.work, fds=(null, put, null))
    assert client.receive()[0] == b"A"
    # somebody else fills it between the supervisor's look and its write
    os.set_blocking(put, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(put, b"x" * 4096)
    os.set_blocking(put, True)
    for _ in range(5):
        assert live.sh("echo on").out == b"on\n"
    for fd in (out, put, null):
        os.close(fd)
    client.close()
    until(lambda: not live.verb("status")["commands"])


def test_sockets_are_streams_too(live):
    ours, theirs = socket.socketpair()
    client = live.client()
    fd = theirs.fileno()
    client.execute("/bin/cat", cwd=live.caller.work, fds=(fd, fd, fd))
    theirs.close()
    assert client.receive()[0] == b"A"
    ours.sendall(b"there and back")
    assert ours.recv(100) == b"there and back"
    ours.shutdown(socket.SHUT_WR)
    kind, fields, _ = client.answer()
    ours.close()
    assert (kind, fields[0]) == (b"E", b"0")


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"X",
        b"X\xff\xff\xff\xff",
        encode(b"X", "2", "command", "", ""),
        encode(b"X", "1", "dance", "", ""),
        encode(b"X", "1", "command", "spn_1", ""),
        encode(b"X", "1", "command", "", '{"net":"host"}'),
        encode(b"X", "1", "command", "", "[" * 8000),
        encode(b"V", "apply", "{}"),
        encode(b"V"),
        encode(b"K", "9" * 6000),
        encode(b"Q", "x"),
        b"X" * 60000,
    ],
)
def test_what_is_not_the_protocol_is_refused(live, packet):
    client = live.client()
    client.socket.send(packet)
    kind, _, _ = client.answer()
    assert kind in (b"F", b"")
    client.close()
    assert live.sh("echo on").out == b"on\n"


def test_a_call_that_could_still_be_changed_is_refused(live):
    null = os.open("/dev/null", os.O_RDWR)
    plain = os.open("/etc/hostname", os.O_RDONLY)
    open_one = call_memfd([b"/bin/true"], b"/", {}, seals=0)
    for memory in (open_one, plain):
        client = live.client()
        client.send(b"X", "1", "command", "", "{}", fds=(memory, null, null, null))
        kind, fields, _ = client.answer()
        assert kind == b"F"
        assert b"memfd" in fields[1]
    good = call_memfd([b"/bin/true"], b"/", {})
    client = live.client()
    client.send(b"X", "1", "command", "", "{}", fds=(good, null))
    kind, fields, _ = client.answer()
    assert (kind, b"one fd for each" in fields[1]) == (b"F", True)
    for fd in (null, plain, open_one, good):
        os.close(fd)


def test_more_clients_than_there_is_room_for_are_refused_and_silent_ones_go(live):
    silent = [live.client() for _ in range(64)]
    client = live.client()
    kind, _, _ = client.answer()
    assert kind == b"F"
    for each in silent:
        each.close()
    until(lambda: live.sh("echo on").kind == b"E")


def test_many_at_once(live):
    done = {}
    threads = [
        threading.Thread(
            target=lambda n=n: done.update({n: live.sh(f"echo {n} | cat > f{n}; cat f{n}")})
        )
        for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(50):
        assert (done[n].kind, done[n].status, done[n].out) == (b"E", 0, b"%d\n" % n), done[n].fields
    live.end()
    live.caller.verify()


def test_a_supervisor_that_is_killed_ends_everything_and_the_trace_recovers(live):
    clients, null = [], os.open("/dev/null", os.O_RDWR)
    for _ in range(20):
        client = live.client()
        client.execute("/bin/sleep", "1000", cwd=live.caller.work, fds=(null, null, null))
        clients.append(client)
    for client in clients:
        assert client.receive()[0] == b"A"
    pids = [each["pid"] for each in live.verb("status")["commands"]]
    os.kill(live.pid, signal.SIGKILL)
    for client in clients:
        kind, _, _ = client.answer()
        assert kind == b""  # the client says so, and 125
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    os.close(null)
    assert live.caller.substrate("-c", "echo next").stdout == b"next\n"
    live.caller.verify()


def test_a_second_start_says_that_the_first_one_lives(live):
    done = live.caller.substrate("world", "start")
    assert done.returncode == 3
    assert b"is in use" in done.stderr and b"`substrate -c` joins it" in done.stderr


def test_a_supervisor_that_is_killed_before_a_command_is_in_nobodys_way(live):
    os.kill(live.pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{live.pid}"))
    done = live.caller.substrate("-c", "echo hi")
    assert (done.returncode, done.stdout) == (0, b"hi\n"), done.stderr
    live.caller.verify()
    live.caller.substrate("world", "gc")
    assert not live.session.exists()


def test_a_holder_that_is_killed_ends_its_commands_and_not_the_session(live):
    client = live.client()
    null = os.open("/dev/null", os.O_RDWR)
    client.execute("/bin/sleep", "1000", cwd=live.caller.work, fds=(null, null, null))
    assert client.receive()[0] == b"A"
    (command,) = live.verb("status")["commands"]
    with open(f"/proc/{command['pid']}/stat", "rb") as file:
        holder = int(file.read().rpartition(b")")[2].split()[1])
    os.kill(holder, signal.SIGKILL)
    kind, fields, _ = client.answer()
    assert (kind, fields[0]) == (b"E", b"125")
    os.close(null)
    assert live.sh("echo on").out == b"on\n"
    live.end()
    live.caller.verify()


def test_without_its_zygote_a_session_ends_and_the_next_command_runs(live):
    assert live.sh("echo x > made").status == 0
    children = f"/proc/{live.pid}/task/{live.pid}/children"
    with open(children) as file:
        (zygote,) = (int(word) for word in file.read().split())
    os.kill(zygote, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{live.pid}"))
    done = live.caller.substrate("-c", "cat made")
    assert (done.returncode, done.stdout) == (0, b"x\n"), done.stderr
    live.caller.verify()


def test_one_of_the_world_may_not_come_to_control(live):
    """By /proc of a process outside, and with a descriptor of the session's directory that it was given."""
    text = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect('/proc/self/fd/0/control')\n"
        "print(s.recv(1000))\n"
    )
    # without a world there is nothing that hides it: the peer is looked at
    caller = live.caller
    other = Live(caller, "--no-world")
    fd = os.open(other.session, os.O_PATH | os.O_DIRECTORY)
    program = f'cd {other.session} && exec {sys.executable} -c "$TEXT" '
    done = other.sh(
        program.replace("/proc/self/fd/0/control", "control"),
        environ={b"PATH": b"/usr/bin:/bin", b"TEXT": text.replace("/proc/self/fd/0/", "").encode()},
    )
    os.close(fd)
    assert b"one of the session's own world" in done.out, (done.out, done.err)
    decisions = other.lines("policy_decision")
    assert [d["body"]["subject"] for d in decisions] == ["control"]
    other.end()


def test_idle_it_sleeps_and_is_small(live):
    live.sh("true")

    def switches():
        with open(f"/proc/{live.pid}/status") as file:
            return [line for line in file if "ctxt_switches" in line]

    time.sleep(0.3)
    before = switches()
    time.sleep(1.5)
    assert switches() == before
    with open(f"/proc/{live.pid}/status") as file:
        (size,) = (int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    assert size < 60_000


def test_ls_shows_that_it_lives_and_end_ends_it(live):
    live.sh("true")
    (entry,) = json.loads(live.caller.substrate("session", "ls", "--format", "json").stdout)[
        "sessions"
    ]
    assert entry["live"]
    assert live.caller.substrate("session", "end").returncode == 0
    assert not os.path.exists(live.session / "control")
    assert live.caller.substrate("session", "end").returncode == 1


def test_a_user_without_rights(user):
    """Rootless worlds, by the same."""
    user.forget()
    done = user.substrate("world", "start", "--fresh")
    assert done.returncode == 0, done.stderr
    text = (
        "import sys; sys.path.insert(0, sys.argv[1]); from join_client import run; import threading\n"
        "d = {}\n"
        "def go(n): d[n] = run(sys.argv[2], '/bin/sh', '-c', f'echo {n} > f{n}; cat f{n}', cwd=sys.argv[3])\n"
        "ts = [threading.Thread(target=go, args=(n,)) for n in range(4)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "print([(d[n].kind, d[n].status, d[n].out) for n in range(4)])\n"
    )
    copied = user.base / "client"
    copied.mkdir(exist_ok=True)
    copied.chmod(0o755)
    shutil.copy(HELPER, copied)
    found = subprocess.run(
        ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "/usr/bin/python3", "-c"]
        + [text, copied, user.sessions()[-1], user.work],
        capture_output=True, cwd=user.work, env=user.environ,
    )  # fmt: skip
    assert found.stdout.decode().strip() == str([(b"E", 0, b"%d\n" % n) for n in range(4)]), (
        found.stderr
    )
    assert user.substrate("world", "stop").returncode == 0
    user.verify()


def test_a_world_without_room_for_another_process_fails_that_command_alone(idmap):
    idmap.forget()
    live = Live(idmap, "--limit", "pids=24")
    first = {}
    text = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 100 & done 2>/dev/null; : > full; while [ ! -e go ]; do :; done; kill $(jobs -p); echo on"
    thread = threading.Thread(target=lambda: first.update(done=live.sh(text)))
    thread.start()
    until(lambda: len(live.verb("status")["commands"]) == 1)
    failed = [live.sh("echo more") for _ in range(3)]
    assert {done.kind for done in failed} <= {b"E", b"F"}
    assert live.verb("status")["lives"]
    os.kill(live.pid, signal.SIGTERM)
    thread.join()
    until(lambda: not os.path.exists(f"/proc/{live.pid}"))
    idmap.verify()


def test_a_supervisor_without_descriptors_goes_on_when_there_are_some(idmap):
    idmap.forget()
    done = idmap.call("/bin/sh", "-c", 'ulimit -n 60; exec "$0" world start --fresh', idmap.command)
    assert done.returncode == 0, done.stderr
    live = Live.__new__(Live)
    live.caller, live.session = idmap, idmap.sessions()[-1]
    live.status = live.verb("status")
    live.pid = live.status["pid"]
    kinds = []
    threads = [
        threading.Thread(target=lambda: kinds.append(live.sh("sleep 0.5; echo on").kind))
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kinds) == 30
    assert set(kinds) <= {b"E", b"F"}

    def is_quiet():
        status = live.verb("status")  # which it may still be too poor to tell
        return isinstance(status, dict) and not status["lives"]

    until(is_quiet)
    assert live.sh("echo on").out == b"on\n"
    live.end()
    idmap.verify()


def test_run_serves_the_sessions_doors_and_ends_what_came(idmap):
    idmap.forget()
    process = idmap.start(
        *("run", "--fresh", "--"),
        *(
            "/bin/sh",
            "-c",
            "echo ready; while [ ! -e go ]; do sleep 0.02; done; echo agent > agent",
        ),
    )
    assert process.stdout.readline() == b"ready\n"
    live = Live.__new__(Live)
    live.caller, live.session = idmap, idmap.sessions()[-1]
    live.pid = process.pid
    assert live.verb("status")["shared"] is False
    assert live.sh("echo joined > joined; cat joined").out == b"joined\n"
    held = live.client()
    null = os.open("/dev/null", os.O_RDWR)
    held.execute("/bin/sleep", "1000", cwd=idmap.work, fds=(null, null, null))
    assert held.receive()[0] == b"A"
    os.close(null)
    began = time.monotonic()
    live.sh(": > go")
    kind, fields, _ = held.answer()
    assert (kind, fields[0]) == (b"E", b"143")  # waited for as what is left in the background is
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    assert time.monotonic() - began < 30
    idmap.verify()
    ends = {line["span_id"]: line["body"]["fs_diff"] for line in live.lines("command_end")}
    run_span = live.lines("command_start")[0]["span_id"]
    assert ends[run_span]["added"] == 3  # joined, go, agent: the layer is the run's
    assert [d["added"] for s, d in ends.items() if d and s != run_span] == [1, 1]


def test_whose_a_connection_is_is_told_of_commands_at_once(live):
    text = (
        "import socket, sys, os, time\n"
        "s = socket.socket()\n"
        "try: s.connect(('192.0.2.1', int(sys.argv[1])))\n"
        "except OSError: pass\n"
        "open('tried-' + sys.argv[1], 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.02)\n"
    )
    done = {}

    def begin(port):
        done[port] = live.run(sys.executable, "-c", text, str(port))

    threads = [threading.Thread(target=begin, args=(port,)) for port in (4001, 4002)]
    for thread in threads:
        thread.start()
    until(lambda: len(live.verb("status")["commands"]) == 2)
    live.sh("while [ ! -e tried-4001 -o ! -e tried-4002 ]; do sleep 0.02; done; : > go")
    for thread in threads:
        thread.join()
    live.end()
    live.caller.verify()
    ends = {line["span_id"]: line["body"]["scopes_used"] for line in live.lines("command_end")}
    for start in live.lines("command_start"):
        argv = start["body"]["display"]["argv"]
        scopes = [scope["scope"] for scope in ends[start["span_id"]]]
        if argv[-1].isdigit():
            assert scopes == [f"tcp://192.0.2.1:{argv[-1]}"]
        else:
            assert scopes == []
    spans = {line["span_id"]: line["parent_span_id"] for line in live.lines("process_start")}
    for line in live.lines("net_connect"):
        assert spans[line["span_id"]] in ends


def test_a_terminal_of_a_client_is_one_of_the_worlds_own(live):
    text = (
        "import sys; sys.path.insert(0, sys.argv[1]); from join_client import Client\n"
        "c = Client(sys.argv[2])\n"
        "c.execute('/bin/sh', '-c', 'test -t 0 && stty size; echo ready; read x; echo got $x; exit 6',"
        " cwd=sys.argv[3], fds=(0, 1, 2), terminal=[90, 30])\n"
        "assert c.receive()[1][2] == b'{\"terminal\":true}'\n"
        "sys.exit(int(c.answer()[1][0]))\n"
    )
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    words = [sys.executable, "-c", text, os.path.dirname(HELPER), live.session, live.caller.work]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(ours, 1000)
    assert b"30 90" in shown
    os.write(ours, b"typed\n")
    while b"got typed" not in shown:
        shown += os.read(ours, 1000)
    assert process.wait(60) == 6
    os.close(ours)
    live.end()
    live.caller.verify()
    (start,) = live.lines("command_start")
    assert start["body"]["terminal"] == {"cols": 90, "rows": 30}
