"""What the policy asks, from end to end: `substrate -c` on a terminal, and beside one (policy.md §3)."""

import fcntl
import json
import os
import signal
import time
import tomllib

import pytest

from tests.session.approvals_hook import Hook
from tests.system import traces_left
from tests.system.screen import Screen

KEYS = b"[?] help"
ALT_OFF = b"\x1b[?1049l"
ASK = """
[[command]]
match = ["id", "**"]
action = "ask"
reason = "who am I"
"""


@pytest.fixture
def asking(caller):
    """A caller whose policy asks before `id`."""
    folder = caller.make_directory(caller.base / "home" / ".config" / "substrate")
    caller.own(folder.parent)

    def write(text):
        path = folder / "policy.toml"
        path.write_text(text)
        path.chmod(0o600)
        caller.own(path)
        return path

    write(ASK)
    yield caller, write
    (folder / "policy.toml").unlink()


@pytest.fixture
def screen(asking):
    caller, _ = asking
    opened = []

    def start(*words):
        mark = f"approvals-{os.getpid()}-{len(opened)}-{caller.backend}"
        made = Screen(caller, caller.command, *words, env={traces_left.MARK: mark})
        opened.append((made, mark))
        return made

    yield start
    for made, mark in opened:
        made.close()
        left = traces_left.gone(lambda m=mark: traces_left.processes(m))
        assert not left, f"left behind: {left}"


def script(caller, text):
    """Words that run it from a file: what is in it is seen by the gate, not by a look at the words."""
    path = caller.work / "run.sh"
    path.write_text(text)
    caller.own(path)
    return ("--keep", "-c", "bash run.sh")


def decisions(caller):
    return [e["body"] for e in caller.events() if e["event_type"] == "policy_decision"]


def test_yes_runs_it(screen, asking):
    caller, _ = asking
    there = screen(*script(caller, "echo before; sh -c 'id -u'; echo after"))
    shown = there.expect(KEYS)
    assert b"before" in shown
    for part in (b"id -u", str(caller.work).encode(), b"user command[1]", b"who am I"):
        assert part in shown, part
    there.type(b"y")
    there.expect(ALT_OFF)
    there.expect(str(caller.uid).encode() + b"\r\n")
    there.expect(b"after")
    assert there.wait() == 0
    (decision,) = decisions(caller)
    assert (decision["decision"], decision["action"]) == ("ask", "allowed")
    assert decision["approved_by"].startswith("/dev/pts/")
    assert there.settings() == there.before
    caller.verify()


def test_no_is_126(screen, asking):
    caller, _ = asking
    there = screen(*script(caller, "echo before; sh -c 'id -u'"))
    there.expect(KEYS)
    there.type(b"n")
    there.expect(ALT_OFF)
    assert there.wait() == 126
    assert b"no, said /dev/pts/" in there.seen
    # a shell tries the next directory of PATH, which is no second question
    assert {d["action"] for d in decisions(caller)} == {"denied"}
    assert there.settings() == there.before
    caller.verify()


def test_the_command_itself(screen, asking):
    caller, _ = asking
    there = screen("run", "--keep", "--", "id", "-u")
    there.expect(KEYS)
    there.type(b"y")
    there.expect(ALT_OFF)
    assert there.wait() == 0
    assert str(caller.uid).encode() in there.seen
    there = screen("run", "--keep", "--", "id", "-u")
    there.expect(KEYS)
    there.type(b"n")
    assert there.wait() == 126


def test_many_processes_of_one_command_ask_once(screen, asking):
    loop = "for i in 1 2 3 4; do sh -c 'id -u' & done; wait; for i in 1 2 3; do id -u; done"
    there = screen(*script(asking[0], loop))
    there.expect(KEYS)
    there.type(b"y")
    there.expect(ALT_OFF)
    assert there.wait() == 0
    assert there.seen.count(str(asking[0].uid).encode() + b"\r\n") == 7
    assert KEYS not in there.seen


def test_for_the_session_holds_for_the_next_command(screen, asking):
    caller, _ = asking
    words = script(caller, "sh -c 'id -u'")
    there = screen(*words)
    there.expect(KEYS)
    there.type(b"s")
    assert there.wait() == 0
    done = caller.substrate(*words)
    assert (done.returncode, done.stdout) == (0, b"%d\n" % caller.uid), done.stderr
    assert decisions(caller)[-1]["approved_by"].startswith("/dev/pts/")
    done = caller.substrate("approvals", "ls", "--format", "json")
    (kept,) = json.loads(done.stdout)["approvals"]
    assert (kept["number"], kept["command"]) == (1, "id -u")
    assert caller.substrate("approvals", "forget", "1").returncode == 0
    assert caller.substrate(*words, start_new_session=True).returncode == 126
    assert caller.substrate("approvals", "forget", "1").returncode == 2


def deploy(caller, text):
    path = caller.work / "deploy.sh"
    path.write_text(text)
    caller.own(path)


