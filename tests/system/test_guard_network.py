"""The network of a world without namespaces, attacked and used; as root and as a user.

The scene is that of test_egress_attacks: an internet of our own, whose wire and servers say what came out.
"""

import json
import os
import signal
import textwrap
import time

import pytest

from tests.nethosts import plan
from tests.nethosts.fixtures import hosts, internet
from tests.system.egress_scene import PYTHON, TARGET, TARGET_PLACE, Scene, children, host_service
from tests.system.test_egress_attacks import listener, target

__all__ = ["hosts", "internet", "listener", "target"]

WILD = "*.wild.example.net"


@pytest.fixture
def scene(hosts, guarded):
    return Scene(hosts, guarded)


def _program(scene, text, *words):
    """Runs a program of these lines in a world, with TARGET allowed; what it prints, as JSON."""
    place = scene.caller.work / "program.py"
    place.write_text(textwrap.dedent(text))
    scene.caller.own(place)
    told = " ".join(words)
    return json.loads(scene.run(f"{PYTHON} -I -S program.py {told}", TARGET).stdout)


def test_nothing_leads_past_the_rules(scene, target):
    told = scene.attack("egress_reach.py", "reach", TARGET, rules=[TARGET, WILD])
    assert scene.hosts.packets() == []
    assert scene.hosts.names.queries() == []
    # questions by TCP are answered, in the world; an address that stands for no name is accepted, and refused
    done = {case for case, how in told.items() if how.startswith("done")} - {"another fake"}
    assert done == {case for case in told if case.startswith("question") and "by tcp" in case} | {
        case for case in done if case.startswith("tunnel")
    }
    assert {told[case] for case in done if case.startswith("question")} == {
        "done rcode 3 answers 0"
    }
    refused = {
        (body["ip"], body["port"])
        for body in scene.told("net_connect")
        if body["decision"] == "deny"
    }
    assert {(plan.SECRET[0], 80), (plan.METADATA[0], 80)} <= refused
    scene.caller.verify()


def test_there_are_no_other_sockets(scene):
    told = scene.attack("egress_reach.py", "sockets", rules=[TARGET])
    assert {case: how for case, how in told.items() if how.startswith("done")} == {}
    assert told["mptcp"] == "EPROTONOSUPPORT"


def test_an_address_that_is_changed_while_it_is_connected(scene, target):
    """Another thread writes another address all the time: it is read once, and that one is decided."""
    told = _program(
        scene,
        f"""
        import ctypes, json, os, socket, struct, sys, threading
        libc = ctypes.CDLL(None, use_errno=True)
        good = socket.getaddrinfo("{TARGET}", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        def address(host):
            return struct.pack("=H", socket.AF_INET) + struct.pack("!H", 80) + socket.inet_aton(host) + bytes(8)
        one, other = address(good), address("{plan.SECRET[0]}")
        place = ctypes.create_string_buffer(one, 16)
        over = False
        def swap():
            while not over:
                ctypes.memmove(place, other, 16)
                ctypes.memmove(place, one, 16)
        sys.setswitchinterval(1e-6)
        thread = threading.Thread(target=swap)
        thread.start()
        made = refused = 0
        for _ in range(1000):
            with socket.socket() as sock:
                if libc.connect(sock.fileno(), place, 16) == 0:
                    made += 1
                else:
                    refused += 1
        over = True
        thread.join()
        print(json.dumps([made, refused]))
        """,
    )
    made, refused = told
    assert made and refused, told
    # what was made led to the good one, or was reset by who decides; the other heard nothing
    assert {p.destination for p in scene.hosts.packets()} <= {TARGET_PLACE, plan.DNS[0]}
    scene.hosts.secret_untouched()
    denied = [b for b in scene.told("net_connect") if b["ip"] == plan.SECRET[0]]
    assert {b["decision"] for b in denied} == {"deny"}
    assert len(denied) == refused
    scene.caller.verify()


def test_descriptors_that_are_changed_while_they_are_connected(scene, target):
    """Another thread puts another socket under the number all the time."""
    told = _program(
        scene,
        f"""
        import json, os, socket, sys, threading
        good = socket.getaddrinfo("{TARGET}", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        pair = socket.socketpair()
        number = os.dup(pair[0].fileno())
        over = False
        def swap():
            while not over:
                with socket.socket() as other:
                    os.dup2(other.fileno(), number)
                os.dup2(pair[0].fileno(), number)
        thread = threading.Thread(target=swap)
        sys.setswitchinterval(1e-6)
        thread.start()
        found = {{}}
        for _ in range(300):
            for place in (good, ("{plan.SECRET[0]}", 80)):
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(number))
                how = sock.connect_ex(place)
                sock.close()
                found.setdefault(place[0], set()).add(how)
        over = True
        thread.join()
        print(json.dumps({{k: sorted(v) for k, v in found.items()}}))
        """,
    )
    assert 0 not in told[plan.SECRET[0]], told
    assert {p.destination for p in scene.hosts.packets()} <= {TARGET_PLACE, plan.DNS[0]}


