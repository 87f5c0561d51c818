"""What is made of a client's streams: nothing that can keep the supervisor waiting."""

import os

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
