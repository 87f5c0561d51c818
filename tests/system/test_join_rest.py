"""What the end of a world has left to do, when its command was answered: whoever comes or goes meanwhile."""

import os
import signal
import threading
import time

import pytest

from tests.system.test_join import Live, until


def zygote_of(live):
    holder = int((live.session / "world/running").read_bytes().split()[0])
    with open(f"/proc/{holder}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def asked(live, *words, stdin=None):
    null = os.open("/dev/null", os.O_RDWR)
    client = live.client()
    fds = (null if stdin is None else stdin, null, null)
    client.execute(*words, cwd=live.caller.work, fds=fds)
    os.close(null)
    return client


@pytest.mark.parametrize("how", ["goes", "signal", "end"])
def test_who_waits_for_the_end_of_a_world_and_goes_does_not_end_that(idmap, how):
    idmap.forget()
    live = Live(idmap)
    out, put = os.pipe()
    first = asked(live, "/bin/sh", "-c", "read go; truncate -s 400M large", stdin=out)
    os.close(out)
    assert first.receive()[0] == b"A"
    zygote = zygote_of(live)
    os.kill(zygote, signal.SIGSTOP)  # a world's end takes as long as it takes
    try:
        os.write(put, b"go\n")
        os.close(put)
        until(lambda: live.verb("status")["recording"])
        second = asked(live, "/bin/sleep", "60")
        assert first.answer()[0] == b"E"
        until(lambda: live.verb("status")["recording"])
        began = time.monotonic()
        if how == "goes":
            second.close()
        elif how == "signal":
            second.send(b"K", int(signal.SIGTERM))
        else:
            ending = threading.Thread(target=live.end)
            ending.start()
        live.verb("status") if how != "end" else time.sleep(0.5)
    finally:
        os.kill(zygote, signal.SIGCONT)
    if how == "end":
        ending.join()
        assert time.monotonic() - began < 5
    else:
        assert live.sh("stat -c %s large").out == b"419430400\n"
        live.end()
    if how != "goes":
        _, fields, _ = second.answer()
        assert b"fault" not in b" ".join(fields), fields
    assert "fault" not in (live.session / "log").read_text()
    assert "AttributeError" not in (live.session / "log").read_text()
    (diff,) = live.lines("fs_diff")
    assert idmap.substrate("diff", "--stat").stdout.count(b"large") == 1
    assert idmap.substrate("-c", "true").returncode == 0
    (diff,) = live.lines("fs_diff")  # once, by the command that it is of
    assert diff["span_id"] == live.lines("command_start")[0]["span_id"]
    idmap.verify()
