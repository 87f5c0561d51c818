"""Questions that are answered by a socket of the session (policy.md §3, shell.md §2)."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import StateError
from substrate.session import approvals_control, approvals_door
from substrate.session.approvals_values import Peer
from substrate.world import wire
from tests.session.approvals_scene import Place, asked, held, run_until

PEER = Peer(uid=0, pid=42)
#: connects as another process would, and says what it got
CLIENT = (
    "import os, sys; sys.path.insert(0, sys.argv[3])\n"
    "from substrate.session.approvals_door import call\n"
    "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
    "print(call(fd, sys.argv[2].split()[0], sys.argv[2].partition(' ')[2], 10))\n"
)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def approving(place):
    made = place.approving(door=True, without_terminal="wait")
    yield made
    made.close()


def verb(approving, name, **arguments):
    told = approving.verb(name, json.dumps(arguments), PEER, object())
    return None if told is None else json.loads(told)


def ask(approving, ticket="t", *argv, **more):
    assert approving.ask(asked(ticket, *argv, **more), time.monotonic()) is None


def test_what_waits_is_listed_in_exact_words(approving):
    ask(approving, "t", "git", "push", "--token=abc123def456", chain=(b"make",), touches=("h:1",))
    found = verb(approving, "approvals")
    assert found["schema"] == "substrate.approvals/1"
    (question,) = found["questions"]
    assert question["command"] == "git push --token=abc123def456"
    assert (question["number"], question["cwd"], question["parents"]) == (1, "/work", ["make"])
    assert 0 < question["left_s"] <= 60


def test_an_answer_says_who_gave_it(approving):
    ask(approving)
    assert verb(approving, "approve", number=1, choice="session")["choice"] == "session"
    (answer,) = approving.answers()
    assert answer.allowed and answer.approved_by == "control uid=0 pid=42"
    found = verb(approving, "approvals")
    assert found["questions"] == []
    (kept,) = found["approvals"]
    assert (kept["number"], kept["allowed"], kept["by"]) == (1, True, "control uid=0 pid=42")


def test_always_and_edit_write_a_rule(place, approving):
    ask(approving)
    ask(approving, "u", "git", "tag", "v1")
    verb(approving, "approve", number=1, choice="always")
    verb(approving, "approve", number=2, choice="edit", rule="git tag *")
    assert all(answer.allowed for answer in approving.answers())
    with open(place.policy_file, "rb") as file:
        matches = [rule["match"] for rule in tomllib.load(file)["command"]]
    assert matches == [["git", "push"], ["git", "tag", "*"]]


def test_a_rule_that_cannot_be_written_answers_nothing(place, approving):
    ask(approving)
    place.policy_file.parent.mkdir(mode=0o777)
    place.policy_file.parent.chmod(0o777)
    assert "others can write it" in verb(approving, "approve", number=1, choice="always")["message"]
    assert len(approving.state.open_questions()) == 1 and approving.answers() == []


def test_what_cannot_be_recognised_is_answered_once_only(approving):
    ask(approving, given=held("git", "push", cut=True))
    found = verb(approving, "approve", number=1, choice="session")
    assert found["error"] and "once" in found["hint"]
    verb(approving, "approve", number=1, choice="once")
    assert approving.answers()[0].allowed


def test_what_was_answered_is_forgotten(place, approving):
    ask(approving)
    verb(approving, "approve", number=1, choice="session")
    assert verb(approving, "approve", number=1, choice="forget")["number"] == 1
    assert verb(approving, "approve", number=1, choice="forget")["error"]
    ask(approving, "u", action="spn_2")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["approvals", "approve", "else"]),
    st.one_of(
        st.text(max_size=60),
        st.dictionaries(
            st.sampled_from(["number", "choice", "rule", "wait", "after"]),
            st.one_of(
                st.none(), st.booleans(), st.integers(-2, 3), st.text(max_size=9), st.lists(st.none()),
                st.sampled_from(["once", "edit", "forget", "nonsense"]),
            ),
        ).map(json.dumps),
    ),
)  # fmt: skip
def test_no_words_break_the_desk(name, text):
    """Whatever comes, there is an answer, or a wait; nothing is written."""

    class Decider:
        def __init__(self):
            from substrate.session.approvals_state import Approvals
            from substrate.session.approvals_values import Kept
            from tests.session.approvals_scene import digest

            self.state = Approvals(Kept(), timeout_s=9.0, digest=digest, show=lambda _: "x")
            self.state.ask(asked("t"), 0.0, reachable=lambda: True)
            self.notes = []

        def decide(self, number, choice, by, rule=""):
            self.state.answer(number, choice, by, at_us=1)

        def forget_approval(self, number):
            return False

    desk = approvals_control.Desk(Decider())
    told = desk.verb(name, text, PEER, "token")
    if told is not None:
        found = json.loads(told)
        assert "error" in found or found["schema"] == "substrate.approvals/1"


def test_a_poll_waits_for_a_question(approving):
    assert approving.verb("approvals", '{"wait": true}', PEER, "mine") is None
    assert approving.told() == []
    ask(approving)
    ((token, told),) = approving.told()
    assert token == "mine" and json.loads(told)["questions"][0]["number"] == 1
    assert approving.told() == []
    found = verb(approving, "approvals", wait=True)
    assert found["questions"][0]["number"] == 1
    assert verb(approving, "approvals", wait=True, after=1) is None


def test_too_many_polls_are_refused(approving):
    told = [verb(approving, "approvals", wait=True) for _ in range(20)]
    assert told[0] is None and told[-1]["error"]


# --- by the socket itself


def outside(place, words, *before):
    """A client that does not descend from us, as a shell of the user's does not."""
    log = place.base / f"client-{words.partition(' ')[0]}-{time.monotonic_ns()}"
    line = [
        *before,
        sys.executable,
        "-c",
        CLIENT,
        os.fsdecode(place.files.path),
        words,
        os.getcwd(),
    ]
    shell = 'out=$1; shift; setsid "$@" >"$out.new" 2>&1; mv "$out.new" "$out"'
    # its parent ends at once, so that it is init's (or a subreaper's) child
    subprocess.run(["/bin/sh", "-c", f"({shell}) & exit", "sh", log, *line], check=True)
    return log


