"""Forked children that are free to lock themselves up."""

import os
import traceback

import pytest


def in_child(action):
    """Runs `action` in a forked child and returns its integer result; a traceback fails."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = b"died"
        try:
            os.close(readable)
            text = str(int(action())).encode()
        except BaseException:  # noqa: BLE001 - the edge of a process
            text = traceback.format_exc().encode()
        finally:
            os.write(writable, text)
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    assert text.lstrip("-").isdigit(), text
    return int(text)


@pytest.fixture(name="in_child")
def in_child_fixture():
    return in_child
