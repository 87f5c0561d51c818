"""`always` and `never`: rules that are written into the user's policy.toml."""

import os
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.errors import ConfigError
from substrate.policy.decide import compile_policy
from substrate.policy.globs import compile_word, escape, meets_row
from substrate.policy.rules import Subject
from substrate.session.approvals_rules import (
    Rule,
    add_rule,
    asking_lines,
    exact_rules,
    render_rule,
    typed_rules,
    user_policy_path,
)
from substrate.values import replace
from tests.session.approvals_scene import VERDICT, asked, held, policy, rule

BEFORE = """# my own policy
id = "mine"   # kept

[net]
allow = [ "example.com" ]  # and this
"""


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "substrate"
    folder.mkdir(mode=0o700)
    return folder / "policy.toml"


def write(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)


def add(path, *argv, action="allow"):
    words = tuple(word.encode() if isinstance(word, str) else word for word in argv)
    return add_rule(
        os.fsencode(path), Rule(match=tuple(map(escape, words)), action=action, said="by me")
    )


def test_a_rule_comes_at_the_end_and_all_else_stays(path):
    write(path, BEFORE, 0o640)
    assert add(path, "git", "push")
    text = path.read_text()
    assert text.startswith(BEFORE)
    found = tomllib.loads(text)
    assert found["id"] == "mine" and found["net"] == {"allow": ["example.com"]}
    (command,) = found["command"]
    assert command == {
        "match": ["git", "push"],
        "action": "allow",
        "reason": "answered at a question",
    }
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["policy.toml"]


def test_a_file_is_made_where_there_is_none(tmp_path):
    path = user_policy_path({b"HOME": os.fsencode(tmp_path)})
    assert add(os.fsdecode(path), "git", "push", action="deny")
    assert os.stat(path).st_mode & 0o777 == 0o600
    with open(path, "rb") as file:
        assert tomllib.load(file)["command"][0]["action"] == "deny"


def test_a_rule_that_is_there_is_not_written_again(path):
    assert add(path, "git", "push")
    once = path.read_bytes()
    assert not add(path, "git", "push")
    assert path.read_bytes() == once
    assert add(path, "git", "push", action="deny")


def test_a_file_without_an_end_of_line_keeps_its_last_line(path):
    write(path, 'id = "mine"')
    assert add(path, "git", "push")
    assert path.read_text().startswith('id = "mine"\n\n[[command]]')


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1))
def test_any_words_are_met_by_their_rule_and_by_it_alone(words):
    argv = tuple(word.encode() for word in words)
    match = tuple(map(escape, argv))
    text = render_rule(Rule(match=match, action="allow", said="by me\n[x]"))
    (found,) = tomllib.loads(text)["command"]
    patterns = [compile_word(word.encode()) for word in found["match"]]
    assert meets_row(patterns, argv)
    assert not meets_row(patterns, (*argv, b"more"))
    for at in range(len(argv)):
        assert not meets_row(patterns, (*argv[:at], argv[at] + b"x", *argv[at + 1 :]))


def test_words_that_toml_cannot_hold_are_not_written(path):
    with pytest.raises(ConfigError, match="not UTF-8"):
        add(path, "git", b"\xff")
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_left_alone(path, mode):
    write(path, BEFORE, mode)
    with pytest.raises(ConfigError, match="others can write it"):
        add(path, "git", "push")
    assert path.read_text() == BEFORE


def test_a_directory_that_others_can_write_is_left_alone(path):
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write it"):
        add(path, "git", "push")
    assert not path.exists()


def test_a_file_of_somebody_else_is_left_alone(path):
    if os.geteuid() != 0:
        pytest.skip("root is needed to give a file away")
    write(path, BEFORE)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        add(path, "git", "push")


@pytest.mark.parametrize("text", ["id = ", "id = 1\nid = 2\n", "command = []\n"])
def test_a_file_that_is_none_or_would_be_none_is_left_alone(path, text):
    write(path, text)
    with pytest.raises(ConfigError) as caught:
        add(path, "git", "push")
    assert path.read_text() == text
    assert caught.value.hint


