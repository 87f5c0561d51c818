"""What a run loads, in its supervisor and in the processes forked from it (docs/adr/0002)."""

import re

import pytest

ALLOWED = {
    *("_ctypes", "_json", "_operator", "_sha2", "_sha256", "_socket", "_struct"),
    *("ctypes", "ctypes._endian", "errno", "fcntl", "gc", "itertools", "math", "mmap", "pwd"),
    *("resource", "select", "struct", "types", "zlib"),
}


def loaded(caller, *words):
    """The modules, ours left out, that were imported after the first line of ours."""
    environ = {**caller.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    done = caller.substrate(*words, env=environ)
    assert done.returncode == 0, done.stderr
    names = re.findall(rb"import time:[^|]*\|[^|]*\| +(\S+)", done.stderr)
    after = [name.decode() for name in names[names.index(b"substrate.import_cache") + 1 :]]
    assert "substrate.session.supervisor" in after
    return {name for name in after if not name.startswith("substrate")}


@pytest.mark.parametrize("backend", ["ns-root-idmap", "ns-user"])
def test_a_run_loads_nothing_heavy(make_caller, backend):
    caller = make_caller(backend)
    caller.substrate("-c", "true")  # the backend is chosen, modules are compiled
    for line in ("true", "echo some output; echo and more >&2", "echo content > file"):
        for options in ((), ("--fresh",)):
            found = loaded(caller, *options, "-c", line)
            assert found <= ALLOWED, (line, options, sorted(found - ALLOWED))
