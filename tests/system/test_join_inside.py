"""What processes of a world ask their supervisor, at /run/substrate/inside."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.system.test_join import HELPER, Live, until

CLIENT = Path(__file__).with_name("inside_client.py")


@pytest.fixture
def inside(idmap):
    idmap.forget()
    found = Live(idmap)
    for path in (CLIENT, HELPER):
        shutil.copy(path, idmap.work)
    yield found
    found.end()


def ask(live, *words, text='exec "$0" "$@"'):
    return live.run("/bin/sh", "-c", text, sys.executable, "inside_client.py", *words)


def test_the_door_is_the_worlds_and_nobody_can_change_it(inside):
    done = ask(inside, "place")
    found, uid, names = json.loads(done.out)
    assert "done" not in found, found
    assert (uid, names) == (0, ["inside"])


def test_a_shim_gets_a_span_and_its_program_is_that_span(inside):
    done = ask(inside, "shim", "/bin/echo", "ran")
    told, ran = done.out.splitlines()
    kind, (span, parent, _) = json.loads(told)
    assert (kind, ran) == ("A", b"ran")
    inside.end()
    starts = {line["span_id"]: line for line in inside.lines("process_start")}
    assert starts[span]["body"]["exe"].endswith("/echo")
    assert starts[parent]["body"]["exe"] == str(Path(sys.executable).resolve())
    inside.caller.verify()


def test_a_command_is_run_beside_with_its_own_descriptors(inside):
    done = ask(
        inside, "command", "/bin/sh", "-c", "cat; echo beside; exit 4", text='echo in | "$0" "$@"'
    )
    first, second, told = done.out.splitlines()
    (kind, fields), before = json.loads(told)
    assert (first, second, kind, fields[0]) == (b"in", b"beside", "E", "4")
    assert [each[0] for each in before] == ["A"]
    inside.end()
    outer, inner = inside.lines("command_start")
    assert outer["body"]["layer"] == inner["body"]["layer"]
    assert inner["parent_span_id"] in {line["span_id"] for line in inside.lines("process_start")}
    inside.caller.verify()


def test_no_directory_is_out_of_reach_of_the_workspaces_policy(inside):
    """Who asks from a world names its own directory: of the host, or one that only the world has."""
    project = inside.caller.work / ".substrate"
    project.mkdir(exist_ok=True)
    (project / "policy.toml").write_text(
        '[[command]]\nmatch = ["truncate", "**"]\naction = "deny"\n'
    )
    client = inside.caller.work / "inside_client.py"
    for place in (".", "/", "new", "n/e/w/b/e/l/o/w/i/t/s/e/l/f"):
        inside.run("/bin/mkdir", "-p", place)
        text = f'cd {place} && exec "$0" {client} "$@"'
        ran = ("command", "/bin/echo", "ran")
        done = inside.run("/bin/sh", "-c", text, sys.executable, *ran)
        assert b"ran" in done.out, place
        denied = ("command", "/bin/sh", "-c", "truncate -s 0 f")
        done = inside.run("/bin/sh", "-c", text, sys.executable, *denied)
        # and what it was asked in comes to its end
        assert json.loads(done.out.splitlines()[-1])[0][0] == "D", place


def test_what_is_asked_of_it_and_what_is_not(inside):
    kind, fields = json.loads(ask(inside, "verb", "status", "{}").out)
    assert (kind, json.loads(fields[0])["session"]) == ("J", inside.session.name)
    inside.run("/bin/sh", "-c", "echo x > made")
    kind, fields = json.loads(ask(inside, "verb", "diff", "{}").out)
    changes = json.loads(fields[0])["changes"]
    assert ["added", str(inside.caller.work / "made")] in changes
    for verb in ("end", "apply", "approve", "policy_reload"):
        kind, fields = json.loads(ask(inside, "verb", verb, "{}").out)
        assert (kind, "cannot be asked for in a world" in fields[1]) == ("F", True)


def test_events_are_on_the_record_as_reported(inside):
    done = ask(inside, "events")
    assert done.out.split() == [b"J", b"J", b"J"], done.err
    bad = json.loads(
        ask(
            inside, "verb", "event", '{"type":"log_drop","body":{},"producer":"x","producer_seq":0}'
        ).out
    )
    assert bad[0] == "F"
    inside.end()
    told = inside.lines("annotation")
    assert [line["body"]["labels"]["number"] for line in told] == [0, 1, 5]
    assert {line["origin"] for line in told} == {"reported"}
    assert len(inside.lines("gap")) == 1
    spans = {line["span_id"] for line in inside.lines("process_start")}
    assert {line["span_id"] for line in told} <= spans
    inside.caller.verify()


def test_a_world_takes_no_places_of_those_outside(inside):
    text = (
        "import socket, time\n"
        "all = []\n"
        "for _ in range(200):\n"
        "    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/substrate/inside'); all.append(s)\n"
        "print('on', flush=True); time.sleep(3)\n"
    )
    client = inside.client()
    out, put = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    client.execute(sys.executable, "-c", text, cwd=inside.caller.work, fds=(null, put, null))
    assert client.receive()[0] == b"A"
    assert os.read(out, 10) == b"on\n"
    assert inside.run("/bin/echo", "served").out == b"served\n"
    client.close()
    for fd in (out, put, null):
        os.close(fd)
    until(lambda: not inside.verb("status")["commands"])


def test_nothing_that_is_said_in_a_world_ends_its_supervisor(inside):
    done = ask(inside, "hostile")
    assert done.out.split() == [b"F", b"F"], done.err
    assert inside.verb("status")["pid"] == inside.pid


def test_descriptors_of_what_never_ran_are_let_go(inside):
    def held():
        return len(os.listdir(f"/proc/{inside.pid}/fd"))

    before = held()
    for place, kind in (("/no/such/directory", b"E"), (inside.session, b"F")):
        done = ask(inside, "calls", "3", place, "/bin/true")
        assert done.out.split() == [kind] * 3, done.err  # and its own streams came to their end
    until(lambda: held() <= before)


def test_a_directory_without_an_end_keeps_nobody_waiting(inside):
    began = time.monotonic()
    refused, served = map(json.loads, ask(inside, "deep").out.splitlines())
    assert (refused[0], "4096 are the most" in refused[1][1]) == ("F", True)
    assert served[0] == "A"
    assert time.monotonic() - began < 10


def test_words_without_an_end_are_read_for_a_while_only(inside):
    def used_s():
        words = Path(f"/proc/{inside.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    before = used_s()
    told = [json.loads(line) for line in ask(inside, "slow").out.splitlines()]
    assert [each[0] for each in told] == ["A"] * 60
    assert used_s() - before < 20


def test_denied_shims_have_a_bound_on_the_record_and_it_is_told(inside):
    project = inside.caller.work / ".substrate"
    project.mkdir(exist_ok=True)
    (project / "policy.toml").write_text(
        '[[command]]\nmatch = ["truncate", "**"]\naction = "deny"\nreason = "kept"\n'
    )
    done = ask(inside, "denied", "1005", "/" * 3000 + "truncate", "x")
    assert done.out.split() == [b"D"] * 1005, done.err
    inside.end()
    bodies = [line["body"] for line in inside.lines("policy_decision")]
    told = [body for body in bodies if body.get("asked_by") == "shim"]
    assert len(told) == 1000
    assert {len(body["subject"]) for body in told} == {1000}
    assert {body["reason"] for body in told[:-1]} == {"kept"}
    assert told[-1]["reason"] == "kept; 1000 denied shims are told of, and no more of them"
    inside.caller.verify()
