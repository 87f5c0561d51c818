"""What an apply tells of its changes: pure values in, text and objects out."""

from substrate.cli import apply
from substrate.session.applying import Review
from substrate.world.change import ADDED, Change, summary


def result(*paths):
    changes = tuple(Change(path, ADDED, None, None, 0) for path in paths)
    review = Review(changes=changes, counts=summary(changes), conflicts=(), dangers=())
    return apply.Result(
        world="w1", workspace=b"/w", outcome="applied", review=review, done=None, recovered=None
    )


def test_paths_outside_of_the_workspace_are_named():
    assert result(b"/w/a", b"/w").outside == []
    assert result(b"/w/a", b"/etc/x", b"/wa").outside == [b"/etc/x", b"/wa"]