def test_a_link_to_where_somebody_keeps_such_files_stays_one(path, tmp_path):
    kept = tmp_path / "dotfiles"
    kept.mkdir(mode=0o700)
    write(kept / "policy.toml", BEFORE)
    path.symlink_to(kept / "policy.toml")
    assert add(path, "git", "push")
    assert path.is_symlink()
    assert (kept / "policy.toml").read_text().startswith(BEFORE)


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_file_is_left_alone(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(ConfigError):
        add(path, "git", "push")


def test_many_at_once_lose_nothing(path):
    """Processes that write at the same time: each rule is there, or its writer was told."""
    program = (
        "import os, sys\n"
        "from substrate.errors import ConfigError\n"
        "from substrate.session.approvals_rules import Rule, add_rule\n"
        "done = 0\n"
        "while done < 10:\n"
        "    rule = Rule(match=(sys.argv[2].encode(), b'%d' % done), action='allow')\n"
        "    try:\n"
        "        add_rule(os.fsencode(sys.argv[1]), rule)\n"
        "    except ConfigError:\n"
        "        continue\n"
        "    done += 1\n"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", program, path, f"p{number}"]) for number in range(3)
    ]
    assert [each.wait(60) for each in several] == [0, 0, 0]
    with open(path, "rb") as file:
        found = {tuple(c["match"]) for c in tomllib.load(file)["command"]}
    assert found == {(f"p{n}", str(k)) for n in range(3) for k in range(10)}


def test_a_typed_rule_must_meet_what_waits():
    what = asked("t", "git", "push", "origin", "main")
    rules = policy([rule()])
    (typed,) = typed_rules(rules, what, "git push origin *", "allow", "")
    assert typed.match[-1] == b"*"
    for text in ("git pull **", "git push", "** x", "* push", "", "git 'push"):
        with pytest.raises(ConfigError):
            typed_rules(rules, what, text, "allow", "")


def test_of_a_text_the_part_that_asks_is_allowed():
    """`bash -c 'echo; git push'` is asked for the push; a rule is for that."""
    argv = ("bash", "-c", "echo x; git push origin main")
    text = held(*argv, program=b"/usr/bin/bash")
    rules = policy([rule()])
    verdict = compile_policy(rules).decide(Subject(argv=text.argv, program=text.program))
    what = asked("t", given=text, verdict=verdict)
    assert asking_lines(rules, what) == ((b"git", b"push", b"origin", b"main"),)
    (found,) = exact_rules(rules, what, "allow", "")
    assert found.match == (b"git", b"push", b"origin", b"main")
    (found,) = exact_rules(rules, what, "deny", "")
    assert found.match[0] == b"git"
    (found,) = typed_rules(rules, what, "git push **", "allow", "")
    assert found.match == (b"git", b"push", b"**")


@pytest.mark.parametrize(
    ("kind", "final", "counts"),
    [
        ("builtin", False, True),
        ("system", False, True),
        ("system", True, False),
        ("user", False, False),
        ("project", False, False),
        ("given", False, False),
    ],
)
def test_a_rule_that_would_not_count_is_not_written(kind, final, counts):
    """Within a layer the stricter rule wins, a later layer's wins, and so does a locked one."""
    found = policy([rule(final=final)])
    found = replace(found, layers=(replace(found.layers[0], kind=kind),))
    what = asked("t", verdict=replace(VERDICT, read_as=((b"git", b"push"),)))
    if counts:
        assert exact_rules(found, what, "allow", "")
    else:
        with pytest.raises(ConfigError, match="no rule of your own counts here"):
            exact_rules(found, what, "allow", "")
    if kind != "given":  # its `ask` comes after any denial of the user's
        assert exact_rules(found, what, "deny", "")


def test_a_default_action_gives_way_to_a_rule():
    found = replace(policy(), default_action="ask")
    what = asked("t", verdict=replace(VERDICT, rule=None, read_as=((b"git", b"push"),)))
    (made,) = exact_rules(found, what, "allow", "")
    assert made.match == (b"git", b"push")
