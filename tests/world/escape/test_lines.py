"""Every line of world.md §8 has its row, and nothing of it gets out of a world of any backend.

A run of the same battery outside is the control: an attempt that does not get through there proves
nothing here.
"""

import functools
import importlib
import inspect
import os

import pytest

from tests.world.escape import battery, lines
from tests.world.escape.scene import SECRET, made, surrounded

#: world.md §8, without the lines of the network: what is asked for, written down once more
ASKED = {
    "FILESYSTEM": """
        remount, pivot_root, setns by /proc/*/ns, setns by passed fd, open_by_handle_at, mknod,
        /dev/mem, core_pattern, release_agent, leaked fds, /proc/self/exe overwrite,
        host sockets and FIFOs by path, abstract sockets, symlinked /dev in a re-used upper,
        symlink swapped between plan and apply, forged overlay xattrs, hard link to a hidden path,
        background process surviving the world, supervisor killed -9 in each apply phase""",
    "KERNEL": """
        bpf, perf, io_uring, keyctl, x32, AF_VSOCK/ALG/PACKET, TIOCSTI, fork bomb, memory hog,
        fd flood, disk flood""",
    "ROBUSTNESS": """
        Docker default / seccomp=unconfined / SYS_ADMIN, no nf_tables, cgroup v1/v2/none,
        missing kernel features faked off, 100k-file diff, 500 layers,
        disk full while staging (nothing applied), two runs on one world, clock stepping back""",
}
TABLES = {name: getattr(lines, name) for name in (*ASKED, "MORE")}
ROWS = {line: row for table in TABLES.values() for line, row in table.items()}
ATTEMPTED = {line: row.attempts for line, row in ROWS.items() if row.attempts}

FILTER = "tests.world.hardening.test_seccomp:test_every_call_number"
SOCKETS = "tests.world.hardening.test_seccomp:test_sockets"
#: Attempts that no control can get through with on every host: its kernel may have been built
#: without the call or the family, or would load a module for it. A test of the filter's rule by
#: itself stands in.
STAND_INS = {
    **dict.fromkeys(
        """init_module, finit_module, delete_module, kexec_load, kexec_file_load, iopl, ioperm,
        modify_ldt, memfd_secret, userfaultfd""".replace("\n", " ").split(", "),
        FILTER,
    ),
    "call by the x32 way": "tests.world.hardening.test_seccomp:test_an_x32_call_does_not_exist",
    "a call newer than the filter": (
        "tests.world.hardening.test_seccomp:test_numbers_above_the_table_do_not_exist"
    ),
    **dict.fromkeys([f"socket {name}" for name in ("alg", *battery.LOADS_MODULES)], SOCKETS),
    "raise a hard limit": "tests.world.hardening.test_capabilities:test_what_is_gone_is_refused",
}
#: not ways out, but what has to be so in there
STATES = {"become root", "have another uid than agreed"}
#: needs a filesystem that ignores case, or a device that the host's own groups refuse
ELSEWHERE = {"read a hidden file by another case of its name", "open /dev/vda"}


def names(text):
    return [" ".join(name.split()) for name in text.split(",")]


@pytest.mark.parametrize("table", ASKED)
def test_every_line_has_its_row(table):
    assert list(TABLES[table]) == names(ASKED[table])
    assert all(row.attempts or row.tests for row in TABLES[table].values())


def test_every_attempt_of_the_battery_stands_in_one_row():
    placed = [attempt for attempts in ATTEMPTED.values() for attempt in attempts]
    assert sorted(placed) == sorted(n for n in battery.ATTEMPTS if not n.startswith("nested: "))


@pytest.mark.parametrize(
    "name", sorted({t for row in ROWS.values() for t in row.tests} | set(STAND_INS.values()))
)
def test_a_test_that_a_row_names_is_one(name):
    module, _, function = name.partition(":")
    assert inspect.isfunction(getattr(importlib.import_module(module), function))


@pytest.fixture(scope="module")
def inside(scene):
    found = scene.attempts()
    hidden = scene.parameters["hidden"][0][0]
    with open(hidden) as file:
        assert file.read() == f"{SECRET}\n"
    return found


@pytest.mark.parametrize("line", ATTEMPTED)
def test_nothing_gets_out(inside, line):
    got_out = {n: inside[n] for n in ATTEMPTED[line] if inside[n]["outcome"] != "blocked"}
    assert got_out == {}


@functools.cache
def allowed(backend):
    """What gets through outside: as root, or as a user, also as root of a namespace of his own."""
    with made(backend) as place, surrounded(place) as found:
        runs = [found.control()]
        if found.uid:
            nested = ("unshare", "--user", "--map-root-user", "--mount", "--net", "--uts")
            runs.append(found.control(*nested))
        broken = [a for answers in runs for a in answers.values() if a["outcome"] == "broken"]
        assert broken == []
        return {
            name
            for answers in runs
            for name, a in answers.items()
            if a["outcome"] == "ALLOWED" or (a["errno"] == "ENOENT" and _is_a_place(name))
        }


def _is_a_place(name):
    """Whether an attempt opens one file, which not every host has."""
    return name.startswith(("open /dev/", "write /", "read /"))


@pytest.mark.parametrize("line", ATTEMPTED)
def test_outside_it_gets_through(line):
    """As root all of it does; a user is not let near to some of it even outside."""
    if os.geteuid() != 0:
        pytest.skip("the control of root's attempts needs root")
    unproven = set(ATTEMPTED[line]) - allowed("ns-root") - allowed("ns-user")
    assert unproven - STAND_INS.keys() - STATES - ELSEWHERE == set()


def test_much_of_it_gets_through_for_a_user_too():
    assert len(allowed("ns-user")) > 90
