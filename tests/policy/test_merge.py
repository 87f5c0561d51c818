"""What is in force of several layers, and that no project loosens anything."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.policy.merge import digest_of, is_within, merge
from substrate.policy.rules import (
    ACTIONS,
    BUILTIN,
    PROJECT,
    USER,
    ApprovalRules,
    CommandRule,
    FsRules,
    Layer,
    LimitRules,
    NetRules,
)


def layer(kind=USER, name="it", **fields):
    return Layer(kind=kind, name=name, digest="0" * 64, **fields)


BASE = layer(
    BUILTIN,
    default_action="allow",
    net=NetRules(allow=("a.example",), deny=("b.example",)),
    fs=FsRules(write=(b"$PWD/**",), read_deny=(b"~/.ssh/**",)),
    limits=LimitRules(pids=100, runtime_s=60.0),
    approval=ApprovalRules(timeout_s=60.0, without_terminal="deny"),
)

#: the machine that runs this has other work, too
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def project(**fields):
    return layer(PROJECT, "the project", trusted=False, **fields)


def test_a_user_replaces_and_adds():
    policy = merge(
        [
            BASE,
            layer(
                default_action="deny",
                net=NetRules(allow=("b.example", "c.example"), deny=("d.example",)),
                fs=FsRules(write=(b"/srv/**",), read_deny=(b"~/.aws/**",)),
                limits=LimitRules(pids=500, execs=7),
                approval=ApprovalRules(without_terminal="allow"),
                allow_operators=False,
                require=("gate",),
            ),
        ]
    )
    assert policy.default_action == "deny"
    assert policy.net == NetRules(
        allow=("a.example", "b.example", "c.example"), deny=("d.example",)
    )
    assert policy.fs == FsRules(write=(b"/srv/**",), read_deny=(b"~/.ssh/**", b"~/.aws/**"))
    assert policy.limits == LimitRules(pids=500, runtime_s=60.0, execs=7)
    assert policy.approval == ApprovalRules(timeout_s=60.0, without_terminal="allow")
    assert (policy.allow_operators, policy.require, policy.ignored) == (False, ("gate",), ())


def test_a_project_tightens():
    policy = merge(
        [
            BASE,
            project(
                default_action="ask",
                net=NetRules(allow=("a.example",), deny=("a.example",)),
                fs=FsRules(write=(b"$PWD/src/**",), read_deny=(b"**/.env",)),
                limits=LimitRules(pids=10, egress_bytes=5),
                approval=ApprovalRules(timeout_s=5.0),
                allow_operators=False,
                require=("gate",),
            ),
        ]
    )
    assert policy.ignored == ()
    assert policy.default_action == "ask"
    assert policy.net.deny == ("b.example", "a.example")
    assert policy.fs == FsRules(write=(b"$PWD/src/**",), read_deny=(b"~/.ssh/**", b"**/.env"))
    assert policy.limits == LimitRules(pids=10, runtime_s=60.0, egress_bytes=5)
    assert (policy.allow_operators, policy.require) == (False, ("gate",))
    assert policy.approval.timeout_s == 5


def test_a_project_loosens_nothing_and_is_told_so():
    rule = CommandRule(name="project command[1]", place="", action="allow", match=(b"x",))
    policy = merge(
        [
            layer(BUILTIN, default_action="ask"),
            BASE,
            layer(default_action="ask", allow_operators=False),
            project(
                default_action="allow",
                commands=(rule,),
                net=NetRules(allow=("evil.example", "b.example")),
                fs=FsRules(write=(b"/etc/**", b"$PWD/x")),
                limits=LimitRules(pids=1000, runtime_s=61.0),
                approval=ApprovalRules(
                    timeout_s=100.0, without_terminal="allow", webhook="https://evil.example/"
                ),
                allow_operators=True,
            ),
        ]
    )
    assert policy.default_action == "ask"
    assert policy.net == BASE.net
    assert policy.fs.write == (b"$PWD/x",)
    assert policy.limits == BASE.limits
    assert policy.approval == BASE.approval
    assert policy.allow_operators is False
    told = "\n".join(policy.ignored)
    for key in (
        *("default_action", "net.allow", "fs.write", "limits.pids", "limits.runtime"),
        *("approval.timeout", "approval.without_terminal", "approval.webhook"),
        *("shell.allow_operators", "1 rule that allows"),
    ):
        assert f"the project: {key}" in told
    assert told.count("until it is trusted (`substrate policy trust`)") == 10


def test_a_trusted_project_counts_as_a_user_does():
    policy = merge([BASE, layer(PROJECT, trusted=True, limits=LimitRules(pids=1000))])
    assert policy.limits.pids == 1000


def test_the_digest_tells_trust_apart():
    one, two = (layer(PROJECT, trusted=trusted) for trusted in (True, False))
    assert digest_of([one]) != digest_of([two])
    assert digest_of([one, two]) != digest_of([two, one])


def test_what_is_within():
    for inner, outer in (
        (b"$PWD/**", b"$PWD/**"),
        (b"$PWD/src/*.c", b"$PWD/**"),
        (b"/etc/**", b"**"),
        (b"/tmp/a[0-9]/**", b"/tmp/**"),
    ):
        assert is_within(inner, outer), inner
    for inner, outer in (
        (b"/etc/**", b"$PWD/**"),
        (b"**", b"$PWD/**"),
        (b"/tmpx/**", b"/tmp/**"),
        (b"/t*/x", b"/tmp/**"),
        (b"$PWD", b"$PWD/**"),
        (b"/tmp/x", b"/t*/**"),
        (b"/tmp/x", b"/tmp/*"),
    ):
        assert not is_within(inner, outer), inner


MAYBE = st.one_of(st.none(), st.integers(1, 5))
PATTERNS = st.lists(
    st.sampled_from([b"**", b"/a/**", b"/a/b/**", b"/a/b", b"/c/*"]), max_size=3, unique=True
).map(tuple)
#: from the laxest to the strictest
TERMINAL = ("allow", "wait", "deny")
LAYERS = st.builds(
    lambda action, limit, seconds, write, deny, terminal, operators: layer(
        PROJECT,
        "p",
        trusted=False,
        default_action=action,
        limits=LimitRules(pids=limit, disk_bytes=limit, execs=limit),
        approval=ApprovalRules(timeout_s=seconds, without_terminal=terminal),
        fs=FsRules(write=write),
        net=NetRules(allow=deny, deny=deny),
        allow_operators=operators,
    ),
    st.sampled_from([None, "allow", "ask", "deny"]),
    MAYBE,
    MAYBE,
    st.one_of(st.none(), PATTERNS),
    st.lists(st.sampled_from(["a.example", "z.example"]), max_size=2, unique=True).map(tuple),
    st.sampled_from([None, *TERMINAL]),
    st.sampled_from([None, True, False]),
)


def at_most(now, before):
    return before is None or (now is not None and now <= before)


@slow
@given(LAYERS, LAYERS, LAYERS)
def test_no_untrusted_layer_loosens(first, second, third):
    """The first stands for what holds already, whatever that is."""
    from substrate.values import replace

    before = [BASE, replace(first, kind=USER, trusted=None)]
    for more in (second, third):
        old, new = merge(before), merge([*before, more])
        assert ACTIONS.index(new.default_action) >= ACTIONS.index(old.default_action)
        assert at_most(new.limits.pids, old.limits.pids)
        assert at_most(new.limits.disk_bytes, old.limits.disk_bytes)
        assert at_most(new.limits.execs, old.limits.execs)
        assert at_most(new.approval.timeout_s, old.approval.timeout_s)
        said = (old.approval.without_terminal, new.approval.without_terminal)
        assert TERMINAL.index(said[1]) >= TERMINAL.index(said[0])
        assert new.allow_operators <= old.allow_operators
        assert new.net.allow == old.net.allow and set(new.net.deny) >= set(old.net.deny)
        if old.fs.write is not None:
            assert new.fs.write is not None
            assert all(any(is_within(n, o) for o in old.fs.write) for n in new.fs.write)
        before.append(more)
