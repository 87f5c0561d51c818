"""What is made of a client's streams: nothing that can keep the supervisor waiting."""

import os
import resource

import pytest

from substrate.errors import SessionBusy
from substrate.session.client_fds import ClientFds


def test_a_pipe_with_a_name_is_not_waited_for(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    fds = ClientFds((-1, os.dup(writer), -1))
    try:
        assert not os.get_blocking(fds.fds[1])
        assert os.get_blocking(writer)  # the client's own stays as it was
    finally:
        fds.close()
        os.close(reader)
        os.close(writer)


def held():
    return len(os.listdir("/proc/self/fd"))


def let_go(fds):
    fds.end_output()
    for done in fds.relays:
        assert os.read(done, 1) == b""  # its thread has closed the rest
    fds.close()


def kept_waiting():
    """A terminal's other side can be opened by no name: a thread has to copy."""
    return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)


def test_more_streams_than_threads_leave_nothing_behind():
    given, before, all_of_them = kept_waiting(), 0, []
    with pytest.raises(SessionBusy):
        for _ in range(60):
            before = held()
            all_of_them.append(ClientFds((-1, os.dup(given), -1)))
    assert held() == before and len(all_of_them) == 48
    for fds in all_of_them:
        let_go(fds)
    os.close(given)


def test_a_stream_for_which_there_are_no_descriptors_leaves_nothing_behind():
    given = kept_waiting()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for room in range(6):
        for _ in range(60):  # more than there are threads
            own = os.dup(given)
            before = held()
            resource.setrlimit(resource.RLIMIT_NOFILE, (own + 1 + room, hard))
            try:
                fds = ClientFds((-1, own, -1))
            except OSError:
                fds = None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if fds is None:
                assert held() == before - 1
            else:
                let_go(fds)
    os.close(given)
