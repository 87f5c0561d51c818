"""Layers of settings, and that a project's file only ever tightens."""

import os
import re

import pytest

from substrate.errors import ConfigError, UsageError
from substrate.session.settings import FlagUse, Places, load_settings, places
from substrate.session.settings_table import SETTINGS
from substrate.values import replace


class Files:
    """A user's, a system's and a project's file in a directory of the test."""

    def __init__(self, base):
        self.base = base
        self.project = base / "project"
        self.cwd = self.project / "src" / "deep"
        self.cwd.mkdir(parents=True)
        self.where = Places(
            cwd=os.fsencode(self.cwd),
            workspace=os.fsencode(self.project),
            home=os.fsencode(base / "home"),
            user_file=os.fsencode(base / "user.toml"),
            system_file=os.fsencode(base / "system.toml"),
        )

    def user(self, text):
        (self.base / "user.toml").write_text(text)

    def system(self, text):
        (self.base / "system.toml").write_text(text)

    def tree(self, text, directory=None):
        path = (directory or self.project) / ".substrate"
        path.mkdir()
        (path / "config.toml").write_text(text)

    def load(self, *flags, on_terminal=False, config=None, **environ):
        given = {k.encode(): os.fsencode(v) for k, v in environ.items()}
        where = replace(self.where, config=config)
        return load_settings(flags, given, where, on_terminal=on_terminal)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def flag(name, key, text):
    return FlagUse(name=name, key=key, text=text)


def test_without_anything_every_setting_has_its_default(files):
    loaded = files.load()
    assert loaded.settings.net == "filtered"
    assert loaded.settings.net_allow == ()
    assert loaded.settings.limits.pids == 4096
    assert loaded.settings.background_s == 5
    assert loaded.settings.record_max_bytes == 16 << 20
    assert set(loaded.origins.values()) == {("default",)}
    assert loaded.settings.at_end == "keep"
    assert files.load(on_terminal=True).settings.at_end == "ask"


def test_each_layer_is_over_the_one_below(files):
    files.system('timeout = "1s"')
    assert files.load().settings.timeout_s == 1
    files.user('timeout = "2s"')
    assert files.load().settings.timeout_s == 2
    assert files.load(SUBSTRATE_TIMEOUT="3").settings.timeout_s == 3
    loaded = files.load(flag("--timeout", "timeout", "4"), SUBSTRATE_TIMEOUT="3")
    assert loaded.settings.timeout_s == 4
    assert loaded.origins["timeout"] == ("flag --timeout",)
    unlimited = files.load(flag("--timeout", "timeout", "0"), SUBSTRATE_TIMEOUT="3").settings
    assert unlimited.timeout_s is None
    assert unlimited.limits.wall_s is None


def test_lists_add_up_over_the_layers(files):
    files.system('hide = ["/a"]')
    files.user('hide = ["~/b"]')
    files.tree('hide = ["c"]')
    loaded = files.load(flag("--hide", "hide", "d"), SUBSTRATE_HIDE="/e:/a")
    assert loaded.settings.hide == (
        b"/a",
        files.where.home + b"/b",
        files.where.workspace + b"/c",
        b"/e",
        files.where.cwd + b"/d",
    )
    assert len(loaded.origins["hide"]) == 5


def test_variables_to_set_are_replaced_by_name(files):
    files.user('[env.set]\nA = "1"\nB = "1"')
    settings = files.load(flag("--env", "env.set", "A=2")).settings
    assert dict(settings.env_set) == {b"A": b"2", b"B": b"1"}


def test_an_origin_names_file_and_line(files):
    files.user('# mine\n\n[limits]\nmemory = "4g"\n')
    assert files.load().origins["limits.memory"] == (f"{files.base}/user.toml, line 4",)


def test_a_config_file_is_read_in_place_of_the_user_s(files):
    files.user("timeout = 2")
    (files.base / "other.toml").write_text("background = 9")
    settings = files.load(config=os.fsencode(files.base / "other.toml")).settings
    assert (settings.timeout_s, settings.background_s) == (None, 9)


def test_a_config_file_that_is_not_there_is_an_error(files):
    with pytest.raises(ConfigError, match="there is no configuration file"):
        files.load(config=b"/nonexistent/x.toml")


# --- a project's file


@pytest.mark.parametrize(
    "text",
    [
        'net = "host"', '[net]\nmode = "filtered"', '[net]\nallow = ["example.com"]',
        '[net]\nprivate = ["10.0.0.0/8"]', '[net]\nhost_ports = [80]', 'world = "disabled"', 'backend = "ns-root"', "require = []",
        'shell = "/tmp/evil"', "timeout = 1e6", "background = 9999", 'at_end = "apply"',
        'rw = ["/etc"]', '[env]\npass = ["AWS_SECRET_ACCESS_KEY"]', '[env.set]\nLD_PRELOAD = "x"',
        "[limits]\npids = 100000", 'record_max = "0"', 'durability = "none"', 'overflow = "drop"',
        'pty = "always"', "ptrace = true", "nosuch = 1", '[nosuch]\nx = 1',
    ],
)  # fmt: skip
def test_a_project_cannot_loosen_anything(files, text):
    files.tree(text)
    loaded = files.load()
    plain = {s.key: s.default for s in SETTINGS if s.key not in ("shell", "at_end")}
    assert {k: v for k, v in loaded.values.items() if k in plain} == plain
    [warning] = loaded.warnings
    assert f"{files.project}/.substrate/config.toml" in warning
    assert re.match(r"\W*([\w.]+)", text)[1] in warning


