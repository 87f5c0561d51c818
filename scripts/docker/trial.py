"""What is tried inside a container: worlds as a person uses them. Prints one JSON object.

    python3 trial.py WORKSPACE

Runs the installed command only and judges by what it gives; imports nothing of substrate.
"""

import json
import os
import subprocess
import sys

_CHANGE = "echo two >> kept; rm -r old; mkdir old; echo new > old/new; echo b > b; echo out"
#: what a world must be, wherever it runs: one line each, to be compared
_INSIDE = """
import os, socket
numbers = [n for n in os.listdir("/proc") if n.isdigit()]
status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
home = os.environ["TRIAL_HOME"]
def can_read(name):
    try:
        return bool(open(os.path.join(home, name), "rb").read(1))
    except OSError:
        return False
print("few processes", len(numbers) < 8)
print("no_new_privs", status["NoNewPrivs"].strip() == "1")
print("seccomp", status["Seccomp"].strip() == "2")
print("no CAP_SYS_ADMIN", not int(status["CapEff"], 16) >> 21 & 1)
print("only lo", os.listdir("/sys/class/net") == ["lo"])
print("state is hidden", not any(map(can_read, ("trace.jsonl", "digests", "capture-asked"))))
with socket.create_server(("127.0.0.1", 0)) as server:
    print("lo is up", socket.create_connection(server.getsockname()) is not None)
"""


def call(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def substrate(*words: str) -> "subprocess.CompletedProcess[str]":
    done = call("substrate", *words)
    if "Traceback" in done.stderr:
        raise AssertionError(f"a traceback of {words}: {done.stderr}")
    return done


def failed(words: tuple[str, ...], done: "subprocess.CompletedProcess[str]") -> dict[str, object]:
    """A refusal as it is told: the code in brackets, the hint."""
    message, _, hint = done.stderr.partition("\nhint: ")
    code = message.rpartition("[")[2].rstrip("]\n") if message.rstrip().endswith("]") else ""
    return {"works": False, "words": words, "message": message, "code": code, "hint": hint.strip()}


def trial(work: str) -> dict[str, object]:
    os.makedirs(work, exist_ok=True)
    os.chdir(work)
    os.mkdir("old")
    for name in ("kept", "old/gone"):
        with open(name, "w", encoding="utf-8") as file:
            file.write("one\n")
    words = ("-c", _CHANGE)
    ran = substrate(*words)
    unchanged = sorted(os.listdir(".")) == ["kept", "old"] and os.listdir("old") == ["gone"]
    assert unchanged, f"the container was changed: {os.listdir('.')}"
    if ran.returncode != 0:
        assert (ran.returncode, ran.stdout) == (125, ""), ran
        return failed(words, ran)
    assert ran.stdout == "out\n", ran
    home = os.environ.get("SUBSTRATE_HOME") or os.path.expanduser("~/.substrate")
    os.environ["TRIAL_HOME"] = home
    words = ("--env", "TRIAL_HOME", "-c", f"cat kept old/new; python3 -c '{_INSIDE}'")
    again = substrate(*words)
    if again.returncode != 0:
        return failed(words, again)
    first, *facts = again.stdout.splitlines()[2:]
    assert first == "new", again.stdout
    weaker = [fact for fact in facts if not fact.endswith(" True")]
    assert len(facts) == 7, again.stdout
    status = json.loads(substrate("status", "--format", "json").stdout)
    diff = substrate("diff", "--stat")
    words = ("apply", "--yes")
    applied = substrate(*words)
    if applied.returncode != 0:
        return failed(words, applied)
    with open("kept", encoding="utf-8") as file:
        assert file.read() == "one\ntwo\n"
    assert sorted(os.listdir(".")) == ["b", "kept", "old"] and os.listdir("old") == ["new"]
    substrate("-c", "echo lost > lost")
    discarded = substrate("discard", "--yes")
    assert discarded.returncode == 0 and not os.path.exists("lost"), discarded
    directories = image(f"/work/{'root' if os.geteuid() == 0 else 'person'}")
    doctor = json.loads(substrate("doctor", "--format", "json").stdout)
    limits = {c["name"]: c["text"] for c in doctor["checks"] if c["name"].startswith("limit ")}
    layers = [c["text"] for c in doctor["checks"] if c["name"] == "layers"]
    return {
        "works": True,
        "backend": status["backend"],
        "diff": diff.returncode,
        "weaker": weaker,
        "directories": directories,
        "limits": limits,
        "layers": layers[0] if layers else "",
    }


def image(work: str) -> bool:
    """Files and directories of the image, which lie in a lower of the container's own overlay:
    there no directory can be renamed (EXDEV, Documentation/filesystems/overlayfs.rst). Files
    are applied; whether the removal of a directory is, is the result; if not, it is told."""
    if not os.path.isdir(f"{work}/gone"):
        return True  # a volume or bind mount covers them
    os.chdir(work)
    change = (
        "rm moved/file; echo more >> swapped/file; chmod 700 closed; mkdir new; date > new/file"
    )
    assert substrate("-c", change).returncode == 0
    applied = substrate("apply", "--yes")
    assert applied.returncode == 0, applied
    assert os.listdir("moved") == [] and os.listdir("new") == ["file"]
    assert os.stat("closed").st_mode & 0o777 == 0o700
    with open("swapped/file", encoding="utf-8") as file:
        assert file.read() == "old\nmore\n"
    assert substrate("-c", "rm -r gone").returncode == 0
    applied = substrate("apply", "--yes")
    if applied.returncode == 0:
        assert not os.path.exists("gone")
        return True
    assert applied.returncode == 3 and "\nhint: " in applied.stderr, applied
    assert sorted(os.listdir("gone")) == ["deep", "file"] and os.listdir("gone/deep") == ["file"]
    assert not [name for name in os.listdir(".") if name.startswith(".substrate-")]
    assert substrate("discard", "--yes").returncode == 0
    return False


if __name__ == "__main__":
    try:
        found = trial(sys.argv[1])
    except AssertionError as wrong:
        found = {"works": False, "wrong": str(wrong)}
    print(json.dumps(found))