def test_another_terminal_lists_and_allows(place, approving):
    ask(approving)
    log = outside(place, "approvals {}")
    run_until(approving, lambda _: log.exists())
    if "None" in log.read_text():  # a subreaper above us has it: still ours to refuse
        pytest.fail(log.read_text())
    assert json.loads(log.read_text())["questions"][0]["command"] == "git push"
    log = outside(place, 'approve {"number": 1, "choice": "once"}')
    answers = run_until(approving, lambda answers: answers and log.exists())
    assert answers[0].allowed and answers[0].approved_by.startswith("control uid=")


def test_a_poll_of_another_terminal_ends_with_a_question(place):
    approving = place.approving(door=True)
    try:
        log = outside(place, 'approvals {"wait": true}')
        run_until(approving, lambda _: approving._is_watched())
        ask(approving)  # held, since somebody watches
        run_until(approving, lambda _: log.exists())
        assert json.loads(log.read_text())["questions"][0]["number"] == 1
    finally:
        approving.close()


def test_whoever_descends_from_us_is_refused(place, approving):
    """A process of a world that had found the socket."""
    line = [sys.executable, "-c", CLIENT, place.files.path, "approvals {}", os.getcwd()]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    run_until(approving, lambda _: child.poll() is not None)
    assert b"a process of a world" in child.communicate()[0]


@pytest.mark.parametrize("confined", [("unshare", "-pf"), ("setpriv", "--no-new-privs")])
def test_whoever_is_confined_more_than_we_are_is_refused(place, approving, confined):
    if shutil.which(confined[0]) is None or (confined[0] == "unshare" and os.geteuid() != 0):
        pytest.skip(f"{confined[0]} is needed, and root for a namespace")
    ask(approving)
    log = outside(place, "approvals {}", *confined)
    run_until(approving, lambda _: log.exists())
    assert "a process of a world" in log.read_text()


