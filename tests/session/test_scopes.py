"""What a policy and settings come to together: pure cases of joining, and a workspace that is looked through."""

import os

import pytest

from substrate.errors import ConfigError, PolicyDenied
from substrate.session import fs_scopes
from substrate.session.net_rules import net_plan, plain_ports
from substrate.session.scopes import (
    are_plain,
    key_of,
    layer_of,
    locked_by,
    plain_port,
    scopes_of,
    what_differs,
)
from substrate.session.settings import FlagUse, load_settings, places
from substrate.session.workspace import find_workspace
from substrate.world.egress.ports import ports_of
from substrate.world.egress.rule import parse_rule
from tests.policy.conftest import ground

__all__ = ["ground"]

FINAL = 'final = true\nextends = "builtin:locked-down"\n[net]\nallow = ["a.example"]\ndeny = ["x.example"]\n'


def flag(name, key, text):
    return FlagUse(name=name, key=key, text=text)


def settings_of(place, *flags):
    where = places(place.environ, os.fsencode(place.work), os.fsencode(place.work))
    return load_settings(flags, place.environ, where, on_terminal=False).settings


def come_to(place, *flags, in_world=True, **more):
    workspace = find_workspace(os.fsencode(place.work))
    return scopes_of(place.load(**more), settings_of(place, *flags), workspace, in_world=in_world)


ALLOW = flag("--allow", "net.allow", "b.example")


def test_without_rules_the_settings_are_as_they_were(ground):
    ground.user_file('extends = "builtin:locked-down"\n')
    before = settings_of(ground, ALLOW)
    found = come_to(ground, ALLOW)
    assert found.settings.net_allow == before.net_allow == ("b.example",)
    assert found.eager  # as ever, where a flag allows something
    assert found.settings.limits == before.limits
    assert dict(found.told).keys() == {"read_deny", "write"}


def test_flags_allow_more_than_the_policy_and_its_deny_wins(ground):
    ground.user_file('[net]\nallow = ["a.example"]\ndeny = ["b.example"]\n')
    found = come_to(ground, ALLOW)
    assert found.settings.net_allow[:1] == ("b.example",)
    assert "a.example" in found.settings.net_allow and "pypi.org:443" in found.settings.net_allow
    assert found.settings.net_deny == ("b.example",)


def test_names_alone_wait_for_the_first_packet(ground):
    assert not come_to(ground).eager
    assert come_to(ground, ALLOW).eager
    ground.user_file('[net]\nallow = ["203.0.113.0/24"]\n')
    assert come_to(ground).eager


def test_an_untrusted_project_only_tightens(ground):
    ground.user_file('[net]\nallow = ["a.example"]\n[limits]\npids = 100\nruntime = "1m"\n')
    ground.project(
        '[net]\nallow = ["evil.example"]\ndeny = ["a.example"]\n'
        '[limits]\npids = 1000\nruntime = "10s"\nmemory = "1g"\n'
    )
    found = come_to(ground)
    assert "evil.example" not in found.settings.net_allow
    assert found.settings.net_deny == ("a.example",)
    limits = found.settings.limits
    assert (limits.pids, found.settings.timeout_s, limits.memory_bytes) == (100, 10.0, 1 << 30)
    told = dict(found.told)["limits"]
    assert told["pids"] == {"value": 100, "layer": "~/.config/substrate/policy.toml"}
    assert told["runtime_us"]["value"] == 10_000_000
    assert told["runtime_us"]["layer"].endswith("work/.substrate/policy.toml")


def test_a_final_layer_locks_what_flags_could_open(ground):
    ground.system(FINAL)
    ground.user_file('[net]\nallow = ["user.example"]\n')
    private = flag("--private", "net.private", "10.0.0.0/8")
    port = flag("--host-port", "net.host_ports", "5432")
    found = come_to(ground, ALLOW, private, port)
    assert found.settings.net_allow == ("a.example",)
    assert (found.settings.net_private, found.settings.host_ports) == ((), ())
    assert len(found.notes) == 3 and all("is final" in note for note in found.notes)
    assert "b.example" in found.notes[0]
    assert locked_by(ground.policy()) == os.fsdecode(ground.system_file)


@pytest.mark.parametrize(
    "given",
    [flag("--net", "net.mode", "host"), flag("--net", "net.mode", "veth"),
     flag("--no-world", "world", "disabled")],
)  # fmt: skip
def test_a_final_layer_keeps_its_network(ground, given):
    ground.system(FINAL)
    with pytest.raises(PolicyDenied, match="is final"):
        come_to(ground, given, in_world=given.key != "world")


