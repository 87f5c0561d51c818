"""`substrate` on a real terminal: it is as if the command had the terminal itself (shell.md §2)."""

import os
import shutil
import signal
import struct
import zlib

import pytest

from tests.system import traces_left
from tests.system.screen import Screen


@pytest.fixture
def screen(caller):
    """Starts `substrate` (or another program) on a terminal; nothing may be left at the end."""
    opened = []

    def start(*words, program=None):
        mark = f"terminal-{os.getpid()}-{len(opened)}-{caller.backend}"
        made = Screen(caller, program or caller.command, *words, env={traces_left.MARK: mark})
        opened.append((made, mark))
        return made

    yield start
    for made, mark in opened:
        made.close()
        left = traces_left.gone(lambda m=mark: traces_left.processes(m))
        assert not left, f"left behind: {left}"


def test_all_three_streams_are_a_terminal(screen):
    there = screen("-c", "test -t 0 && test -t 1 && test -t 2 && tty; exit 7")
    assert there.wait() == 7
    assert there.seen.startswith(b"/dev/pts/")


def test_without_a_terminal_of_its_own(screen):
    there = screen("--no-pty", "-c", "test -t 1; echo $?")
    assert there.wait() == 0
    assert there.seen == b"1\r\n"


def test_the_size_is_known_and_its_changes_are_told(screen):
    there = screen(
        "-c", "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.01; done"
    )
    there.expect(b"30 100\r\nready\r\n")
    there.resize(77, 22)
    there.expect(b"22 77\r\n")
    assert there.wait() == 3


def test_lines_are_edited_and_echoed(screen):
    there = screen("-c", 'echo ready; read -r line; echo "<$line>"')
    there.expect(b"ready\r\n")
    there.type(b"abX\x7fc\r")  # the terminal's own erase key
    there.expect(b"<abc>\r\n")
    assert there.wait() == 0


def test_end_of_input_is_a_key(screen):
    there = screen("-c", "echo ready; cat; echo end")
    there.expect(b"ready\r\n")
    there.type(b"text\r\x04")
    there.expect(b"text\r\ntext\r\nend\r\n")
    assert there.wait() == 0


@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_a_key_ends_the_command_and_not_substrate(screen, caller, key, number):
    # not bash: it ignores SIGQUIT, and would until the exec. Not Python's own handler: a signal
    # between its last look and the kernel's sleep waits until the sleep is over
    sleeper = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    sleeper += "; print('ready', flush=True); time.sleep(60)"
    there = screen("-c", f'ulimit -c 0; exec /usr/bin/python3 -Sc "{sleeper}"')
    there.expect(b"ready\r\n")
    there.type(key)
    assert there.wait() == 128 + number
    assert there.settings() == there.before
    assert caller.events()[-1]["event_type"] == "command_end"
    caller.verify()


def test_a_program_may_use_ctrl_c_itself(screen):
    there = screen("-c", "trap 'echo caught' INT; echo ready; read x; echo \"then $x\"")
    there.expect(b"ready\r\n")
    there.type(b"\x03")
    there.expect(b"caught\r\n")
    there.type(b"typed\r")
    there.expect(b"then typed\r\n")
    there.wait()


def test_stop_and_go_on_in_a_shell(screen, caller):
    there = screen("--norc", "-i", program="/bin/bash")
    there.type(b"PS1='pro''mpt: '\r")
    there.expect(b"prompt: ")
    there.type(b"%s -c 'echo rea''dy; sleep 0.5; echo done''now'\r" % os.fsencode(caller.command))
    there.expect(b"ready\r\n")
    there.type(b"\x1a")
    there.expect(b"Stopped")
    there.expect(b"prompt: ")
    there.type(b"echo in-''between; stty -a | grep -o ' echo '\r")
    there.expect(b"in-between\r\n echo ")
    there.type(b"fg\r")
    there.expect(b"donenow\r\n")
    there.expect(b"prompt: ")
    there.type(b"exit 5\r")
    assert there.wait() == 5


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("stty raw -echo; exit 0", 0),
        ("stty raw -echo; kill -9 $$", 137),
        ("stty raw -echo; kill -SEGV $$", 139),
        ("no-such-program", 127),
    ],
)
def test_the_terminals_settings_come_back(screen, text, status):
    there = screen("-c", f"ulimit -c 0; {text}")
    assert there.wait() == status
    assert there.settings() == there.before


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("run", "--", "no-such-program"), 127, b"no-such-program: No such file or directory"),
        (("run", "--", "/tmp"), 126, b"/tmp: Permission denied"),
        (("run", "--", "/bin/echo", "found"), 0, b"found"),
    ],
)
def test_a_program_is_found_or_not(screen, words, status, said):
    there = screen(*words)
    there.expect(said)
    assert there.wait() == status


