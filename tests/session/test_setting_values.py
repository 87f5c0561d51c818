"""One value at a time: what is read is what was written, and nonsense is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.session.setting_values import Base, read, read_text, render
from substrate.session.settings_table import BY_KEY, SETTINGS

BASE = Base(directory=b"/w", home=b"/h")
NO_DIRECTORY = Base(directory=None, home=b"/h")


def value(key, text):
    return read_text(BY_KEY[key], text, BASE, one=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0", 0)],
)
def test_times(text, seconds):
    assert value("timeout", text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4g", 4 << 30),
        ("512m", 512 << 20),
        ("1.5k", 1536),
        ("2GiB", 2 << 30),
        ("1KB", 1024),
    ],
)
def test_sizes(text, size):
    assert value("record_max", text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e9", "nan", "inf", "1..5", "4gg", "٣", "1 2", "9999999t"]
)
@pytest.mark.parametrize("key", ["timeout", "record_max", "limits.pids", "limits.cpu"])
def test_nonsense_is_refused(key, text):
    with pytest.raises(ValueError, match="a "):
        value(key, text)


def test_a_path_is_made_absolute():
    assert value("hide", "a:/b:~/c") == (b"/w/a", b"/b", b"/h/c")
    assert read(BY_KEY["hide"], ["~"], NO_DIRECTORY) == (b"/h",)
    with pytest.raises(ValueError, match="absolute"):
        read(BY_KEY["hide"], ["a"], NO_DIRECTORY)


def test_a_flag_s_path_may_hold_a_colon():
    assert read_text(BY_KEY["hide"], "/a:b", BASE, one=True) == (b"/a:b",)


def test_a_shell_by_name_is_looked_up_in_path():
    assert value("shell", "zsh") == b"zsh"
    assert value("shell", "./zsh") == b"/w/zsh"


@given(st.integers(0, 2**62))
def test_a_size_reads_back_from_what_is_shown(size):
    setting = BY_KEY["record_max"]
    shown = render(setting, size)
    # binary fractions of such sizes are exact below 2**53
    if size < 2**53 or shown[-1] in "kmgt":
        assert abs(value("record_max", shown) - size) <= size >> 52


@given(st.text())
def test_no_text_makes_anything_but_a_value_or_a_refusal(text):
    for setting in SETTINGS:
        try:
            read_text(setting, text, BASE, one=False)
        except ValueError as problem:
            assert str(problem)