def test_a_final_layer_lets_flags_tighten(ground):
    ground.system(FINAL)
    deny = flag("--deny", "net.deny", "a.example")
    assert come_to(ground, deny).settings.net_deny == ("a.example", "x.example")
    none = come_to(ground, flag("--net", "net.mode", "none"))
    assert none.settings.net == "none"


def test_an_untrusted_projects_final_locks_nothing(ground):
    ground.project("final = true\n")
    assert locked_by(ground.policy()) == ""
    assert "b.example" in come_to(ground, ALLOW).settings.net_allow


def test_the_hosts_network_is_told_as_not_held(ground):
    ground.user_file('[net]\ndeny = ["x.example"]\n[limits]\negress = "1m"\n')
    found = come_to(ground, flag("--net", "net.mode", "host"))
    assert "[net] of the policy does not hold here: --net host" in found.notes
    assert [name for name, _ in found.unheld] == ["egress_bytes"]
    (held,) = found.holds("off", in_world=True)
    assert (held.by, held.soft) == ("none", True)


def test_a_routed_network_keeps_to_what_is_denied(ground):
    ground.user_file('[net]\nallow = ["a.example"]\ndeny = ["203.0.113.0/24"]\n')
    found = come_to(ground, flag("--net", "net.mode", "veth"))
    assert found.settings.net_allow == ()
    assert found.settings.net_deny == ("203.0.113.0/24",)


@pytest.mark.parametrize(
    ("given", "asked", "comes_to"),
    [("30s", "1m", 30.0), ("30s", "10s", 10.0), ("30s", "0", 30.0)],
)
def test_the_smaller_time_wins(ground, given, asked, comes_to):
    ground.user_file(f'[limits]\nruntime = "{given}"\n')
    assert come_to(ground, flag("--timeout", "timeout", asked)).settings.timeout_s == comes_to


@pytest.mark.parametrize(
    ("key", "text", "field", "comes_to"),
    [
        ("limits.memory", "100m", "memory_bytes", 100 << 20),
        ("limits.memory", "9g", "memory_bytes", 1 << 30),
        ("limits.disk", "9g", "disk_bytes", 2 << 30),
        ("limits.pids", "60", "pids", 60),
        ("limits.pids", "600", "pids", 500),
    ],
)
def test_the_smaller_limit_wins(ground, key, text, field, comes_to):
    ground.user_file('[limits]\nmemory = "1g"\ndisk = "2g"\npids = 500\n')
    assert getattr(come_to(ground, flag("--limit", key, text)).settings.limits, field) == comes_to


def test_a_limit_too_low_to_start_with_names_its_layer(ground):
    ground.user_file("[limits]\npids = 1\n")
    with pytest.raises(ConfigError, match=r"~/.config/substrate/policy.toml: limits.pids: "):
        come_to(ground)


@pytest.mark.parametrize(("gate", "by"), [("strict", "gate"), ("racy", "gate"), ("off", "none")])
def test_programs_are_counted_where_there_is_a_gate(ground, gate, by):
    ground.user_file("[limits]\nexecs = 5\n")
    (held,) = come_to(ground).holds(gate, in_world=True)
    assert (held.limit, held.by, held.soft) == ("execs", by, by == "none")


def test_a_group_is_told_with_its_hosts_and_layer(ground):
    (row, *_) = dict(come_to(ground).told)["net"]["allow"]
    assert row["rule"] == "@pip" and row["layer"] == "builtin:coding-agent"
    assert "pypi.org:443" in row["hosts"]
    assert layer_of(ground.policy(), "allow", "nowhere") == ""


def test_a_world_will_do_for_what_differs_only_in_times_and_hidden_paths(ground):
    one = come_to(ground, flag("--timeout", "timeout", "5")).settings
    two = come_to(ground, flag("--hide", "hide", "/etc/hostname")).settings
    assert key_of(one) == key_of(two)
    assert key_of(one) != key_of(come_to(ground, ALLOW).settings)
    before = ground.policy()
    ground.user_file('[net]\ndeny = ["a.example"]\n[limits]\nruntime = "5s"\n')
    assert what_differs(before, ground.policy()) == ("[net]",)


# --- rules of plain names


@pytest.mark.parametrize(
    ("rule", "port"),
    [("a.example", 0), ("a.example:443", 443), ("*.example:80", 80), ("*", 0), ("localhost:1", 1)],
)
def test_a_plain_rule(rule, port):
    assert plain_port(rule) == port