def test_other_ways_to_connect(scene, target):
    """Fast open, sends with an address, rings, options that choose the way, UNIX sockets."""
    told = _program(
        scene,
        f"""
        import ctypes, json, os, socket, struct
        libc = ctypes.CDLL(None, use_errno=True)
        secret = ("{plan.SECRET[0]}", 80)
        found = {{}}
        def note(name, act):
            try:
                found[name] = "done " + str(act())
            except OSError as error:
                found[name] = os.strerror(error.errno) if error.errno else str(error)
        def call(number, *words):
            if libc.syscall(number, *words) < 0:
                raise OSError(ctypes.get_errno(), "")
        def tcp():
            return socket.socket()
        note("fast open", lambda: tcp().sendto(b"x", 0x20000000, secret))
        note("fast open by sendmsg", lambda: tcp().sendmsg([b"x"], [], 0x20000000, secret))
        note("send with an address", lambda: tcp().sendto(b"x", secret))
        def deferred():
            sock = tcp()
            sock.setsockopt(socket.IPPROTO_TCP, 30, 1)
            sock.connect(secret)
            return sock.send(b"x")
        note("deferred", deferred)
        note("ring", lambda: call(425, 8, ctypes.create_string_buffer(120)))
        def routed():
            tcp().setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS,
                             bytes([131, 7, 4]) + socket.inet_aton(secret[0]) + bytes(1))
        note("source route", routed)
        note("shared port", lambda: tcp().setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
        note("unix", lambda: socket.socket(socket.AF_UNIX).connect("/run/x"))
        note("unix datagrams", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        note("bind elsewhere", lambda: tcp().bind(("{plan.CLIENT}", 0)))
        note("low port", lambda: tcp().bind(("127.0.0.1", 80)))
        def anywhere():
            sock = tcp()
            sock.listen()
            return sock.getsockname()[0]
        note("listen unbound", anywhere)
        def any_bound():
            sock = tcp()
            sock.bind(("0.0.0.0", 0))
            return sock.getsockname()[0]
        note("bind to any", any_bound)
        def six():
            sock = socket.socket(socket.AF_INET6)
            sock.listen()
            return sock.getsockname()[0]
        note("listen unbound v6", six)
        def own():
            server = socket.create_server(("127.0.0.1", 0))
            with socket.create_connection(server.getsockname()) as client:
                server.accept()[0].sendall(b"hi")
                return client.recv(2)
        note("own server", own)
        def again():
            sock = tcp()
            sock.bind(("127.0.0.1", 0))
            place = sock.getsockname()
            sock.close()
            return socket.create_server(place).getsockname() == place
        note("a port that was let go", again)
        def gone():
            server = socket.create_server(("127.0.0.1", 0))
            place = server.getsockname()
            server.close()
            return tcp().connect_ex(place)
        note("a server that has ended", gone)
        print(json.dumps(found))
        """,
    )
    not_done = ("fast open", "fast open by sendmsg", "send with an address", "deferred", "ring")
    not_done += (
        "source route",
        "shared port",
        "unix",
        "unix datagrams",
        "bind elsewhere",
        "low port",
    )
    assert {case: told[case] for case in not_done if told[case].startswith("done")} == {}
    assert told["fast open"] == "Operation not supported"
    assert told["ring"] == "Function not implemented"
    assert told["listen unbound"] == told["bind to any"] == "done 127.0.0.1"
    assert told["listen unbound v6"] in ("done ::1", "Cannot assign requested address")
    assert told["own server"] == "done b'hi'"
    assert told["a port that was let go"] == "done True"
    assert told["a server that has ended"] == "done 111"
    assert scene.hosts.packets() == []


def test_a_stranger_at_the_listener_gets_nothing(scene, target):
    """Whoever else is on the host finds the port of the way out, and is reset; that is not told as the
    world's."""
    line = "read -r line; echo over"
    with scene.start(f"echo ready; {line}", TARGET) as process:
        assert process.stdout.readline() == b"ready\n"
        until = time.monotonic() + 20
        while not (ports := _listeners(scene, process.pid)):
            # "children" can leave one out while another one ends (proc_pid_task_children(5))
            assert time.monotonic() < until
        knock = (
            "import socket, sys\n"
            "try:\n    s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)\n"
            "    s.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n'); print(s.recv(100))\n"
            "except ConnectionResetError:\n    print('reset')"
        )
        for port in ports:
            assert scene.hosts.run([PYTHON, "-c", knock, str(port)]).stdout == b"reset\n"
        process.kill()
        process.communicate()
    assert scene.hosts.packets() == []


