"""`config show` and `doctor` through the installed command."""

from substrate.session.settings_table import SETTINGS


def test_config_show_lists_every_setting_with_its_origin(place):
    found = place.json("config", "show", "--format", "json", SUBSTRATE_LIMIT_MEMORY="2g")
    assert [row["key"] for row in found["settings"]] == [s.key for s in SETTINGS]
    rows = {row["key"]: row for row in found["settings"]}
    assert rows["limits.memory"]["value"] == 2 << 30
    assert rows["limits.memory"]["shown"] == "2g"
    assert rows["limits.memory"]["origin"] == ["variable SUBSTRATE_LIMIT_MEMORY"]
    assert rows["net.mode"]["origin"] == ["default"]


def test_config_show_of_one_setting(place):
    lines = place.out("config", "show", "--origin", "net.mode", SUBSTRATE_NET="host").splitlines()
    assert lines[1].split() == ["net.mode", "host", "variable", "SUBSTRATE_NET"]


def test_config_show_names_the_file_that_was_given(place):
    (place.work / "mine.toml").write_text("[limits]\ncpu = 1.5\n")
    out = place.out("config", "show", "limits.cpu", "--origin", "--config", "mine.toml")
    assert f"{place.work}/mine.toml, line 2" in out
    assert "1.5" in out


def test_config_show_of_no_setting_suggests(place):
    assert b"did you mean timeout?" in place.run("config", "show", "tiemout", status=2).stderr


def test_a_config_setting_holds_for_the_command(place):
    (place.work / "mine.toml").write_text('[env.set]\nGREETING = "hello there"\n')
    assert place.out("--config", "mine.toml", "-c", 'echo "$GREETING"') == "hello there\n"


def test_doctor_tries_and_tells(place):
    found = place.json("doctor", "--format", "json")
    assert found["schema"] == "substrate.doctor/1"
    assert found["works"]
    assert any(backend["works"] for backend in found["backends"])
    for backend in found["backends"]:
        assert backend["works"] or backend["why"]
    names = {check["name"] for check in found["checks"]}
    assert {"home", "disk", "python", "kernel", "substrate"} <= names
    assert not [p for p in place.home.iterdir() if p.name.startswith("probe-")]


def test_doctor_says_what_to_do_where_the_home_is_unusable(place):
    done = place.run("doctor", status=1, SUBSTRATE_HOME="/proc/nosuch")
    assert b"FAIL home:" in done.stdout
    assert b"-> set SUBSTRATE_HOME" in done.stdout