@pytest.mark.parametrize(
    "rule",
    ["203.0.113.7", "10.0.0.0/8:5432", "[2001:db8::1]:443", "2001:db8::1", "tls://a.example", "a:1-2",
     "0x7f.1", "a.example:", "127.1", "1"],
)  # fmt: skip
def test_what_is_not_plain_or_may_not_be(rule):
    assert plain_port(rule) is None
    assert not are_plain(["a.example", rule])


def test_plain_ports_are_what_the_reader_of_rules_says():
    rules = ["a.example", "b.example:443", "c.example:22", "*.d.example:8080"]
    assert plain_ports(rules) == ports_of([parse_rule(rule, "allow") for rule in rules]).numbers
    assert plain_ports([f"h.example:{port}" for port in range(1, 50)]) is None


def test_the_plan_of_plain_names_has_no_ranges(ground):
    plan = net_plan(come_to(ground).settings, "ns-user")
    assert (plan.ranges, plan.ports) == ((), (80, 443))


# --- what is not to be read


def hiding(place, *patterns, walk=True):
    listed = ", ".join(f'"{pattern}"' for pattern in patterns)
    place.user_file(f'extends = "builtin:observe"\n[fs]\nread_deny = [{listed}]\n')
    return fs_scopes.unreadable(place.policy(), os.fsencode(place.work), walk=walk)


def test_a_pattern_is_found_as_deep_as_it_lies(ground):
    deep = ground.work / "a/b/c/d/e/f"
    deep.mkdir(parents=True)
    (deep / ".env").write_text("secret")
    found = hiding(ground, "**/.env")
    assert found.hidden == (os.fsencode(deep / ".env"),)
    assert found.told["complete"] and found.told["later"]


def test_a_link_of_a_tree_covers_only_what_is_the_users(ground):
    (ground.work / "keys").mkdir()
    (ground.work / "keys/real").write_text("secret")
    (ground.work / "in.env").symlink_to("keys/real")
    (ground.work / "out.env").symlink_to("/etc/passwd")
    (ground.work / "root.env").symlink_to("/")
    (ground.work / "up.env").symlink_to("..")
    (ground.work / "self.env").symlink_to(".")
    (ground.work / "gone.env").symlink_to("nowhere")
    (ground.work / "loop.env").symlink_to("loop.env")
    found = hiding(ground, "**/*.env")
    assert found.hidden == (os.fsencode(ground.work / "keys/real"),)
    left = {each["path"].rpartition("/")[2]: each["why"] for each in found.told["left_open"]}
    assert left.keys() == {"out.env", "root.env", "up.env", "self.env", "gone.env", "loop.env"}
    assert "out of the workspace" in left["out.env"]
    assert "link to nowhere" in left["gone.env"]


def test_a_walk_follows_no_link(ground):
    outside = ground.user / "elsewhere"
    outside.mkdir()
    (outside / ".env").write_text("")
    (ground.work / "linked").symlink_to(outside)
    assert hiding(ground, "**/.env").hidden == ()


def test_a_name_beside_is_told(ground):
    (ground.work / ".env").write_text("secret")
    os.link(ground.work / ".env", ground.work / "other")
    found = hiding(ground, "**/.env")
    assert found.told["other_names"] == 1
    assert "a hard link" in found.notes[0]


def test_what_could_not_be_looked_through_is_told(ground, monkeypatch):
    for number in range(5):
        (ground.work / f"f{number}").write_text("")
    monkeypatch.setattr(fs_scopes.FsPaths.look, "__defaults__", (2,))
    found = hiding(ground, "**/.env")
    assert not found.told["complete"]
    assert "too large to be looked through" in found.notes[0]


def test_more_than_can_be_covered_is_an_error(ground, monkeypatch):
    for number in range(4):
        (ground.work / f"{number}.env").write_text("")
    monkeypatch.setattr(fs_scopes, "MOST_FOUND", 3)
    with pytest.raises(ConfigError, match="means 4 files"):
        hiding(ground, "**/*.env")


def test_a_place_in_the_home_needs_no_walk(ground):
    (ground.user / ".secret").write_text("")
    found = hiding(ground, "/nowhere/at/all", "/etc/hostname", walk=False)
    assert found.hidden == (b"/nowhere/at/all", b"/etc/hostname")
    assert "complete" not in found.told


