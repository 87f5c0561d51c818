"""What of who calls holds for a joined command, and what passes back; who may ask in a world."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.system.test_join import HELPER, Live, until
from tests.system.test_join_inside import CLIENT, ask


@pytest.fixture
def live(idmap):
    idmap.forget()
    found = Live(idmap)
    for path in (CLIENT, HELPER):
        shutil.copy(path, idmap.work)
    yield found
    found.end()


def test_limits_and_nice_of_the_caller_hold_and_only_narrow(live):
    text = f"ulimit -n 77; ulimit -f 1000; exec nice -n 5 {live.caller.command} -c 'ulimit -n; ulimit -f; ulimit -c; nice'"
    done = live.caller.call("/bin/bash", "-c", text)
    assert done.stdout.split() == [b"77", b"1000", b"0", b"5"], done.stderr
    # the next one is as free as it ever was
    assert live.caller.substrate("-c", "nice").stdout == b"0\n"


def test_files_that_pass_do_so_from_a_shared_world(idmap):
    idmap.forget()
    passed = Path("/tmp") / f"substrate-passed-{os.getpid()}"
    flag = f"/tmp/substrate-passed-{os.getpid()}*"
    environ = {**idmap.environ, "SUBSTRATE_PASS_THROUGH": flag}
    assert idmap.substrate("world", "start", "--fresh", env=environ).returncode == 0
    live = Live.__new__(Live)
    live.caller, live.session = idmap, idmap.sessions()[-1]
    live.status = live.verb("status")
    other = threading.Thread(target=lambda: live.sh("while [ ! -e go ]; do sleep 0.02; done"))
    other.start()
    until(lambda: live.verb("status")["commands"])
    try:
        assert (
            live.sh(f"echo kept > {passed}; echo not > {passed.parent}/x-{passed.name}").status == 0
        )
        assert passed.read_text() == "kept\n"
        assert not (passed.parent / f"x-{passed.name}").exists()
    finally:
        passed.unlink(missing_ok=True)
        live.sh(": > go")
        other.join()
    live.end()
    idmap.verify()


def test_another_user_of_the_world_may_ask_and_cannot_be_its_first(live):
    """A shim's question is anybody's; to have a command run is to be who runs it."""
    for path in (CLIENT, HELPER):
        shutil.copy(path, "/tmp")
    drop = ["setpriv", "--reuid", "1", "--regid", "1", "--clear-groups"]
    text = f'cd /tmp && cp {live.caller.work}/*.py . 2>/dev/null; chmod 755 *.py; exec "$@"'
    words = [*drop, "/usr/bin/python3", "inside_client.py"]
    done = live.run("/bin/sh", "-c", text, "sh", *words, "shim", "/bin/echo", "ran")
    assert done.out.splitlines()[-1] == b"ran", (done.out, done.err)
    done = live.run("/bin/sh", "-c", text, "sh", *words, "command", "/usr/bin/id", "-u")
    (kind, fields), _ = json.loads(done.out.splitlines()[-1])
    assert (kind, fields[0]) == ("F", "126"), done.out


def test_status_in_a_world_is_of_who_asks(live):
    other = threading.Thread(target=lambda: live.sh("while [ ! -e go ]; do sleep 0.02; done"))
    other.start()
    until(lambda: live.verb("status")["commands"])
    _, fields = json.loads(ask(live, "verb", "status", "{}").out)
    live.sh(": > go")
    other.join()
    told = json.loads(fields[0])
    assert [each["program"] for each in told["commands"]] == ["/bin/sh"]
    assert set(told["commands"][0]) == {"span", "program"}
    assert told["pid"] == 0


def test_a_place_of_a_producer_is_free_again(live):
    done = ask(live, "producers", "300")
    assert done.out.split() == [b"J"] * 300, done.err
    live.end()
    assert len(live.lines("annotation")) == 300
    live.caller.verify()


def test_events_have_a_bound_and_what_is_beyond_is_told(live):
    done = ask(live, "flood", "1300")
    assert b"dropped" in done.out, done.err
    live.end()
    assert 1000 < len(live.lines("annotation")) < 1200
    lost = sum(line["body"]["count"] for line in live.lines("log_drop"))
    assert lost + len(live.lines("annotation")) == 1300
    assert live.caller.substrate("trace", "verify", live.session.name).returncode == 0


def test_an_isolated_run_has_nobody_at_its_door(idmap):
    idmap.forget()
    policy = idmap.work / "own.toml"
    policy.write_text('[[command]]\nmatch = ["python3", "**"]\naction = "isolate"\n')
    for path in (CLIENT, HELPER):
        shutil.copy(path, idmap.work)
    done = idmap.substrate(
        *("run", "--policy", str(policy), "--fresh", "--"),
        *(Path("/usr/bin/python3"), "inside_client.py", "verb", "status", "{}"),
    )
    assert b"ConnectionRefusedError" in done.stderr, (done.stdout, done.stderr)


def test_how_a_command_failed_is_said_as_by_a_run_of_its_own(idmap):
    idmap.forget()
    live = Live(idmap)
    calls = (
        ("run", "--", "/nonexistent"),
        ("run", "--", "/etc/passwd"),
        ("--timeout=1", "-c", "sleep 60"),
    )
    for words in calls:
        joined = idmap.substrate(*words)
        if words[0] == "run":
            joined = idmap.substrate("world", "exec", live.status["world"], *words[1:])
        own = idmap.substrate(*words[:1], "--fresh", *words[1:])
        assert own.stderr.startswith(b"substrate: ")
        assert (joined.returncode, joined.stderr) == (own.returncode, own.stderr)
    live.end()
