"""What reading a command line may load before the command runs (docs/adr/0002)."""

import subprocess
import sys

from tests.cli.place import ROOT

ASK = """
import sys
before = set(sys.modules)
from substrate.cli import main, messages, run
from substrate.cli.arguments import parse_run, with_shell
request = parse_run([b"-c", b"true"], {}, terminal=False, stdin_open=True)
loaded = run.load_for(request, frozenset())
with_shell(request, loaded.settings.shell)
print("\\n".join(sorted(set(sys.modules) - before)))
"""
FORBIDDEN = {
    "dataclasses", "typing", "enum", "re", "json", "threading", "socket", "subprocess", "pathlib",
    "orjson", "click", "rich", "tomllib", "shlex", "argparse", "logging", "traceback",
}  # fmt: skip


def test_a_call_loads_nothing_heavy(tmp_path):
    # -S: what an editable install loads for itself is not ours
    paths = [path for path in sys.path if path.endswith("site-packages")]
    setup = f"import sys; sys.path[:0] = {[str(ROOT), *paths]!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", setup + ASK],
        cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "substrate.cli.arguments" in loaded
    assert not loaded & FORBIDDEN
    assert not {name for name in loaded if name.startswith("substrate.cli.verb")}