def test_a_project_can_tighten(files):
    files.user('net = "host"\n[limits]\nmemory = "4g"\npids = 100')
    files.tree(
        'net = "none"\nhide = ["secrets", "/etc/passwd"]\nro = ["vendor"]\n'
        '[env]\ndrop = ["CI_*"]\n[limits]\nmemory = "1g"\npids = 200\ncpu = 1.5'
    )
    loaded = files.load()
    settings = loaded.settings
    assert settings.net == "none"
    assert settings.hide == (files.where.workspace + b"/secrets", b"/etc/passwd")
    assert settings.ro == (files.where.workspace + b"/vendor",)
    assert settings.env_drop == (b"CI_*",)
    assert settings.limits.memory_bytes == 1 << 30
    assert settings.limits.pids == 100
    assert settings.limits.cpu_milli == 1500
    [warning] = loaded.warnings
    assert "limits.pids" in warning
    assert "only lower" in warning


def test_a_flag_is_over_a_project(files):
    files.tree('net = "none"')
    assert files.load(flag("--net", "net.mode", "host")).settings.net == "host"


def test_an_inner_project_file_does_not_hide_the_outer_one(files):
    files.tree('ro = ["outer"]')
    files.tree('ro = ["inner"]', files.cwd)
    assert files.load().settings.ro == (
        files.where.workspace + b"/outer",
        files.where.cwd + b"/inner",
    )


def test_nothing_above_the_workspace_is_a_project_file(files):
    files.tree('ro = ["/x"]', files.base)
    loaded = files.load()
    assert loaded.settings.ro == ()
    assert not loaded.warnings


def test_a_broken_project_file_is_an_error_and_not_ignored(files):
    files.tree("hide == []")
    with pytest.raises(ConfigError, match=r"config\.toml is not TOML.*line 1"):
        files.load()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_an_error_and_never_waited_for(files, make):
    (files.project / ".substrate").mkdir()
    make(files.project / ".substrate" / "config.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        files.load()


# --- what is wrong


def test_an_unknown_key_names_file_line_and_what_was_meant(files):
    files.user('timeout = 1\n[limits]\nmemroy = "4g"')
    with pytest.raises(ConfigError, match=r"user\.toml, line 3: .*'limits\.memroy'") as wrong:
        files.load()
    assert "limits.memory" in wrong.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timeout = []", "expected a time"),
        ('net = "vet"', "expected one of none, filtered, veth, host"),
        ('hide = "/a"', "expected a list of paths"),
        ('hide = ["relative"]', "expected an absolute path"),
        ("ptrace = 1", "expected true or false"),
        ('[limits]\nmemory = "4x"', "expected a size"),
        ("[limits]\npids = 1.5", "expected a whole number"),
        ("[limits]\npids = 1", "expected at least 3"),
        ('require = ["nothing"]', "expected one of fs"),
        ("env = 3", "no setting 'env'"),
    ],
)
def test_a_wrong_value_names_what_was_expected(files, text, expected):
    files.user(text)
    with pytest.raises(ConfigError, match=r"user\.toml, line \d") as wrong:
        files.load()
    assert expected in str(wrong.value)


def test_a_wrong_variable_is_named(files):
    with pytest.raises(ConfigError, match=r"SUBSTRATE_NET is 'vet', expected one of none, f"):
        files.load(SUBSTRATE_NET="vet")


def test_a_wrong_flag_is_a_wrong_call(files):
    with pytest.raises(UsageError, match=r"--timeout got 'soon', expected a time"):
        files.load(flag("--timeout", "timeout", "soon"))
    with pytest.raises(UsageError, match="at least 3"):
        files.load(flag("--limit", "limits.pids", "1"))
    with pytest.raises(UsageError, match=r"--allow got 'http//x', expected "):
        files.load(flag("--allow", "net.allow", "http//x"))


def test_the_network_has_a_table_of_its_own(files):
    files.user('[net]\nmode = "filtered"\nallow = ["example.com"]\nhost_ports = [5432]')
    files.tree('[net]\ndeny = ["*.example.com"]')
    settings = files.load(flag("--allow", "net.allow", "*.example.net:443")).settings
    assert settings.net == "filtered"
    assert settings.net_allow == ("example.com", "*.example.net:443")
    assert settings.net_deny == ("*.example.com",)
    assert settings.host_ports == (5432,)


def test_a_file_that_is_no_text_is_named(files):
    (files.base / "user.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        files.load()


def test_a_variable_without_a_value_counts_as_unset(files):
    assert files.load(SUBSTRATE_NET="").settings.net == "filtered"


def test_every_setting_can_be_given_by_its_variable(files):
    texts = {
        "choice": None, "words": "fs", "switch": "true", "path": "/bin/sh", "file": "/a/policy.toml", "paths": "/a:/b",
        "names": "A,B_*", "pairs": "A=1\nB=2", "seconds": "5m", "size": "64m", "count": "64",
        "cpus": "1.5", "rules": "example.com,*.example.net:443", "ranges": "10.0.0.0/8",
        "range": "100.96.0.0/16",
        "ports": "5432,6379", "published": "8080:80,[::1]:8443:443",
    }  # fmt: skip
    for setting in SETTINGS:
        text = texts[setting.kind] or setting.words[-1]
        loaded = files.load(**{setting.variable: text})
        assert loaded.origins[setting.key] == (f"variable {setting.variable}",)


def test_the_usual_places_follow_the_base_directory_rules():
    found = places({b"HOME": b"/h", b"XDG_CONFIG_HOME": b"relative"}, b"/w", b"/w")
    assert found.user_file == b"/h/.config/substrate/config.toml"
    found = places({b"HOME": b"/h", b"XDG_CONFIG_HOME": b"/c"}, b"/w", b"/w", b"x.toml")
    assert found.user_file == b"/c/substrate/config.toml"
    assert found.config == b"/w/x.toml"
