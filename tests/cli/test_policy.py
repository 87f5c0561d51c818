"""`substrate policy` through the installed command."""

import json
import subprocess
import tomllib

import pytest

from substrate.telemetry.trace.events.policy import PolicyDecision, PolicyLayer, PolicyLoaded
from tests.cli.seen_session import SeenSession


@pytest.fixture
def place(forked_place):
    subprocess.run(["git", "init", "-q", forked_place.work], check=True)
    return forked_place


def user_file(place, text):
    path = place.base / "user/.config/substrate/policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def project_file(place, text):
    path = place.work / ".substrate/policy.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


# --- check


def test_check_says_what_would_be_decided(place):
    found = place.json(
        "policy", "check", "--format", "json", "--", "git", "-C", "x", "push", "--force", status=1
    )
    assert found["schema"] == "substrate.policy.check/1"
    assert (found["action"], found["rule"]) == ("ask", "builtin:coding-agent command[1]")
    assert found["place"].startswith("builtin:coding-agent, line ")
    assert found["reason"] == "publishing"
    (read,) = found["read_as"]
    assert read["argv"] == ["git", "-C", "x", "push", "--force"]
    assert read["operands"] == ["push"] and ["-C", ["x"]] in read["flags"]
    assert found["program"].endswith("/git")
    assert place.json("policy", "check", "--format", "json", "--", "ls")["action"] == "allow"


def test_check_shows_what_would_allow_it(place):
    out = place.out("policy", "check", "--", "git", "push", "origin", status=1)
    assert "verdict: ask" in out and "read as: git push origin" in out
    _, _, rule = out.partition("# what would allow this and no more")
    user_file(place, rule.partition("\n")[2])
    assert "verdict: allow" in place.out("policy", "check", "--", "git", "push", "origin")
    assert "verdict: ask" in place.out("policy", "check", "--", "git", "push", "other", status=1)


def test_a_denial_by_the_default_action_names_its_layer(place):
    user_file(
        place, 'default_action = "deny"\n[[command]]\nmatch = ["bash", "**"]\naction = "allow"\n'
    )
    done = place.run("--keep", "-c", "git --version", status=126)
    assert (
        b'denied: git --version (no rule allows it, and default_action = "deny" in '
        b"~/.config/substrate/policy.toml); `substrate policy explain last`" in done.stderr
    ), done.stderr


@pytest.mark.parametrize("pattern", ["/", "/**", "$PWD/**", "~/../**"])
def test_what_covers_the_whole_workspace_is_refused_by_its_name(place, pattern):
    user_file(place, f'[fs]\nread_deny = ["{pattern}"]\n'.replace("~/..", str(place.base)))
    for words in (("policy", "check"), ("--keep", "-c", "true")):
        done = place.run(*words, status=None)
        assert done.returncode in (2, 125), done.stderr
        assert b"policy.toml: fs.read_deny has" in done.stderr
        assert b"no command could start there" in done.stderr and b"hide`" not in done.stderr


def test_check_with_another_profile_file_and_without_a_world(place):
    args = ("policy", "check", "--format", "json")
    assert place.json(*args, "--profile", "ci", "--", "git", "push", status=1)["action"] == "deny"
    assert place.json(*args, "--no-world", "--", "make", status=1)["action"] == "ask"
    (place.work / "mine.toml").write_text('default_action = "deny"\n')
    assert place.json(*args, "--policy", "mine.toml", "--", "make", status=1)["action"] == "deny"
    found = place.json(*args, "--", "make", status=1, SUBSTRATE_POLICY="mine.toml")
    assert found["action"] == "deny"
    done = place.run("policy", "check", "--policy", "none.toml", status=2)
    assert b"there is no policy file" in done.stderr


def test_check_of_the_files_tells_layers_and_what_is_left_out(place):
    user_file(place, 'id = "mine"\n')
    project_file(place, '[net]\nallow = ["evil.example"]\nlater = 1\n')
    found = place.json("policy", "check", "--format", "json")
    assert [layer["kind"] for layer in found["layers"]] == ["builtin", "user", "project"]
    assert found["layers"][2]["trusted"] is False
    assert any("net.allow is left out" in text for text in found["ignored"])
    done = place.run("policy", "check")
    assert b"tightens only" in done.stdout
    assert b"line 3: there is no key 'net.later'" in done.stderr
    rows = [
        json.loads(line) for line in place.out("policy", "check", "--format", "jsonl").splitlines()
    ]
    assert rows[0]["name"] == "builtin:coding-agent"


def test_check_names_file_line_and_key_of_an_error(place):
    path = user_file(place, '\n[[command]]\nmatch = ["x"]\nacton = "ask"\n')
    done = place.run("policy", "check", status=2)
    assert f"{path}, line 4: there is no key 'command[1].acton'".encode() in done.stderr
    assert b"hint: did you mean action?" in done.stderr