@pytest.mark.parametrize(
    "words", [("--keep", "-c", "bash run.sh"), ("run", "--", "bash", "./deploy.sh")]
)
def test_what_an_interpreter_is_given_is_a_part_of_the_answer(screen, asking, words):
    """The program is bash, whatever it reads."""
    caller, write = asking
    write(ASK.replace('"id"', '"deploy.sh"'))
    script(caller, "bash ./deploy.sh; exit $?")
    deploy(caller, "echo f''irst")
    there = screen(*words)
    there.expect(KEYS)
    there.type(b"s")
    there.expect(ALT_OFF)
    assert there.wait() == 0
    done = caller.substrate(*words)
    assert (done.returncode, done.stdout) == (0, b"first\n"), done.stderr
    deploy(caller, "echo sec''ond")
    done = caller.substrate(*words, start_new_session=True)
    assert (done.returncode, done.stdout) == (126, b""), done.stderr
    there = screen(*words)
    there.expect(KEYS)
    deploy(caller, "echo th''ird")
    there.type(b"y")
    there.expect(ALT_OFF)
    assert there.wait() == 126
    assert b"was changed while it was asked about" in there.seen
    assert b"third" not in there.seen


def test_always_is_for_a_rule_of_the_profile(screen, asking):
    """In one's own file the stricter rule wins, so it says so and asks on."""
    caller, write = asking
    there = screen("--keep", "-c", "sh -c 'id -u'")
    there.expect(KEYS)
    there.type(b"a")
    there.expect(b"no rule of your own counts")
    there.expect(KEYS)
    there.type(b"v")
    there.expect(ALT_OFF)
    assert there.wait() == 126
    path = caller.base / "home/.config/substrate/policy.toml"
    rules = tomllib.loads(path.read_text())["command"]
    assert path.read_text().startswith(ASK)
    assert [(r["match"], r["action"]) for r in rules][1:] == [(["id", "-u"], "deny")]
    assert path.stat().st_uid == caller.uid
    write("")
    there = screen("--keep", "-c", "git init -q . && git push /nowhere main; echo $?")
    there.expect(b"git push /nowhere main")
    there.expect(KEYS)
    there.type(b"a")
    there.expect(ALT_OFF)
    assert there.wait() == 0
    (rule,) = tomllib.loads(path.read_text())["command"]
    assert (rule["match"], rule["action"]) == (["git", "push", "/nowhere", "main"], "allow")
    done = caller.substrate("--keep", "-c", "git push /nowhere main")
    assert done.returncode not in (0, 126) and b"nowhere" in done.stderr  # git's own words


def test_a_program_that_draws_keeps_its_screen(screen, asking):
    """A full-screen program in the foreground, and what asks in its background."""
    text = (
        'trap \'size=$(stty size); echo again $size; [ "$size" != "30 100" ] || touch seen\' WINCH;'
        "printf '\\033[?1049hdrawn'; (sh -c 'id -u' >out; touch over) &"
        # it draws for as long as it takes until it has been asked to do so once more
        "n=0; until [ -e over ] && [ -e seen ] || [ $n -ge 600 ]; do sleep 0.05; n=$((n + 1)); done;"
        "printf '\\033[?1049l'; cat out"
    )
    there = screen(*script(asking[0], text))
    there.expect(b"drawn")
    there.expect(KEYS)
    there.type(b"y")
    there.expect(b"again 30 100")
    there.expect(str(asking[0].uid).encode())
    assert there.wait() == 0


def test_what_was_written_is_seen_before_the_question(screen, asking):
    text = "n=0; for what in -u -g -un -gn -G; do echo written $((n += 1)); id $what; sleep 1; done"
    there = screen(*script(asking[0], text))
    for number in range(1, 6):
        before = there.expect(KEYS)
        assert b"written %d\r\n" % number in before, before
        there.type(b"y")
        there.expect(ALT_OFF)
    assert there.wait() == 0


def test_keys_go_to_the_command_again(screen, asking):
    there = screen(*script(asking[0], "sh -c 'id -u' >/dev/null; read -r x; echo \"<$x>\""))
    there.expect(KEYS)
    there.type(b"y")
    there.expect(ALT_OFF)
    there.type(b"hello\r")
    there.expect(b"<hello>")
    assert there.wait() == 0


def test_a_vforked_child_that_is_held_is_answered(screen, asking):
    code = "import os; os.waitpid(os.posix_spawn('/usr/bin/id', ['id', '-u'], os.environ), 0)"
    there = screen("--keep", "-c", f'/usr/bin/python3 -c "{code}"; echo over')
    there.expect(KEYS)
    there.type(b"y")
    there.expect(str(asking[0].uid).encode() + b"\r\nover")
    assert there.wait() == 0


def test_ctrl_c_is_no(screen, asking):
    there = screen(*script(asking[0], "sh -c 'id -u' || echo denied; echo over"))
    there.expect(KEYS)
    there.type(b"\x03")
    there.expect(ALT_OFF)
    there.expect(b"over")
    assert there.wait() == 0


def test_nobody_answers(screen, asking):
    _, write = asking
    write('[approval]\ntimeout = "2s"\n' + ASK)
    there = screen("--keep", "-c", "sh -c 'id -u'")
    there.expect(KEYS)
    there.expect(b"is over (timeout)")
    assert there.wait() == 126
    assert b"nobody answered within 2 s" in there.seen
    assert there.settings() == there.before


