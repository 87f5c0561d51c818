"""Which paths a diff is about: the answer for a whole directory is that for each name in it."""

from hypothesis import example, given
from hypothesis import strategies as st

from substrate.world.layers import LayerStack, OverlayMount
from substrate.world.scope import Scope

NAMES = (b"tmp", b"var", b"w", b"tmpx")
paths = st.lists(st.sampled_from(NAMES), max_size=4).map(lambda parts: b"/" + b"/".join(parts))


@given(
    directory=paths,
    name=st.sampled_from(NAMES),
    workspace=paths,
    targets=st.sets(paths, max_size=3),
    scratch=st.sets(paths, max_size=2),
)
@example(
    directory=b"/tmp/w", name=b"w", workspace=b"/tmp/w", targets={b"/tmp/w/tmp"}, scratch={b"/tmp"}
)
@example(directory=b"/var", name=b"tmp", workspace=b"/w", targets=set(), scratch={b"/var/tmp"})
def test_a_directory_holds_all_only_if_each_name_in_it_is_held(
    directory, name, workspace, targets, scratch
):
    mounts = [OverlayMount(index=0, target=b"/")]
    mounts += [OverlayMount(index=n, target=t) for n, t in enumerate(sorted(targets - {b"/"}), 1)]
    stack = LayerStack(
        directory=b"/layers",
        mounts=tuple(mounts),
        started_ns=0,
        workspace=workspace,
        scratch=tuple(sorted(scratch)),
    )
    scope = Scope(stack, include_scratch=False)
    scope.limits(mounts[0])
    if scope.holds_all_below(directory):
        path = directory.rstrip(b"/") + b"/" + name
        assert scope.holds(path)
        assert scope.holds_all_below(path)


def test_an_ordinary_directory_holds_all_and_one_with_a_boundary_in_it_does_not():
    mounts = (OverlayMount(index=0, target=b"/"), OverlayMount(index=1, target=b"/srv/data"))
    stack = LayerStack(
        directory=b"/layers", mounts=mounts, started_ns=0, workspace=b"/tmp/w", scratch=(b"/tmp",)
    )
    scope = Scope(stack, include_scratch=False)
    scope.limits(mounts[0])
    answers = {d: scope.holds_all_below(d) for d in (b"/home", b"/tmp/w", b"/", b"/srv", b"/tmp")}
    assert answers == {b"/home": True, b"/tmp/w": True, b"/": False, b"/srv": False, b"/tmp": False}