def test_check_knows_a_program_by_its_digest(place):
    import hashlib

    with open("/usr/bin/env", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    user_file(place, f'[[command]]\nsha256 = "{digest}"\naction = "deny"\n')
    args = ("policy", "check", "--format", "json", "--")
    assert place.json(*args, "/usr/bin/env", "x", status=1)["rule"] == "user command[1]"
    assert place.json(*args, "/usr/bin/true")["action"] == "allow"


# --- show


def test_show_tells_origins_groups_and_rules(place):
    subprocess.run(
        ["git", "-C", place.work, "remote", "add", "origin", "https://code.example/x"], check=True
    )
    user_file(
        place, '[limits]\nmemory = "2g"\n[[command]]\nmatch = ["make", "**"]\naction = "ask"\n'
    )
    found = place.json("policy", "show", "--format", "json")
    rows = {(row["key"], str(row["value"])): row["layer"] for row in found["settings"]}
    assert rows["limits.memory", str(2 << 30)] == "~/.config/substrate/policy.toml"
    assert rows["net.allow", "@npm"] == "builtin:coding-agent"
    (member,) = found["groups"]["@git-remotes"]
    assert member["rule"] == "code.example:443" and 'remote "origin"' in member["source"]
    assert found["rules"][-1]["rule"] == "user command[1]"
    out = place.out("policy", "show")
    assert "2g" in out and "make '**'" in out
    assert out.index("user command[1]") < out.index("builtin:coding-agent command[1]")


# --- init


def test_init_writes_a_file_that_says_nothing_new(place):
    place.run("policy", "init")
    path = place.base / "user/.config/substrate/policy.toml"
    assert 'extends = "builtin:coding-agent"' in path.read_text()
    assert b"user" in place.run("policy", "check").stdout
    done = place.run("policy", "init", status=2)
    assert b"already" in done.stderr


def test_init_of_a_project_and_a_dry_run(place):
    out = place.out("policy", "init", "--project", "--profile", "ci", "--dry-run")
    assert not (place.work / ".substrate").exists()
    place.run("policy", "init", "--project", "--profile", "ci")
    assert (place.work / ".substrate/policy.toml").read_text() == out
    (place.work / "all.toml").write_text("\n".join(_uncommented(out)))
    place.run("policy", "check", "--policy", "all.toml")
    assert "0 failed" in place.run("policy", "test", "--policy", "all.toml").stderr.decode()


def _uncommented(text):
    """The template with its examples switched on."""
    starts = ("# [[", "# match", "# action", "# reason", "# test", "# allow", "# deny", "# write")
    starts += ("# read_deny", "# runtime", "# memory", "# default_action")
    return [
        line.removeprefix("# ") if line.startswith(starts) else line for line in text.splitlines()
    ]


def test_init_of_a_project_in_ones_home_is_refused(place):
    done = place.run(
        "policy", "init", "--project", status=2, SUBSTRATE_HOME=str(place.work / ".substrate")
    )
    assert b"is where substrate keeps what it recorded" in done.stderr


# --- trust


def test_trust_lets_a_projects_file_count_as_it_is(place):
    path = project_file(place, '[[command]]\nmatch = ["git", "push", "**"]\naction = "allow"\n')
    check = ("policy", "check", "--", "git", "push")
    place.run(*check, status=1)
    done = place.run("policy", "trust")
    assert f"{path} is trusted as it is now (sha256 ".encode() in done.stderr
    assert b"what counts from now on: 1 rule that allows" in done.stderr
    place.run(*check)
    (row,) = place.json("policy", "trust", "--list", "--format", "json")["trusted"]
    assert (row["path"], row["state"]) == (str(path), "trusted")
    path.write_text(path.read_text() + "# changed\n")
    place.run(*check, status=1)
    assert "changed since" in place.out("policy", "trust", "--list")
    place.run("policy", "trust")
    place.run(*check)
    place.run("policy", "trust", "--revoke")
    place.run(*check, status=1)
    assert b"is not trusted" in place.run("policy", "trust", "--revoke", status=1).stderr


def test_trust_of_a_tools_configuration(place):
    (place.work / ".npmrc").write_text("registry=https://corp.example/npm/\n")
    assert "corp.example" not in place.out("policy", "explain", "@npm").replace(str(place.work), "")
    place.run("policy", "trust", ".npmrc")
    assert "corp.example:443" in place.out("policy", "explain", "@npm")


def test_trust_where_there_is_nothing(place):
    assert b"no policy file of a project" in place.run("policy", "trust", status=1).stderr
    assert b"cannot be read" in place.run("policy", "trust", "nothing.toml", status=2).stderr
    (place.work / "link").symlink_to("/etc/passwd")
    place.run("policy", "trust", "link", status=2)


# --- test


def test_test_runs_the_tests_beside_the_rules(place):
    assert b"266 passed, 0 failed" in place.run("policy", "test").stderr
    path = user_file(
        place, '[[command]]\nmatch = ["rm", "-rf"]\naction = "deny"\ntest = { match = ["rm x"] }\n'
    )
    done = place.run("policy", "test", status=1)
    assert b"FAIL  user command[1]  rm x  match" in done.stdout
    rows = place.json("policy", "test", "--format", "json", status=1)["tests"]
    (failed,) = [row for row in rows if not row["passed"]]
    assert failed["place"] == f"{path}, line 1"


# --- explain


@pytest.fixture
def session(place):
    made = SeenSession(place)
    yield made
    made.close()


def test_explain_a_command(place):
    place.run("--capture", "off", "-c", "true")
    (row,) = place.json("policy", "explain", "--format", "json")["decisions"]
    assert (row["kind"], row["decision"], row["argv"][-1]) == ("command", "allow", "true")
    assert row["allows"] is None
    assert "decision: allow" in place.out("policy", "explain", "1")


def decide(session, argv, decision="deny", digest="0" * 64, rule="builtin:coding-agent command[1]"):
    words = tuple(argv.split())
    body = PolicyDecision(
        kind="exec", subject=b"/usr/bin/" + words[0].encode(), decision=decision, action=decision,
        rule=rule, policy_digest=digest, reason="publishing", extra=(("argv", list(words)),),
    )  # fmt: skip
    session.put(body, session.span)


def test_explain_decisions_of_programs(place, session):
    digest = place.json("policy", "show", "--format", "json")["digest"]
    session.put(PolicyLoaded(digest=digest, layers=(PolicyLayer(name="x", digest="0" * 64),)), None)
    session.command("git push; git pull")
    decide(session, "git push origin", digest=digest)
    decide(session, "git push other", digest="f" * 64)
    decide(session, "git push third", digest="", rule=None, decision="ask")
    session.end()
    session.close()
    rows = place.json("policy", "explain", "last", "--format", "json")["decisions"]
    assert [row["kind"] for row in rows] == ["command", "exec", "exec", "exec"]
    assert [row["same_policy"] for row in rows] == [True, True, False, None]
    assert rows[1]["layer"] == "builtin:coding-agent"
    assert rows[1]["place"].startswith("builtin:coding-agent, line ")
    assert tomllib.loads(rows[1]["allows"])["command"][0]["match"] == ["git", "push", "origin"]
    assert rows[3]["rule"] == "builtin:coding-agent command[1]"  # asked of the policy now
    out = place.out("policy", "explain", f"#{rows[2]['seq']}")
    assert "git push other" in out and "git push origin" not in out
    assert "the policy was changed since" in out
    assert b"nothing was decided" in place.run("policy", "explain", "#0", status=1).stderr
    assert b"names no event" in place.run("policy", "explain", "#x", status=2).stderr


def test_explain_a_profile_and_a_group(place):
    text = place.out("policy", "explain", "--profile", "locked-down")
    assert tomllib.loads(text)["id"] == "locked-down"
    found = place.json("policy", "explain", "@pip", "--format", "json")
    assert {row["rule"] for row in found["members"]} >= {"pypi.org:443"}
    assert b"did you mean @npm?" in place.run("policy", "explain", "@nmp", status=2).stderr


# --- learn


def test_a_learned_policy_allows_its_session(place):
    place.run(
        "--net", "none", "-c", "mkdir -p a/b; echo x > a/b/c; env X=1 sed -n 1p a/b/c; expr 1 + 1"
    )
    place.run("--net", "none", "-c", "make -v; perl -e 1 || true")
    place.run("policy", "learn", "--output", "learned.toml")
    text = (place.work / "learned.toml").read_text()
    document = tomllib.loads(text)
    assert document["default_action"] == "deny" and document["net"]["allow"] == []
    assert document["fs"]["write"] == ["$PWD/**"]
    assert place.out("policy", "learn") == text
    args = ("policy", "check", "--policy", "learned.toml", "--")
    for event in map(
        json.loads,
        place.out("trace", "show", "--type", "process_start", "--format", "jsonl").splitlines(),
    ):
        place.run(*args, *event["body"]["argv"])
    place.run(*args, "bash", "-c", "make -v; perl -e 1 || true")
    for other in (
        ("make", "install"),
        ("perl", "-e", "2"),
        ("curl", "example.com"),
        ("git", "push"),
    ):
        assert "verdict: deny" in place.out(*args, *other, status=1)


def test_help_begins_with_examples(place):
    for verb in ("", "check", "explain", "show", "init", "learn", "test", "trust"):
        out = place.out("policy", *([verb] if verb else []), "--help")
        assert out.startswith("Example")