def test_many_commands_end_as_they_end(screen):
    for number in range(15):
        there = screen("-c", f"sleep 0.02; exit {number}")
        assert there.wait() == number


def test_a_limit_above_our_own_is_our_own(screen, caller):
    text = f"ulimit -n 1000; exec {caller.command} --limit open_files=2000 -c 'ulimit -n'"
    there = screen("-c", text, program="/bin/bash")
    there.expect(b"1000\r\n")
    assert there.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminals_settings_come_back_after_a_signal_to_substrate(screen, number):
    there = screen("-c", "stty raw -echo; echo ready; exec sleep 60")
    there.expect(b"ready")
    there.process.send_signal(number)
    assert there.wait() == 128 + number
    assert there.settings() == there.before


def test_a_terminal_that_is_closed_ends_the_command(screen, caller):
    there = screen("-c", "echo kept > kept; echo ready; sleep 60; echo never > never")
    there.expect(b"ready\r\n")
    there.hang_up()
    there.process.wait(20)
    assert caller.substrate("-c", "ls").stdout == b"kept\n"
    caller.verify()


def test_much_output_arrives_whole(screen):
    there = screen("-c", "seq 20000")
    assert there.wait() == 0
    assert there.seen.split() == [b"%d" % n for n in range(1, 20001)]


# --- what a terminal's programs do


def test_python_works_interactively(screen):
    there = screen("-c", "/usr/bin/python3 -q -i")
    there.expect(b">>> ")
    there.type(b"6 * 7\r")
    there.expect(b"42\r\n")
    there.type(b"raise SystemExit(9)\r")
    assert there.wait() == 9


@pytest.mark.skipif(shutil.which("less") is None, reason="less is not installed")
def test_less_works(screen):
    there = screen("-c", "seq 500 | less")
    there.expect(b"29\r\n")
    there.type(b"G")
    there.expect(b"500")
    there.type(b"q")
    assert there.wait() == 0
    assert there.settings() == there.before


@pytest.mark.skipif(shutil.which("vi") is None, reason="vi is not installed")
def test_vi_works(screen, caller):
    there = screen("--keep", "-c", "vi new.txt")
    there.expect(b"new.txt")
    there.type(b"ihello from vi\x1b")
    there.type(b":wq\r")
    assert there.wait() == 0
    assert caller.substrate("-c", "cat new.txt").stdout == b"hello from vi\n"


# --- the record


def _blob_contents(session):
    """Every content in a session's pack (docs/adr/0001)."""
    pack = (session / "blobs").read_bytes()
    at, found = 0, []
    while at < len(pack):
        magic, _, encoding, _, _, stored = struct.unpack_from("<4sBBHQQ", pack, at)
        assert magic == b"SBB1"
        content = pack[at + 96 : at + 96 + stored]
        found.append(zlib.decompress(content) if encoding == 1 else content)
        at += 96 + stored
    return found


def test_a_password_that_is_typed_is_not_recorded(screen, caller):
    there = screen(
        "-c", "read -r -p 'name: ' n; read -r -s -p 'password: ' p; echo; echo \"$n ${#p}\""
    )
    there.expect(b"name: ")
    there.type(b"typed-name\r")
    there.expect(b"password: ")
    there.type(b"typed-secret\r")
    there.expect(b"typed-name 12\r\n")
    assert there.wait() == 0
    (session,) = caller.sessions()
    recorded = b"\0".join(_blob_contents(session))
    assert b"typed-name" in recorded
    for path in session.iterdir():
        if path.is_file():
            assert b"typed-secret" not in path.read_bytes()
    assert b"typed-secret" not in recorded
