"""Commands in the docs, run for real: on a terminal, in a home and a workspace of their own.

A fenced `console` block behind an HTML comment is run by test_docs.py:

    <!-- run -->         every `$ ` line must end with 0 (or as `# exit N` behind it says)
    <!-- transcript -->  besides, what they print must be what the page shows, after ids, times,
                         hashes and the like are made alike

`continues` in the comment goes on in the workspace of the block before it.
`scripts/gen-transcript` writes the second kind.
A line that ends with `\\` goes on in the next one, behind `> `.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")))
COLUMNS, LINES = 100, 40
TIMEOUT_S = 120.0

_BLOCK = re.compile(
    r"^<!-- (?P<kind>run|transcript)(?P<words>(?: [a-z]+)*) -->\n"
    r"```console\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_EXIT = re.compile(r"\s+# exit (\d+)$")


@dataclass(frozen=True)
class Step:
    """One command as it stands in the page, what is shown below it, the status it must have."""

    shown: str
    command: str
    output: str
    status: int


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    continues: bool
    start: int  # of the text inside the fence, in characters
    end: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Ran:
    output: str
    status: int


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page that are to be run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start()) + 1,
            kind=found["kind"],
            continues="continues" in found["words"].split(),
            start=found.start("text"),
            end=found.end("text"),
            steps=tuple(_steps(found["text"])),
        )
        for found in _BLOCK.finditer(text)
    ]


def sequences_of(page: str) -> list[list[Block]]:
    """The blocks of a page, those that go on with the one before it together with it."""
    found: list[list[Block]] = []
    for block in blocks_of(page):
        if block.continues and found:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def _steps(text: str) -> list[Step]:
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and found[-1][0][-1].endswith("\\"):
            found[-1][0].append(line[2:])
        else:
            if not found:
                raise AssertionError(f"output before the first command: {line!r}")
            found[-1][1].append(line)
    steps = []
    for words, output in found:
        shown = "\n> ".join(words)
        joined = "\n".join(words)
        ends = _EXIT.search(joined)
        steps.append(
            Step(
                shown=shown,
                command=joined[: ends.start()] if ends else joined,
                output="".join(line + "\n" for line in output),
                status=int(ends[1]) if ends else 0,
            )
        )
    return steps


def render(steps: tuple[Step, ...], ran: list[Ran]) -> str:
    """The text of a block with what the commands printed now."""
    return "".join(f"$ {s.shown}\n{r.output}" for s, r in zip(steps, ran, strict=True))


# --- running


def run_steps(commands: list[str], base: Path, program: Path) -> list[Ran]:
    """Runs commands one after the other in one bash on a terminal.

    `base` gets `home/` with the workspace `home/project`; `program` is the directory of the
    command `substrate`. What they print names `base` as /home/you."""
    home = base / "home"
    workspace = home / "project"
    workspace.mkdir(parents=True, exist_ok=True)
    mark = f"--{os.getpid()}-{time.monotonic_ns()}--"
    lines = [f"cd {workspace}"]
    for command in commands:
        lines += [command, f"printf '%s %d\\n' '{mark}' $?"]
    script = base / "script"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    environ = {
        "PATH": f"{program}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(home),
        "SUBSTRATE_HOME": str(base / "state"),
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "NO_COLOR": "1",
        "USER": "you",
    }
    printed = _on_terminal(["/bin/bash", "--norc", "--noprofile", str(script)], environ)
    text = printed.decode("utf-8", "replace").replace("\r\n", "\n")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = text.replace(str(home), "/home/you").replace(str(base), "/home/you")
    ran = []
    for _ in commands:
        before, found, text = text.partition(mark + " ")
        if not found:
            raise AssertionError(f"a command did not end; it printed:\n{before}")
        status, _, text = text.partition("\n")
        ran.append(Ran(output=_printed(before), status=int(status)))
    return ran


def _printed(text: str) -> str:
    """Without what a progress display wiped away again, and with a newline at its end."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    text = "\n".join(lines).strip("\n")
    return text + "\n" if text else ""


def _on_terminal(argv: list[str], environ: dict[str, str]) -> bytes:
    """Everything that a program prints on a terminal of its own (pty(7))."""
    pid, fd = pty.fork()
    if pid == 0:
        try:
            os.execve(argv[0], argv, environ)
        finally:
            os._exit(127)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    printed = bytearray()
    deadline = time.monotonic() + TIMEOUT_S
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(fd)
            raise AssertionError(f"not over after {TIMEOUT_S} s; it printed: {bytes(printed)!r}")
        try:
            piece = os.read(fd, 65536)
        except OSError:  # EIO: the last process with the terminal has ended
            break
        if not piece:
            break
        printed += piece
    os.close(fd)
    os.waitpid(pid, 0)
    return bytes(printed)


# --- comparing

_ALIKE = (
    (re.compile(r"\b(ses|spn)_[0-9a-f]{8}-[0-9a-f-]{27}\b"), r"\1_…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"), "<time>"),
    (re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b"), "<time>"),
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "<hash>"),
    (re.compile(r"\b[0-9a-f]{7,12}\.\.[0-9a-f]{7,12}\b"), "<hash>"),
    (re.compile(r"…?\b(?=[0-9a-f]*\d)[0-9a-f]{6,12}\b"), "<id>"),
    (re.compile(r"\b\d{16,20} ns\b"), "<ns>"),
    (re.compile(r"\b\d+(\.\d+)? ?(µs|us|ms|s|min)\b"), "<duration>"),
    (re.compile(r"\b[\d,.]+ (bytes|KiB|MiB|kB|B)\b"), "<size>"),
    (re.compile(r"ns-(root-idmap|root|user)"), "<backend>"),
    (re.compile(r"\(pid \d+\)"), "(pid <pid>)"),
    (re.compile(r"[ \t]+"), " "),
)


def alike(text: str) -> str:
    """What is different in every run, made the same."""
    for pattern, instead in _ALIKE:
        text = pattern.sub(instead, text)
    return "\n".join(line.strip() for line in text.splitlines())


def program_directory() -> Path:
    """Where the `substrate` of this Python is."""
    return Path(sys.prefix) / "bin"