def _listeners(scene, supervisor):
    """Ports of 127.0.0.1 at which processes below a supervisor listen."""
    inodes = set()
    waiting = [supervisor]
    while waiting:
        pid = waiting.pop()
        waiting += children(pid)
        for name in os.listdir(f"/proc/{pid}/fd"):
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
    found = []
    with open(f"/proc/{supervisor}/net/tcp") as file:
        for line in list(file)[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.append(int(words[1].rpartition(":")[2], 16))
    return found


def test_more_sockets_than_are_kept(scene, target):
    """What was closed makes room; what is open is bounded, and does not stop the world."""
    told = _program(
        scene,
        """
        import errno, json, resource, socket
        for _ in range(1500):
            socket.socket().close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        kept, how = [], ""
        try:
            for _ in range(soft + 100):
                kept.append(socket.socket())
        except OSError as error:
            how = errno.errorcode[error.errno]
        count = len(kept)
        kept.clear()
        print(json.dumps([count, how, socket.create_server(("127.0.0.1", 0)).getsockname()[0]]))
        """,
    )
    count, how, place = told
    assert count >= 256
    assert how in ("EMFILE", "")
    assert place == "127.0.0.1"


def test_a_server_beside_one_of_the_hosts_does_not_open_the_way_to_it(scene, internet):
    """At the port of the host's server and another address of the loopback; and one that was shut
    down, whose port may be somebody else's then."""
    host_service(internet)
    told = _program(
        scene,
        """
        import json, socket
        found = {}
        def connect(case, *place):
            family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
            with socket.socket(family) as client:
                found[case] = client.connect_ex(place)
        beside = socket.create_server(("127.0.0.2", 7801))
        connect("own", "127.0.0.2", 7801)
        connect("host", "127.0.0.1", 7801)
        connect("mapped", "::ffff:127.0.0.1", 7801)
        over = socket.create_server(("127.0.0.1", 7901))
        connect("own before", "127.0.0.1", 7901)
        over.shutdown(socket.SHUT_RDWR)
        connect("shut down", "127.0.0.1", 7901)
        print(json.dumps(found))
        """,
    )
    assert told == {"own": 0, "host": 111, "mapped": 111, "own before": 0, "shut down": 111}
    denied = [(b["ip"], b["port"]) for b in scene.told("net_connect") if b["decision"] == "deny"]
    assert denied == [("127.0.0.1", 7801), ("127.0.0.1", 7801), ("127.0.0.1", 7901)]


def test_children_of_threads_are_the_worlds(scene):
    """Go and others fork from any thread: the servers of such processes are the world's own too."""
    told = _program(
        scene,
        """
        import json, os, select, socket, threading
        reading, writing = os.pipe()
        over = threading.Event()
        def fork():
            if os.fork() == 0:
                server = socket.create_server(("127.0.0.1", 0))
                with socket.socket() as client:
                    os.write(writing, b"%d" % client.connect_ex(server.getsockname()))
                os._exit(0)
            over.wait()
        thread = threading.Thread(target=fork)
        thread.start()
        there, _, _ = select.select([reading], [], [], 10)
        found = os.read(reading, 10).decode() if there else "nothing"
        over.set()
        thread.join()
        print(json.dumps(found))
        """,
    )
    assert told == "0"


def test_a_socket_that_is_being_connected_cannot_be_made_to_listen(scene, target):
    """While the way out is asked where it leads, which takes its time here; and it is closed then."""
    place = scene.caller.work / "program.py"
    place.write_text(
        textwrap.dedent(
            f"""
            import os, socket, sys, threading, time
            good = socket.getaddrinfo("{TARGET}", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4]
            print("ready", flush=True)
            sys.stdin.readline()
            sock, other = socket.socket(), socket.socket()
            sock.bind(("127.0.0.1", 0))
            own = sock.getsockname()
            threads = [threading.Thread(target=sock.connect_ex, args=(good,)),
                       threading.Thread(target=other.connect_ex, args=(own,))]
            threads[0].start()
            time.sleep(0.5)
            try:
                sock.listen()
                print("listens")
            except OSError as error:
                print(error.strerror)
            os.close(sock.detach())
            threads[1].start()
            time.sleep(0.5)
            print("asked", flush=True)
            for thread in threads:
                thread.join()
            print("over", flush=True)
            """
        )
    )
    scene.caller.own(place)
    with scene.start(f"{PYTHON} -I -S program.py", TARGET) as process:
        assert process.stdout.readline() == b"ready\n"
        (zygote,) = [p for p in children(process.pid) if children(p)]
        engines = [p for p in children(zygote) if not children(p)]
        try:
            for pid in engines:
                os.kill(pid, signal.SIGSTOP)
            process.stdin.write(b"\n")
            process.stdin.flush()
            told = [process.stdout.readline(), process.stdout.readline()]
        finally:
            for pid in engines:
                os.kill(pid, signal.SIGCONT)
        out, err = process.communicate(timeout=30)
    assert told == [b"Invalid argument\n", b"asked\n"]
    assert (process.returncode, out) == (0, b"over\n"), err
