"""Completion scripts, sourced by a real shell and asked."""

import shutil
import subprocess

import pytest

from substrate.cli.completion import RENDERERS, run
from substrate.cli.options import OPTIONS, VERBS

ASK = """
source /dev/stdin <<'END'
{script}
END
COMP_WORDS=({words} '{last}'); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_substrate; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script():
    return RENDERERS["bash"](run())


def complete(script, line, cwd="/"):
    *words, last = line.split(" ")
    asked = ASK.format(script=script, words=" ".join(words), last=last)
    done = subprocess.run(
        ["bash", "-c", asked], capture_output=True, text=True, check=True, cwd=cwd
    )
    assert not done.stderr
    return set(done.stdout.split())


def test_verbs_and_options_come_first(script):
    assert complete(script, "substrate ") >= {*VERBS, *(option.name for option in OPTIONS)}
    assert complete(script, "substrate st") == {"status"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("substrate world ", {"ls", "start", "exec", "stop", "fork", "gc", "--help"}),
        ("substrate trace v", {"verify"}),
        ("substrate trace t", {"tree", "tail"}),
        ("substrate trace show --f", {"--files", "--failed", "--format"}),
        ("substrate trace tail --p", {"--procs", "--proc", "--path"}),
        ("substrate trace tree --d", {"--depth"}),
        ("substrate trace verify --fin", {"--fingerprint"}),
        ("substrate diff --s", {"--stat", "--scratch", "--session"}),
        ("substrate --net ", {"none", "filtered", "veth", "host"}),
        ("substrate run --durability ", {"command", "event", "none"}),
        ("substrate log --format j", {"json", "jsonl"}),
        ("substrate completion ", {"bash", "zsh", "fish", "--help"}),
        ("substrate --limit m", {"memory="}),
    ],
)
def test_what_may_follow(script, line, words):
    assert complete(script, line) == words


def test_paths_for_diff_and_programs_behind_the_hyphens(script, tmp_path):
    (tmp_path / "README").touch()
    assert complete(script, "substrate diff REA", tmp_path) == {"README"}
    assert "bash" in complete(script, "substrate run -- bas")


def test_the_command_prints_what_bash_takes(place):
    for shell in RENDERERS:
        assert place.out("completion", shell) == RENDERERS[shell](run())
    done = subprocess.run(
        ["bash", "-c", 'source <(cat) && complete -p substrate'],
        input=place.out("completion", "bash"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "-F _substrate" in done.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=RENDERERS[shell](run()), text=True, check=True)
