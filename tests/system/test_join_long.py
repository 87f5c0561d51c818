"""What a command leaves behind that takes long to record: others are served meanwhile."""

import os
import signal
import threading
import time

from tests.system.test_join import Live, until

HUGE = "truncate -s 8T huge"  # hours to digest


def start_huge(live):
    """A client whose command has ended, and waits for its record."""
    null = os.open("/dev/null", os.O_RDWR)
    client = live.client()
    client.execute("/bin/sh", "-c", HUGE, cwd=live.caller.work, fds=(null, null, null))
    os.close(null)
    assert client.receive()[0] == b"A"
    until(lambda: live.verb("status")["recording"])
    return client


def ended(client, number):
    """Asks for the end until it is heard: what comes early was meant for the command."""
    kinds = []
    thread = threading.Thread(target=lambda: kinds.append(client.answer()))
    thread.start()
    while thread.is_alive():
        try:
            client.send(b"K", int(number))
        except OSError:
            break
        thread.join(0.5)
    thread.join()
    return kinds[0]


def test_others_are_served_and_a_signal_ends_it(idmap):
    idmap.forget()
    live = Live(idmap)
    client = start_huge(live)
    for _ in range(3):
        began = time.monotonic()
        assert live.verb("status")["pid"] == live.pid
        assert time.monotonic() - began < 5
    waits = live.client()
    null = os.open("/dev/null", os.O_RDWR)
    waits.execute("/bin/true", cwd=idmap.work, fds=(null, null, null))
    goes = live.client()
    goes.execute("/bin/true", cwd=idmap.work, fds=(null, null, null))
    goes.close()
    os.close(null)
    kind, fields, _ = ended(waits, signal.SIGINT)
    assert (kind, fields[0]) == (b"F", b"125")
    assert b"recorded" in fields[1]
    kind, fields, _ = ended(client, signal.SIGTERM)
    assert (kind, fields[0]) == (b"F", b"125")
    assert b"signal 15" in fields[1]
    assert live.verb("status")["lives"] is False
    (end,) = live.lines("command_end")
    assert end["body"]["exit"] == 0
    assert live.end().returncode == 0
    assert idmap.substrate("discard", "--yes").returncode == 0
    assert idmap.substrate("-c", "echo on").stdout == b"on\n"
    idmap.verify()


def test_a_client_that_goes_and_the_end_of_the_session_end_it(idmap):
    idmap.forget()
    live = Live(idmap)
    client = start_huge(live)
    client.close()
    until(lambda: live.verb("status")["lives"] is False)
    # the next command records it first of all, and may be ended as well
    waits = live.client()
    null = os.open("/dev/null", os.O_RDWR)
    waits.execute("/bin/true", cwd=idmap.work, fds=(null, null, null))
    os.close(null)
    until(lambda: live.verb("status")["recording"])
    began = time.monotonic()
    assert live.end().returncode == 0
    assert time.monotonic() - began < 30
    kind, _, _ = waits.answer()
    assert kind == b"F"
    assert idmap.substrate("discard", "--yes").returncode == 0
    idmap.verify()


def test_what_waited_runs_when_it_is_recorded(idmap):
    idmap.forget()
    live = Live(idmap)
    done = []
    first = threading.Thread(target=lambda: done.append(live.sh("truncate -s 3G large")))
    first.start()
    until(lambda: live.verb("status")["recording"])
    assert live.sh("stat -c %s large").out == b"3221225472\n"
    first.join()
    assert (done[0].kind, done[0].outcome["changes"]["added"]) == (b"E", 1)
    live.end()
    idmap.verify()


def test_a_session_ends_while_a_command_has_not_begun(idmap):
    """One that is stopped before its exec: neither the client's going nor the session's end wait for it."""
    idmap.forget()
    live = Live(idmap)
    null = os.open("/dev/null", os.O_RDWR)
    text = (
        "import os, signal\n"
        "while True:\n"
        "  for name in os.listdir('/proc'):\n"
        "    if name.isdigit() and int(name) not in (1, os.getpid(), os.getppid()):\n"
        "      try: os.kill(int(name), signal.SIGSTOP)\n"
        "      except OSError: pass\n"
        "  try: print('on', flush=True)\n"
        "  except OSError: pass\n"
    )
    out, put = os.pipe()
    stops = live.client()
    stops.execute("/usr/bin/python3", "-c", text, cwd=idmap.work, fds=(null, put, null))
    os.close(put)
    assert stops.receive()[0] == b"A"
    assert os.read(out, 2) == b"on"
    reader = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(out, 65536), b"")])
    reader.start()
    waits = live.client()
    waits.execute("/bin/true", cwd=idmap.work, fds=(null, null, null))
    os.close(null)
    until(lambda: len(live.verb("status")["commands"]) == 2)
    began = time.monotonic()
    assert live.end().returncode == 0
    assert time.monotonic() - began < 25  # not the half minute that a start may take
    reader.join()
    os.close(out)
    stops.close()
    waits.close()
    idmap.verify()


def test_a_signal_reaches_the_whole_group(idmap):
    idmap.forget()
    live = Live(idmap)
    out, put = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    client = live.client()
    text = "(trap 'echo inner; exit' TERM; echo on; while :; do sleep 0.02; done) | cat; :"
    client.execute("/bin/sh", "-c", text, cwd=idmap.work, fds=(null, put, null))
    os.close(put)
    os.close(null)
    assert client.receive()[0] == b"A"
    assert os.read(out, 10) == b"on\n"
    client.send(b"K", int(signal.SIGTERM))
    kind, fields, _ = client.answer()
    assert (kind, fields[0]) == (b"E", b"143")
    os.close(out)
    live.end()
    idmap.verify()