def test_the_socket_is_for_its_user_alone(place, approving):
    status = os.stat(place.files.path + b"/approvals")
    assert status.st_mode & 0o777 == 0o600
    os.chmod(place.files.path + b"/approvals", 0o666)
    with pytest.raises(StateError, match="not a socket of this user alone"):
        approvals_door.call(place.files.fd, "approvals", "{}", 5)


def test_it_is_gone_with_the_run(place):
    approving = place.approving(door=True)
    approving.close()
    approving.close()
    assert not os.path.lexists(place.files.path + b"/approvals")
    assert approvals_door.call(place.files.fd, "approvals", "{}", 5) is None


def test_one_that_a_killed_run_left_is_replaced(place):
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(name_of(place))
    os.chmod(name_of(place), 0o600)
    left.close()
    assert approvals_door.call(place.files.fd, "approvals", "{}", 5) is None
    place.approving(door=True).close()


@pytest.fixture
def door(place, monkeypatch):
    """One that takes us for somebody else, so that a thread can be its client."""
    monkeypatch.setattr(approvals_door, "_is_below_us", lambda pid: False)
    made = approvals_door.Door(place.files.fd)
    yield made
    made.close()


def name_of(place):
    """Its path is longer than an address may be (unix(7))."""
    return f"/proc/self/fd/{place.files.fd}/approvals"


def connect(place, door=None):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(name_of(place))  # waits while the queue is full
    client.settimeout(10)
    assert door is None or door.requests() == []
    return client


def test_silent_slow_and_wrong_clients_stop_nothing(place, door):
    silent = [connect(place, door) for _ in range(28)]
    wrong = connect(place)
    wrong.send(b"V\xff\xff\xff\xff")
    other = connect(place)
    wire.send(other, b"K", "9")
    begun = time.monotonic()
    assert door.requests() == []
    assert time.monotonic() - begun < 1.0
    assert wrong.recv(100) == b"" and other.recv(100) == b""
    good = connect(place)
    with open(os.devnull) as null:
        wire.send(good, b"V", "approvals", "{}", fds=(null.fileno(),))
    before = len(os.listdir("/proc/self/fd"))
    (request,) = door.requests()
    assert (request.name, request.arguments) == ("approvals", "{}")
    assert len(os.listdir("/proc/self/fd")) == before + 1  # its connection, and not what it sent
    door.answer(request.client, "x" * 60000)
    assert good.recv(70000)[:1] == b"J"
    for each in (*silent, wrong, other, good):
        each.close()


def test_more_clients_than_there_is_room_for_wait(place, door):
    made = []
    thread = threading.Thread(target=lambda: made.extend(connect(place) for _ in range(36)))
    thread.start()
    deadline = time.monotonic() + 10
    while len(door.fds()) != 32 and time.monotonic() < deadline:
        door.requests()
    assert len(door.fds()) == 32  # nobody listens until one is gone
    first = made[0]
    first.close()
    while len(made) < 36 and time.monotonic() < deadline:
        door.requests()
    thread.join(10)
    assert len(made) == 36
    for each in made[1:]:
        each.close()


def test_whoever_waited_for_questions_is_killed(place, monkeypatch):
    """Nobody is told by it; a question that it has seen is still open, for others."""
    monkeypatch.setattr(approvals_door, "_is_below_us", lambda pid: False)
    approving = place.approving(door=True)
    try:
        client = connect(place)
        wire.send(client, b"V", "approvals", '{"wait": true}')
        run_until(approving, lambda _: approving._is_watched())
        ask(approving)
        client.close()
        approving.pump(time.monotonic())
        assert [q.number for q in approving.state.open_questions()] == [1]
        assert verb(approving, "approvals")["questions"]
        waiting = connect(place)
        wire.send(waiting, b"V", "approvals", '{"wait": true, "after": 1}')
        run_until(approving, lambda _: approving._desk._waiting)
        waiting.close()
        run_until(approving, lambda _: not approving._desk._waiting)
    finally:
        approving.close()


def test_whoever_waits_before_a_run_is_known_to_it(place):
    watching = approvals_door.watch(place.files.fd)
    approving = place.approving()
    try:
        ask(approving)
        os.close(watching)
        answer = approving.ask(asked("u", "git", "tag"), time.monotonic())
        assert answer is not None and answer.how == "nobody"
    finally:
        approving.close()
