"""One file of a policy: what it may say, and what is said about what it may not."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.errors import ConfigError
from substrate.policy import rules
from substrate.policy.parse_policy import Parsed, parse_policy
from substrate.policy.rules import GIVEN, PROJECT, SYSTEM, USER

#: the machine that runs this has other work, too
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WHOLE = """
id = "default"
extends = "builtin:coding-agent"
default_action = "ask"
require = ["gate", "net"]

[[command]]
match = ["git", "push", "*"]
action = "deny"
reason = "publishing"
test = { match = ["git push origin"], not_match = ["git status"] }

[[command]]
program = "/usr/bin/curl"
sha256 = "AB00000000000000000000000000000000000000000000000000000000000000"
action = "isolate"
final = true

[fs]
write = ["$PWD/**", "/tmp/**"]
read_deny = ["~/.ssh/**", "**/.env"]
[net]
allow = ["@pip", "api.example.com:443", "*.example.net:443", "git.example.org:22"]
deny = ["169.254.169.254"]
[limits]
runtime = "10m"
memory = "4g"
pids = 512
egress = "100m"
execs = 1000
[shell]
allow_operators = false
[approval]
timeout = "60s"
without_terminal = "deny"
webhook = "https://hooks.example.com/ask"
"""


def parse(text: str, kind: str = USER) -> Parsed:
    content = text.encode() if isinstance(text, str) else text
    return parse_policy(content, kind=kind, name="it", label="user", shown="/p.toml")


def test_the_whole_file_of_the_design():
    layer = parse(WHOLE).layer
    first, second = layer.commands
    assert (layer.id, layer.extends, layer.default_action) == ("default", "coding-agent", "ask")
    assert layer.require == ("gate", "net")
    assert first.match == (b"git", b"push", b"*") and first.action == "deny"
    assert first.test == rules.Test(match=("git push origin",), not_match=("git status",))
    assert (first.name, first.place) == ("user command[1]", "/p.toml, line 7")
    assert (second.name, second.place) == ("user command[2]", "/p.toml, line 13")
    assert second.program == b"/usr/bin/curl" and second.final and second.sha256 == "ab" + "0" * 62
    assert layer.fs.write == (b"$PWD/**", b"/tmp/**")
    assert layer.limits.runtime_s == 600 and layer.limits.memory_bytes == 4 << 30
    assert layer.allow_operators is False
    assert layer.approval.timeout_s == 60
    assert parse(WHOLE).warnings == ()


RULE = '[[command]]\nmatch = ["x"]\naction = "ask"\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("id = ", "/p.toml is not TOML", ""),
        ('x = 1', "/p.toml, line 1: there is no key 'x'", "a policy has id, extends"),
        ('\ndefault_acton = "deny"', "/p.toml, line 2: there is no key 'default_acton'", "did you mean default_action?"),
        ('default_action = "block"', "line 1: default_action is 'block', expected one of allow, ask, deny", ""),
        ('default_action = "isolate"', "expected one of allow, ask, deny", ""),
        ('extends = "builtin:coding"', "extends is 'builtin:coding', expected one of builtin:observe", "did you mean builtin:coding-agent?"),
        ('extends = "/etc/x.toml"', "expected one of builtin:observe", ""),
        ('id = """a\nb"""', "id is 'a\\nb', expected a text of one line", ""),
        ("[net]\nalow = []", "/p.toml, line 2: there is no key 'net.alow'", "did you mean allow?"),
        ('[net]\nallow = "x"', "/p.toml, line 2: net.allow is 'x', expected rules such as", ""),
        ('[net]\n\nallow = ["@pipp"]', "/p.toml, line 3: net.allow is '@pipp', expected one of @pip, @npm", "did you mean @pip?"),
        ('[net]\nallow = ["exa mple"]', "net.allow is 'exa mple', expected a rule:", ""),
        ('net = "none"', "net is 'none', expected a table: [net]", ""),
        ('[[command]]\nmatch = ["x"]', "/p.toml, line 1: command[1] does not say what it needs to: expected an action", "add it"),
        ('[[command]]\naction = "ask"', "expected what it is about", ""),
        (RULE + '[[command]]\nmatch = "git push"\naction = "ask"', "/p.toml, line 5: command[2].match is 'git push', expected words such as", 'a list, one word each: ["git", "push"]'),
        ('[[command]]\nmatch = []\naction = "ask"', "command[1].match is a list of 0", ""),
        ('[[command]]\nmatch = ["x", 1]\naction = "ask"', "command[1].match is 1", ""),
        (RULE.replace("ask", "aks"), "/p.toml, line 3: command[1].action is 'aks', expected one of allow, audit, isolate, ask, deny", "did you mean ask?"),
        (RULE + 'acton = "x"', "/p.toml, line 4: there is no key 'command[1].acton'", "did you mean action?"),
        (RULE + 'program = "curl"', "command[1].program is 'curl', expected an absolute path", ""),
        (RULE + 'program = "/usr/../bin/curl"', "expected an absolute path", ""),
        (RULE + 'sha256 = "abc"', "expected 64 hexadecimal digits", ""),
        (RULE + "reason = 'a\x1b'", "is not TOML", ""),
        (RULE + 'reason = "a\\u001b"', "command[1].reason is 'a\\x1b', expected a text of one line", ""),
        (RULE + 'test = { match = ["a \'b"] }', "expected command lines", ""),
        (RULE + 'test = { mtch = ["a"] }', "there is no key 'command[1].test.mtch'", "did you mean match?"),
        ("command = 3", "command is 3, expected tables: [[command]]", ""),
        ('[fs]\nwrite = ["src/**"]', "fs.write is 'src/**', expected patterns", ""),
        ('[fs]\nwrite = ["$PWD/../x"]', "fs.write is '$PWD/../x'", ""),
        ("[limits]\npids = 0", "/p.toml, line 2: limits.pids is 0, expected one at least", ""),
        ("[limits]\npids = true", "limits.pids is true, expected a whole number", ""),
        ('[limits]\nruntime = "10 parsecs"', "limits.runtime is '10 parsecs', expected a time", ""),
        ('[limits]\nmemory = "-1"', "limits.memory is '-1', expected a size", ""),
        ("[shell]\nallow_operators = 1", "shell.allow_operators is 1, expected true or false", ""),
        ('[approval]\nwithout_terminal = "ask"', "expected one of deny, wait, allow", ""),
        ('[approval]\nwebhook = "http://example.com/"', "expected a URL", ""),
        ('[approval]\nwebhook = "https://u@/x"', "expected a URL", ""),
        ('require = ["gates"]', "require is 'gates', expected one of fs, net", "did you mean gate?"),
        (b"id = '\xff'", "/p.toml is not UTF-8 (byte 6)", ""),
        ("x = " + "9" * 5000, "a number that is too long", ""),
        ("x = " + "[" * 5000, "nested too deeply", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(text, message, hint):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.hint


def test_an_unknown_key_of_a_project_is_a_warning():
    found = parse('later = 1\n[[command]]\nmatch = ["x"]\naction = "ask"\nnew = 2\n', PROJECT)
    assert len(found.layer.commands) == 1
    assert found.warnings[0].startswith("/p.toml, line 1: there is no key 'later'; it is left out")
    assert "line 5: there is no key 'command[1].new'" in found.warnings[1]


def test_unknown_keys_of_a_project_are_told_up_to_a_bound():
    found = parse("".join(f"k{n} = 1\n" for n in range(500)), PROJECT)
    assert len(found.warnings) == 21
    assert found.warnings[-1] == "/p.toml: and 480 more keys are left out"


def test_a_project_may_not_cost_anything():
    with pytest.raises(ConfigError, match="line 2: a line of 3001 characters"):
        parse("\n" + "a." * 1498 + "b = 1", PROJECT)
    with pytest.raises(ConfigError, match="expected at most 1000"):
        parse('[[command]]\nmatch=["x"]\naction="ask"\n' * 1001, PROJECT)
    with pytest.raises(ConfigError, match="at most 64"):
        parse("[[command]]\nmatch = [" + '"x", ' * 65 + ']\naction = "ask"', PROJECT)


def test_places_of_keys_in_all_forms():
    text = '''
"limits".pids = 3
description = 4
note = """
[[command]]
"""
'''
    with pytest.raises(ConfigError, match="line 3: there is no key 'description'"):
        parse(text)
    text = 'command = [\n {match = ["x"], action = "ask"},\n {match = ["y"], action = "x"},\n]'
    with pytest.raises(ConfigError, match=r"line 1: command\[2\].action is 'x'"):
        parse(text)
    text = '[[command]]\nmatch = ["x"]\naction = "ask"\n[command.test]\nmatch = [1]'
    with pytest.raises(ConfigError, match=r"line 5: command\[1\].test.match is 1"):
        parse(text)


KEYS = st.sampled_from(
    ["id", "extends", "default_action", "require", "final", "command", "net", "fs", "limits", "x"]
)
VALUES: st.SearchStrategy = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text("ab@*/.:-~$ \u00e9", max_size=20)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def toml(raw):
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, str):
        return '"' + raw.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(raw, list):
        return "[" + ", ".join(map(toml, raw)) + "]"
    return str(raw)


@slow
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from([USER, PROJECT]))
def test_whatever_a_file_says_it_is_a_layer_or_an_error_with_a_hint(document, kind):
    text = "".join(f"{key} = {toml(raw)}\n" for key, raw in document.items())
    try:
        parse(text, kind)
    except ConfigError as error:
        assert "/p.toml" in str(error) and error.hint


@slow
@given(st.binary(max_size=300), st.sampled_from([USER, PROJECT]))
def test_any_bytes_are_a_layer_or_an_error(content, kind):
    try:
        parse(content, kind)
    except ConfigError as error:
        assert "/p.toml" in str(error)


def test_a_byte_order_mark_is_said_to_be_one():
    with pytest.raises(ConfigError, match="begins with a byte order mark") as told:
        parse_policy(b"\xef\xbb\xbfid = 'x'", kind=USER, name="p", label="user", shown="/p.toml")
    assert "without BOM" in told.value.hint


@pytest.mark.parametrize("kind", [USER, SYSTEM, GIVEN])
def test_a_key_of_many_parts_costs_nothing_whoever_wrote_it(kind):
    text = ".".join(["a"] * 50_000) + " = 1\n"
    with pytest.raises(ConfigError, match="line 1: a line of 100003 characters"):
        parse_policy(text.encode(), kind=kind, name="p", label=kind, shown="/p.toml")
    long = "[[command]]\nmatch = ['" + "', '".join(["x" * 100] * 50) + "']\naction = 'allow'\n"
    assert parse_policy(long.encode(), kind=kind, name="p", label=kind, shown="/p").layer.commands
