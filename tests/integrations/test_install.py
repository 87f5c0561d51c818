"""Hooks are put into agents' files and taken out again, and nothing else of the files changes."""

import json
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.errors import ConfigError
from substrate.integrations import edit
from substrate.integrations.agents import AGENTS
from tests.cli.place import PROGRAM

FILES = {
    "claude": ".claude/settings.json",
    "codex": ".codex/hooks.json",
    "gemini": ".gemini/settings.json",
    "cursor": ".cursor/hooks.json",
    "openhands": ".openhands/hooks.json",
}
OLD = """\
{
  // mine
  "model": "opus", /* stays */
  "hooks": {
    "Stop": [{"hooks": [{"type": "command", "command": "say done"}]}],
    "PreToolUse": [
      {"matcher": "Bash", "hooks": [{"type": "command", "command": "check"}]}
    ],
  },
  "unknown": {"x": [1, 2, {"y": null}]}
}
"""


class Desk:
    """A user's home with a project in it."""

    def __init__(self, base: Path) -> None:
        self.home = base / "user"
        self.project = self.home / "project"
        (self.project / ".git").mkdir(parents=True)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "SUBSTRATE_HOME": str(base / "substrate"),
        }

    def run(self, *words, status=0, cwd=None, **environ):
        done = subprocess.run(
            [PROGRAM, "hooks", *words],
            cwd=cwd or self.project,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def file(self, agent, text=None):
        path = self.home / FILES[agent]
        if text is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return path


@pytest.fixture
def desk():
    with tempfile.TemporaryDirectory() as base:
        yield Desk(Path(base))


@pytest.mark.parametrize("agent", AGENTS)
def test_in_and_out_without_a_file(desk, agent):
    done = desk.run("install", agent)
    path = desk.file(agent)
    assert f"+++ {path}" in done.stdout
    found = json.loads(path.read_text())
    assert set(found["hooks"]) == set(AGENTS[agent].events)
    for event in AGENTS[agent].events:
        (entry,) = found["hooks"][event]
        hook = entry["hooks"][0] if AGENTS[agent].grouped else entry
        assert hook["command"] == f"{PROGRAM} hook {agent} {event}"
    desk.run("uninstall", agent)
    assert not path.exists() and not path.parent.exists()
    assert os.listdir(desk.home / "../substrate/hooks") == []


@pytest.mark.parametrize("agent", AGENTS)
def test_in_and_out_of_a_file(desk, agent):
    path = desk.file(agent, OLD)
    desk.run("install", agent)
    text = path.read_text()
    assert "// mine" in text and "/* stays */" in text and '"unknown": {"x": [1' in text
    assert edit.installed(AGENTS[agent], text).keys() == set(AGENTS[agent].events)
    again = desk.run("install", agent)
    assert "all hooks are there" in again.stderr and not again.stdout
    assert path.read_text() == text
    desk.run("uninstall", agent)
    assert path.read_text() == OLD
    desk.run("uninstall", agent, status=1)


@pytest.mark.parametrize("agent", AGENTS)
def test_out_of_a_file_that_was_edited_since(desk, agent):
    path = desk.file(agent, OLD)
    desk.run("install", agent)
    path.write_text(path.read_text().replace('"opus"', '"sonnet"') + "// later\n")
    desk.run("uninstall", agent)
    assert path.read_text() == OLD.replace('"opus"', '"sonnet"') + "// later\n"


def test_out_of_a_file_that_we_made_and_the_user_went_on_with(desk):
    desk.run("install", "claude")
    path = desk.file("claude")
    found = json.loads(path.read_text())
    found["model"] = "opus"
    found["hooks"]["Stop"] = []
    path.write_text(json.dumps(found, indent=4))
    desk.run("uninstall", "claude")
    assert json.loads(path.read_text()) == {"hooks": {"Stop": []}, "model": "opus"}


def test_a_group_of_ours_that_got_a_second_hook_stays(desk):
    desk.run("install", "claude")
    path = desk.file("claude")
    found = json.loads(path.read_text())
    found["hooks"]["PreToolUse"][0]["hooks"].append({"type": "command", "command": "mine"})
    path.write_text(json.dumps(found))
    desk.run("uninstall", "claude")
    assert json.loads(path.read_text()) == {
        "hooks": {"PreToolUse": [{"hooks": [{"type": "command", "command": "mine"}]}]}
    }


def test_another_place_of_the_program_is_brought_up_to_date(desk):
    path = desk.file("claude", OLD)
    desk.run("install", "claude")
    path.write_text(path.read_text().replace(str(PROGRAM), "/old/bin/substrate"))
    assert "substrate is missing" in desk.run("status").stdout
    desk.run("install", "claude")
    assert "/old/bin" not in path.read_text()
    assert set(edit.installed(AGENTS["claude"], path.read_text())) == set(AGENTS["claude"].events)
    desk.run("uninstall", "claude")
    assert path.read_text() == OLD


def test_a_dry_run_writes_nothing(desk):
    path = desk.file("gemini", OLD)
    before = path.stat()
    assert "+" in desk.run("install", "gemini", "--dry-run").stdout
    assert path.read_text() == OLD and path.stat().st_mtime_ns == before.st_mtime_ns
    assert not (desk.home / "../substrate").exists()
    desk.run("install", "gemini")
    assert desk.run("uninstall", "gemini", "--dry-run").stdout.startswith("---")
    assert path.read_text() != OLD


def test_what_was_there_is_kept(desk):
    desk.file("claude", OLD)
    kept = desk.run("install", "claude").stderr.split("what was there: ")[1].split("\n")[0]
    assert Path(kept).read_text() == OLD
    assert stat.S_IMODE(Path(kept).stat().st_mode) == 0o600


def test_mode_owner_and_links_are_kept(desk):
    path = desk.file("claude", OLD)
    real = desk.home / "dotfiles.json"
    path.rename(real)
    path.symlink_to("../dotfiles.json")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 65534, 65534)
    before = real.stat()
    desk.run("install", "claude")
    after = real.stat()
    assert path.is_symlink() and "hook claude" in real.read_text()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    desk.run("uninstall", "claude")
    assert real.read_text() == OLD and path.is_symlink()