# --- where an apply may write


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("work", True),
        ("work/a/b", True),
        ("workshop", False),
        ("user/x", False),
        ("user/in/x", True),
    ],
)
def test_what_may_be_applied(ground, path, may):
    ground.user_file('[fs]\nwrite = ["$PWD/**", "~/in/**"]\n')
    policy = ground.policy()
    rows = fs_scopes.writes_of(policy, os.fsencode(ground.work), os.fsencode(ground.user))
    base = os.fsencode(ground.work.parent)
    assert any(row.may_apply(base + b"/" + path.encode()) for row in rows) is may
    assert fs_scopes.write_rule(policy) == "fs.write of ~/.config/substrate/policy.toml"


def test_a_link_in_a_project_does_not_lead_its_rule_elsewhere(ground):
    (ground.work / "sub").symlink_to("/etc")
    ground.user_file('[fs]\nwrite = ["$PWD/**"]\n')
    ground.project('[fs]\nwrite = ["$PWD/sub/**"]\n')
    policy = ground.policy()
    (row,) = fs_scopes.writes_of(policy, os.fsencode(ground.work), os.fsencode(ground.user))
    assert not row.may_apply(b"/etc/passwd")
    assert fs_scopes.write_rule(policy).endswith("work/.substrate/policy.toml")


@pytest.mark.parametrize(
    "given",
    [flag("--capture", "capture", "off"), flag("--shell-only", "shell_only", "true")],
    ids=lambda use: use.key,
)
def test_a_final_layer_keeps_what_holds_its_rules(ground, given):
    """Without capture there is no gate; in a workspace that is the host's own nothing waits for an apply."""
    ground.system(FINAL + '[[command]]\nmatch = ["rm", "**"]\naction = "deny"\n')
    with pytest.raises(PolicyDenied, match="is final"):
        come_to(ground, given)


def test_a_final_layer_leaves_nothing_uncovered_by_a_flag(ground):
    ground.system(FINAL)
    found = come_to(
        ground,
        flag("--show", "show", str(ground.work)),
        flag("--userns", "userns", "true"),
        flag("--ptrace", "ptrace", "true"),
    )
    settings = found.settings
    assert (settings.show, settings.userns, settings.ptrace) == ((), False, False)
    assert len(found.left_out) == 3 and all("is final" in text for text in found.left_out)


def test_a_world_that_writes_the_workspace_does_not_say_what_holds_the_next_one(ground):
    """Its git configuration would name hosts, and its policy would be gone."""
    ground.user_file('extends = "builtin:coding-agent"\n[fs]\nwrite = ["$PWD/src/**"]\n')
    ground.project('[net]\ndeny = ["x.example"]\n')
    (ground.work / ".git").mkdir(exist_ok=True)
    (ground.work / ".git/config").write_text('[remote "x"]\nurl = https://evil.example/x\n')
    assert "evil.example:443" in come_to(ground).settings.net_allow
    found = come_to(ground, flag("--shell-only", "shell_only", "true"))
    assert "evil.example:443" not in found.settings.net_allow
    assert found.settings.ro == (os.fsencode(ground.work / ".substrate"),)
    assert any("@git-remotes" in note for note in found.notes)
    assert any("fs.write" in note and "--shell-only" in note for note in found.notes)
    assert not dict(found.told)["net"]["allow"][-1].get("hosts")


def test_a_pattern_through_a_link_covers_what_it_leads_to(ground, monkeypatch):
    """A home is often a link (/home to /var/home); the walk of the workspace meets real paths alone."""
    work = ground.work
    (work / "real").mkdir()
    for name in (".env", "real/.env"):
        (work / name).write_text("secret")
    (work / "link").symlink_to("real")
    home = work.parent / "link-to-home"
    home.symlink_to(work.parent)
    monkeypatch.setenv("HOME", str(home))
    for pattern, covered in (
        (f"~/{work.name}/.en?", ".env"),
        (f"{home}/{work.name}/.en?", ".env"),
        ("$PWD/link/.en?", "real/.env"),
    ):
        ground.user_file(f'[fs]\nread_deny = ["{pattern}"]\n')
        hiding = fs_scopes.unreadable(ground.policy(), os.fsencode(work))
        assert hiding.hidden == (os.fsencode(work / covered),), pattern
        assert not hiding.notes


def test_a_pattern_of_another_place_is_told_as_not_held(ground):
    ground.user_file('[fs]\nread_deny = ["/opt/*/token"]\n')
    hiding = fs_scopes.unreadable(ground.policy(), os.fsencode(ground.work))
    assert hiding.hidden == ()
    (left,) = hiding.told["left_open"]
    assert left["path"] == "/opt/*/token" and "workspace alone" in left["why"]
    assert "does not cover /opt/*/token" in hiding.notes[0]