def test_the_supervisor_is_killed_while_it_asks(screen, asking):
    there = screen(*script(asking[0], "sh -c 'id -u >ran'; sleep 60"))
    there.expect(KEYS)
    there.process.send_signal(signal.SIGKILL)
    there.process.wait(20)
    assert not list(asking[0].work.glob("ran"))


def test_without_a_terminal_it_is_denied_and_says_what_to_do(asking):
    caller, _ = asking
    done = caller.substrate("--keep", "-c", "sh -c 'id -u'", start_new_session=True)
    assert (done.returncode, done.stdout) == (126, b"")
    assert b"substrate approvals ls --wait" in done.stderr
    words = script(caller, "sh -c 'id -u'; echo $?")
    done = caller.substrate(*words, start_new_session=True)
    assert done.stdout == b"126\n"


def is_locked(path):
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_another_terminal_answers(asking):
    caller, _ = asking
    assert caller.substrate("--keep", "-c", "true").returncode == 0  # so that there is a session
    waiting = caller.start("approvals", "ls", "--wait", "--format", "json", start_new_session=True)
    lock = caller.sessions()[-1] / "approvals.watch"
    deadline = time.monotonic() + 20
    while not (lock.exists() and is_locked(lock)):
        assert time.monotonic() < deadline and waiting.poll() is None
    # in a process group and session of its own: there is no terminal
    running = caller.start(*script(caller, "sh -c 'id -u'"), start_new_session=True)
    listed = json.loads(waiting.communicate(timeout=30)[0])
    (question,) = listed["questions"]
    assert question["command"] == "id -u" and question["rule"] == "user command[1]"
    done = caller.substrate("approvals", "allow", str(question["number"]))
    assert done.returncode == 0, done.stderr
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (0, b"%d\n" % caller.uid), err
    decision = decisions(caller)[-1]
    assert decision["approved_by"].startswith(f"control uid={caller.uid} pid=")
    caller.verify()


@pytest.mark.parametrize("said", ["allow", "deny"])
def test_a_webhook_answers(asking, said):
    caller, write = asking
    assert caller.substrate("--keep", "-c", "true").returncode == 0  # so that there is a home
    key = bytes.fromhex(caller.substrate("approvals", "key").stdout.decode())
    hook = Hook(key)
    try:
        hook.answer = lambda *_: {"answer": said, "by": "alice"}
        url = f"http://127.0.0.1:{hook.port}/ask"
        write(f'[approval]\nwebhook = "{url}"\n' + ASK)
        done = caller.substrate(*script(caller, "sh -c 'id -u'"), start_new_session=True)
    finally:
        hook.close()
    (question,) = hook.questions
    assert question["argv"] == ["id", "-u"] and question["uid"] == caller.uid
    if said == "allow":
        assert (done.returncode, done.stdout) == (0, b"%d\n" % caller.uid), done.stderr
    else:
        assert done.returncode == 126
    assert decisions(caller)[-1]["approved_by"] == "webhook by alice"
    caller.verify()


def test_a_command_of_a_world_can_neither_see_nor_answer(screen, asking):
    caller, _ = asking
    inside = (
        f"sh -c 'id -u' & sleep 1; find {caller.base} -name 'approvals*' | sed 's/^/found /';"
        f"{caller.command} approvals allow 1; echo status $?; wait"
    )
    there = screen(*script(caller, inside))
    there.expect(KEYS)
    seen = there.seen
    there.type(b"n")
    there.expect(ALT_OFF)
    assert b"found " not in there.expect(b"status ")
    assert not there.expect(b"\r\n").startswith(b"0")
    there.wait()
    assert b"no, said /dev/pts/" in there.seen, seen


def test_ci_asks_nothing(screen, asking):
    there = screen("--ci", *script(asking[0], "sh -c 'id -u'"))
    assert there.wait() == 126
    assert KEYS not in there.seen


def test_a_thousand_questions_are_bounded(screen, asking):
    loop = "for i in $(seq 1000); do id -$i 2>/dev/null; done; echo over"
    there = screen(*script(asking[0], loop))
    assert b"id -1" in there.expect(KEYS)
    there.type(b"q")
    there.expect(b"over\r\n")
    assert there.wait() == 0
    assert KEYS not in there.seen


def test_piped_output_leaves_the_terminal_to_ask(asking):
    caller, _ = asking
    shell = f"{caller.command} --keep -c \"sh -c 'id -u'\" </dev/null | cat"
    there = Screen(caller, "/bin/sh", "-c", shell)
    try:
        there.expect(KEYS)
        there.type(b"y")
        there.expect(ALT_OFF)
        there.expect(str(caller.uid).encode())
        assert there.wait() == 0
    finally:
        there.close()


def test_the_help_of_each_verb(asking):
    caller, _ = asking
    for words in ((), ("ls",), ("allow",), ("deny",), ("forget",), ("key",)):
        done = caller.substrate("approvals", *words, "--help")
        assert done.returncode == 0 and done.stdout.startswith(b"Examples:"), words