def test_the_project_s_file(desk):
    desk.run("install", "claude", "--project", cwd=desk.project)
    path = desk.project / ".claude/settings.local.json"
    assert "hook claude PreToolUse" in path.read_text()
    assert not desk.file("claude").exists()
    desk.run("uninstall", "claude", "--project")
    assert not path.exists()


def test_a_project_s_link_that_leads_out_is_refused(desk):
    (desk.project / ".claude").symlink_to("../.claude")
    path = desk.file("claude", OLD)
    (desk.project / ".cursor").mkdir()
    (desk.project / ".cursor/hooks.json").symlink_to("/etc/hostname")
    done = desk.run("install", "cursor", "--project", status=2)
    assert "leads out of the project" in done.stderr
    (path.parent / "settings.local.json").write_text("{}")
    desk.run("install", "claude", "--project", status=2)
    assert (path.parent / "settings.local.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": }', "line 1, column 7: expected a value"),
        ("[]", "the file is not an object"),
        ('{"hooks": []}', "hooks is not an object"),
        ('{"hooks": {"PreToolUse": {}}}', "hooks.PreToolUse is not a list"),
        ('{"hooks": {"PreToolUse": "x"}}', "hooks.PreToolUse is not a list"),
        ('{"a": 1,, }', "expected a name"),
        ("{" * 100, "expected"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(desk, text, said):
    path = desk.file("claude", text)
    done = desk.run("install", "claude", status=2)
    assert said in done.stderr and str(path) in done.stderr and "hint: " in done.stderr
    assert path.read_text() == text
    assert os.listdir(path.parent) == ["settings.json"]


def test_bytes_that_are_no_text(desk):
    path = desk.file("claude", "")
    path.write_bytes(b'{"a": "\xff"}')
    assert "not UTF-8" in desk.run("install", "claude", status=2).stderr
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in desk.run("install", "claude", status=2).stderr
    path.unlink()
    path.write_bytes(b" " * (5 << 20))
    assert "larger than" in desk.run("install", "claude", status=2).stderr


@pytest.mark.parametrize("agent", AGENTS)
def test_a_directory_in_place_of_the_file(desk, agent):
    path = desk.file(agent)
    path.mkdir(parents=True)
    for verb in ("install", "uninstall"):
        for more in ((), ("--dry-run",)):
            assert "not a regular file" in desk.run(verb, agent, *more, status=2).stderr
    done = desk.run("status", status=1)
    assert "unreadable" in done.stdout and f"{path} is not a regular file" in done.stderr
    assert os.listdir(path) == []


def test_a_file_in_place_of_the_directory_is_told_by_status_beside_the_others(desk):
    (desk.home / ".claude").write_text("")
    assert "Not a directory" in desk.run("install", "claude", status=3).stderr
    desk.run("install", "codex")
    done = desk.run("status")
    assert "unreadable" in done.stdout and "Not a directory" in done.stderr


def test_an_empty_file_is_one_without_settings(desk):
    path = desk.file("codex", "")
    desk.run("install", "codex")
    assert set(json.loads(path.read_text())["hooks"]) == {"PreToolUse", "PostToolUse"}
    desk.run("uninstall", "codex")
    assert path.read_text() == ""


def test_directories_that_agents_are_told(desk):
    other = desk.home / "elsewhere"
    other.mkdir()
    desk.run("install", "claude", CLAUDE_CONFIG_DIR=str(other))
    assert (other / "settings.json").exists()
    desk.run("install", "codex", status=2, CODEX_HOME="relative")
    desk.run("install", "gemini", status=2, HOME="")


def test_status(desk):
    assert "hooks" not in desk.run("status", status=1).stderr
    desk.run("install", "claude")
    desk.file("gemini", "{")
    done = desk.run("status")
    assert f"claude     user     installed   {desk.file('claude')}" in done.stdout
    assert "unreadable" in done.stdout
    assert "note: Claude Code: PostToolUseFailure" in done.stderr
    rows = json.loads(desk.run("status", "--format", "json").stdout)
    assert rows["schema"] == "substrate.hooks.status/1"
    row = next(r for r in rows["hooks"] if (r["agent"], r["scope"]) == ("claude", "user"))
    assert row["events"]["PreToolUse"].endswith("hook claude PreToolUse")
    assert row["source"].startswith("https://")
    found = json.loads(desk.file("claude").read_text())
    del found["hooks"]["PostToolUse"]
    desk.file("claude", json.dumps(found))
    assert "partly installed" in desk.run("status").stdout


def test_wrong_calls(desk):
    assert "no hooks are known for 'vim'" in desk.run("install", "vim", status=2).stderr
    assert "no option" in desk.run("install", "claude", "--nope", status=2).stderr


HOOKS = st.recursive(
    st.none() | st.booleans() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["hooks", "command", "type", "matcher", "PreToolUse"]), inner, max_size=3
    ),
    max_leaves=15,
)  # fmt: skip


@settings(deadline=None)
@given(
    st.sampled_from(list(AGENTS)),
    st.dictionaries(st.sampled_from(["hooks", "version", "x", "y"]), HOOKS, max_size=4),
    st.sampled_from([None, 2, "\t"]),
)
def test_any_settings_are_edited_and_restored_or_refused(name, value, indent):
    agent = AGENTS[name]
    text = json.dumps(value, indent=indent) + "\n"
    try:
        edited = edit.add(agent, text, "/usr/bin/substrate")
    except ConfigError:
        return
    longer = json.loads(edited.text)
    for key in value:
        if key != "hooks":
            assert longer[key] == value[key]
    assert set(edit.installed(agent, edited.text)) == set(agent.events)
    assert edit.add(agent, edited.text, "/usr/bin/substrate").text == edited.text
    assert json.loads(edit.take_out(agent, edited.text, edited.made)) == value
