"""The README and docs/ say what is so: their commands are run, their links and words checked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transcripts import (
    PAGES,
    ROOT,
    Block,
    alike,
    program_directory,
    run_steps,
    sequences_of,
)

SEQUENCES = [
    pytest.param(sequence, id=f"{page}:{sequence[0].line}")
    for page in PAGES
    for sequence in sequences_of(page)
]


@pytest.fixture
def base() -> Iterator[Path]:
    """A short path on a real filesystem: it is shown in the pages."""
    directory = Path(tempfile.mkdtemp(prefix="docs-"))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_commands_of_a_page_do_what_it_shows(sequence: list[Block], base: Path) -> None:
    steps = [(block, step) for block in sequence for step in block.steps]
    ran = run_steps([step.command for _, step in steps], base, program_directory())
    for (block, step), now in zip(steps, ran, strict=True):
        assert now.status == step.status, f"$ {step.command}\n{now.output}"
        if block.kind == "transcript":
            assert alike(now.output) == alike(step.output), f"$ {step.command}\n{now.output}"


def test_readme_names_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("install", "test"):
        assert len(re.findall(rf"^<!-- command: {name} -->\n```sh\n[^`]+\n```$", text, re.M)) == 1


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_inside_the_repository_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md" and "/adr/" not in page:
            assert f"({page.removeprefix('docs/')})" in index, page


def test_configuration_reference_is_what_the_table_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/gen-configuration", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_gate_reference_is_what_the_tests_try() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/gen-gate", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
