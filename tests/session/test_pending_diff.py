"""A walk over layers that cannot begin is nobody's end but of who asked."""

import os
import resource

from substrate.session.loop import Waiting
from substrate.session.pending_diff import PendingDiff
from substrate.world.layers import LayerStack


class _Asker:
    def __init__(self):
        self.is_gone = self.busy = False
        self.said = []

    def fail(self, text, hint):
        self.said.append((text, hint))

    def answer(self, text):
        self.said.append(text)


def test_without_a_descriptor_left_who_asks_is_told_so(tmp_path):
    (tmp_path / "layers").mkdir()
    stack = LayerStack(
        directory=os.fsencode(tmp_path / "layers"), mounts=(), started_ns=0, workspace=b"/w"
    )
    pending, asker = PendingDiff(lambda: stack), _Asker()
    pending.ask(asker)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, hard))
    try:
        pending.wait_for(Waiting(0.0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)
    ((text, hint),) = asker.said
    assert "Too many open files" in text and "ask again" in hint
    pending.stop()
