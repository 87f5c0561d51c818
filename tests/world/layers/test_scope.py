"""Which paths a diff is about: the answer for a whole directory is that for each name in it."""

from hypothesis import example, given
from hypothesis import strategies as st

from substrate.world.layers import LayerStack, OverlayMount
from substrate.world.scope import Scope, cache_roots, is_within

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
    path = directory.rstrip(b"/") + b"/" + name
    if scope.holds_all_below(directory):
        assert scope.holds(path)
        assert scope.holds_all_below(path)
    if scope.holds(path):
        assert scope.may_hold(path)
        assert scope.may_hold(directory)
    inside = [s for s in scratch if is_within(path, s)]
    listed = all(is_within(workspace, s) and is_within(path, workspace) for s in inside)
    assert scope.holds(path) == (listed and path not in targets - {b"/"})


def test_an_ordinary_directory_holds_all_and_one_with_a_boundary_in_it_does_not():
    mounts = (OverlayMount(index=0, target=b"/"), OverlayMount(index=1, target=b"/srv/data"))
    stack = LayerStack(
        directory=b"/layers", mounts=mounts, started_ns=0, workspace=b"/tmp/w", scratch=(b"/tmp",)
    )
    scope = Scope(stack, include_scratch=False)
    scope.limits(mounts[0])
    answers = {d: scope.holds_all_below(d) for d in (b"/home", b"/tmp/w", b"/", b"/srv", b"/tmp")}
    assert answers == {b"/home": True, b"/tmp/w": True, b"/": False, b"/srv": False, b"/tmp": False}


def test_caches_are_outside_also_where_the_workspace_is_the_home():
    caches = cache_roots(b"/home/you", b"/var/cache/you")
    assert b"/home/you/.cache" in caches and b"/var/cache/you" in caches
    assert cache_roots(b"/home/you", b"relative") == cache_roots(b"/home/you", None)
    for workspace, listed in ((b"/home/you", False), (b"/home/you/.cache/x", True)):
        stack = LayerStack(
            directory=b"/layers",
            mounts=(OverlayMount(index=0, target=b"/"),),
            started_ns=0,
            workspace=workspace,
            scratch=caches,
        )
        scope = Scope(stack, include_scratch=False)
        scope.limits(stack.mounts[0])
        assert scope.holds(b"/home/you/.cache/x/file") is listed
        assert not scope.holds(b"/home/you/.cache/y")
        assert scope.holds(b"/home/you/project/file")
        assert not scope.holds_all_below(b"/home/you")
        assert scope.may_hold(b"/home/you")
