"""What a world or a stranger tries to get from who holds the session: refused, without effect, and on the record.

The finer attacks are beside the parts that they attack: `tests/shim/test_attacks.py` (sockets, locks, answers),
`test_join_inside.py` (packets), `tests/session/test_approving_socket.py` (answers to questions).
"""

import json
import os
import select
import socket
import threading

import pytest

#: (words of substrate, what the refusal is about); each is tried by a process of a world
TRIED = (
    (("apply", "--yes"), "'apply'"),
    (("discard", "--yes"), "'discard'"),
    (("undo", "--yes"), "'undo'"),
    (("rollback", "kept", "--yes"), "'rollback'"),
    (("snapshot", "kept"), "'snapshot'"),
    (("session", "end", "w1"), "'session end'"),
    (("session", "rm", "w1", "--yes"), "'session rm'"),
    (("world", "stop", "w1"), "'world stop'"),
    (("net", "allow", "example.com"), "'net allow'"),
    (("approvals", "allow", "1"), "'approvals allow'"),
    (("trace", "show"), "'trace show'"),
    (("hooks", "install", "claude", "--project"), "'hooks install'"),
    (("hooks", "uninstall", "claude", "--project"), "'hooks uninstall'"),
    (("shim", "deploy", "--dir", "shims"), "'shim deploy'"),
    (("shim", "remove", "--dir", "shims"), "'shim remove'"),
    (("-c", "--no-world", "touch ran"), "--no-world"),
    (("-c", "--net", "host", "touch ran"), "--net"),
    (("-c", "--allow", "example.com", "touch ran"), "--allow"),
    (("-c", "--policy", "/dev/null", "touch ran"), "--policy"),
    (("-c", "--rw", "/", "touch ran"), "--rw"),
    (("-c", "--capture", "off", "touch ran"), "--capture"),
    (("run", "--apply", "--", "touch", "ran"), "--apply"),
)
VARIABLES = {
    "SUBSTRATE_WORLD": "disabled",
    "SUBSTRATE_NET": "host",
    "SUBSTRATE_POLICY": "/dev/null",
    "SUBSTRATE_CAPTURE": "off",
    "SUBSTRATE_AT_END": "apply",
}


def _refusals(caller):
    decisions = [
        line["body"] for line in caller.events() if line["event_type"] == "policy_decision"
    ]
    return [each["reason"] for each in decisions if each["action"] == "refused"]


def _in_a_world(caller, *lines):
    """Runs a script of these in a world; what each printed and its status."""
    script = caller.work / "tries.py"
    script.write_text(
        "import json, os, subprocess, sys\n"
        f"for words, more in {lines!r}:\n"
        f"    done = subprocess.run([{os.fspath(caller.command)!r}, *words], capture_output=True,\n"
        "        env={**os.environ, **more}, stdin=subprocess.DEVNULL)\n"
        "    print(json.dumps([done.returncode, done.stderr.decode()]), flush=True)\n"
    )
    caller.own(script)
    done = caller.substrate("run", "--keep", "--", "/usr/bin/python3", script, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_is_the_users_alone_is_refused_in_a_world_and_told(caller):
    (caller.work / "file").write_text("as it was\n")
    results = _in_a_world(caller, *((words, {}) for words, _ in TRIED))
    told = _refusals(caller)
    for (words, about), (status, said) in zip(TRIED, results, strict=True):
        wanted = 125 if words[0] in ("-c", "run") else 1
        assert status == wanted, (words, status, said)
        assert about in said and "ask the user" in said, (words, said)
        assert any(about in reason for reason in told), (words, told)
    assert not (caller.work / "ran").exists()
    names = caller.substrate("diff", "--name-only").stdout
    assert b"ran" not in names.split(), names
    assert b"shims" not in names and b".claude" not in names, names
    caller.verify()


def test_variables_that_widen_are_refused_in_a_world_and_told(caller):
    tries = [(("-c", "touch ran"), {name: text}) for name, text in VARIABLES.items()]
    results = _in_a_world(caller, *tries)
    told = _refusals(caller)
    for name, (status, said) in zip(VARIABLES, results, strict=True):
        assert (status, name in said) == (125, True), (name, said)
        assert any(name in reason for reason in told), (name, told)
    assert b"ran" not in caller.substrate("diff", "--name-only").stdout.split()


def test_what_is_a_worlds_own_to_know_is_answered(caller):
    caller.substrate("-c", "echo x > made")
    script = f"'{caller.command}' status; '{caller.command}' diff; '{caller.command}' diff --patch"
    done = caller.substrate("run", "--keep", "--", "/bin/sh", "-c", script)
    assert b"world:     w1\n" in done.stdout, (done.stdout, done.stderr)
    assert f"added       {caller.work}/made\n".encode() in done.stdout, done.stdout
    assert done.returncode == 2 and b"outside of the world" in done.stderr


def test_attempts_without_an_end_are_told_for_a_while(caller):
    script = caller.work / "flood.py"
    script.write_text(
        "import socket, struct\n"
        "packet = b'V' + b''.join(struct.pack('=I', len(f)) + f for f in (b'apply', b'{}'))\n"
        "refused = 0\n"
        "for _ in range(1200):\n"
        "    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:\n"
        "        s.connect('/run/substrate/inside'); s.send(packet)\n"
        "        refused += s.recv(1000)[:1] == b'F'\n"
        "print(refused)\n"
    )
    caller.own(script)
    done = caller.substrate("run", "--discard", "--", "/usr/bin/python3", script, timeout=120)
    assert done.stdout == b"1200\n", done.stderr
    told = _refusals(caller)
    assert len(told) == 1000 and "no more of them" in told[-1] and "no more" not in told[-2]
    caller.verify()


@pytest.mark.parametrize(
    "named", [b".substrate/control", b".substrate/sessions/x/control", b"run/substrate/inside"]
)
def test_a_planted_socket_is_not_spoken_to(caller, named):
    """A tree that was cloned can hold anything, and a stranger may listen at it."""
    place = os.path.join(os.fsencode(caller.work), named)
    os.makedirs(os.path.dirname(place))
    came = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(place)
        os.chmod(place, 0o777)
        listening.listen()
        listening.setblocking(False)
        over = threading.Event()

        def serve():
            while not over.is_set():
                if select.select([listening], [], [], 0.1)[0]:
                    came.append(listening.accept())

        thread = threading.Thread(target=serve)
        thread.start()
        session = os.path.dirname(place).decode()
        for more in ({}, {"SUBSTRATE_SESSION": session}, {"SUBSTRATE_SESSION": "../../work"}):
            done = caller.substrate("-c", "echo ran", env={**caller.environ, **more})
            wanted = (b"", 2) if more else (b"ran\n", 0)
            assert (done.stdout, done.returncode) == wanted, done.stderr
            assert not more or b"names no session" in done.stderr, done.stderr
        over.set()
        thread.join()
    assert came == []
