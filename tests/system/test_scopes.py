"""A policy's [net], [fs] and [limits] hold a run: real worlds, as root and as a user, and ways around them."""

import json
import os
import subprocess
import time

import pytest

from tests.system import traces_left

BASE = 'extends = "builtin:locked-down"\ndefault_action = "allow"\n'


@pytest.fixture
def policed(caller):
    """A caller, and how to write their policy, a project's, or one that is given."""

    class Policed:
        def __init__(self):
            self.caller, self.work = caller, caller.work
            self.given = caller.base / "given.toml"
            self.user_file = caller.base / "home/.config/substrate/policy.toml"

        def user(self, text, base=BASE):
            for path in (self.user_file.parent.parent, self.user_file.parent):
                caller.make_directory(path)
            self.write(self.user_file, base + text)

        def project(self, text):
            caller.make_directory(caller.work / ".substrate")
            self.write(caller.work / ".substrate/policy.toml", text)

        def write(self, path, text=""):
            caller.make_directory(path.parent)
            path.write_text(text)
            caller.own(path)
            return path

        def run(self, *words, **options):
            return caller.substrate(*words, **options)

        def bodies(self, kind):
            return [e["body"] for e in caller.events() if e["event_type"] == kind]

    found = Policed()
    yield found
    found.user_file.unlink(missing_ok=True)
    found.given.unlink(missing_ok=True)


ASK = "getent ahostsv4 {} >/dev/null && echo yes || echo no"


def asks(policed, *names, flags=()):
    line = "; ".join(ASK.format(name) for name in names)
    done = policed.run(*flags, "-c", line)
    return done.stdout.decode().split(), done.stderr.decode()


# --- [net]


def test_what_a_policy_names_is_reached_and_nothing_else(policed):
    policed.user('[net]\nallow = ["a.example", "*.b.example:443"]\ndeny = ["x.b.example"]\n')
    known, told = asks(policed, "a.example", "c.b.example", "x.b.example", "d.example")
    assert known == ["yes", "yes", "no", "no"]
    assert "was refused x.b.example: x.b.example is denied by x.b.example" in told
    (start,) = policed.bodies("world_start")
    layer = "~/.config/substrate/policy.toml"
    assert start["scopes"]["net"] == {
        "allow": [
            {"rule": "a.example", "layer": layer},
            {"rule": "*.b.example:443", "layer": layer},
        ],
        "deny": [{"rule": "x.b.example", "layer": layer}],
    }
    policed.caller.verify()


def test_a_flag_allows_more_but_not_what_is_denied(policed):
    policed.user('[net]\ndeny = ["bad.example"]\n')
    known, _ = asks(
        policed,
        "a.example",
        "bad.example",
        flags=("--allow", "a.example", "--allow", "bad.example"),
    )
    assert known == ["yes", "no"]


def test_an_untrusted_project_cannot_widen(policed):
    policed.user('[net]\nallow = ["a.example"]\n')
    policed.project(
        'final = true\ndefault_action = "allow"\nextends = "builtin:observe"\n'
        '[net]\nallow = ["*", "evil.example", "0.0.0.0/0", "@pip"]\n'
        '[fs]\nwrite = ["/**"]\n[limits]\nruntime = "10h"\npids = 100000\n'
    )
    known, _ = asks(policed, "a.example", "evil.example", "pypi.org")
    assert known == ["yes", "no", "no"]
    (start,) = policed.bodies("world_start")
    assert [row["rule"] for row in start["scopes"]["net"]["allow"]] == ["a.example"]
    (loaded,) = policed.bodies("policy_loaded")
    assert any("net.allow is left out" in text for text in loaded["ignored"])


def test_an_untrusted_project_tightens(policed):
    policed.user('[net]\nallow = ["a.example", "b.example"]\n')
    policed.project('[net]\ndeny = ["b.example"]\n')
    assert asks(policed, "a.example", "b.example")[0] == ["yes", "no"]
    (row,) = policed.bodies("world_start")[0]["scopes"]["net"]["deny"]
    assert row["layer"].endswith("work/.substrate/policy.toml")


def test_a_final_policy_is_not_opened_by_flags_nor_while_it_runs(policed):
    policed.write(policed.given, f'final = true\n{BASE}[net]\nallow = ["a.example"]\n')
    flags = ("--policy", policed.given, "--allow", "b.example")
    known, told = asks(policed, "a.example", "b.example", flags=flags)
    assert known == ["yes", "no"]
    assert "is final, so no flag allows it" in told and "allows it;" not in told
    assert "substrate: --allow b.example is left out: " in told
    assert any(
        "--allow b.example is left out" in n for n in policed.bodies("world_start")[0]["notes"]
    )
    for open_way in (("--net", "host"), ("--no-world",)):
        done = policed.run("--fresh", "--policy", policed.given, *open_way, "-c", "echo ran")
        assert (done.returncode, done.stdout) == (125, b""), open_way
        assert b"goes beyond the policy" in done.stderr and b"is final" in done.stderr
    words = (
        "--fresh",
        "--policy",
        policed.given,
        "-c",
        "echo ready; read x; " + ASK.format("c.example"),
    )
    process = policed.caller.start(*words, stdin=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    refused = policed.run("net", "allow", "c.example")
    assert refused.returncode != 0 and b"is final" in refused.stderr
    assert policed.run("net", "deny", "a.example").returncode == 0
    assert process.communicate(b"\n", timeout=60)[0] == b"no\n"


def test_the_hosts_network_is_the_users_choice_and_told(policed):
    policed.user('[net]\ndeny = ["a.example"]\n')
    done = policed.run("--net", "host", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (0, b"ran\n")
    (start,) = policed.bodies("world_start")
    assert "[net] of the policy does not hold here: --net host" in start["notes"]
    policed.user('require = ["net"]\n[net]\ndeny = ["a.example"]\n', base="")
    for open_way in (("--net", "host"), ("--no-world",)):
        done = policed.run("--fresh", *open_way, "-c", "echo ran")
        assert (done.returncode, done.stdout) == (125, b""), open_way
        assert b"net is required" in done.stderr


def test_a_refusal_is_explained_with_its_rule_and_layer(policed):
    policed.user('[net]\nallow = ["*.b.example"]\ndeny = ["x.b.example"]\n')
    asks(policed, "x.b.example", "d.example")
    found = json.loads(policed.run("policy", "explain", "last", "--format", "json").stdout)
    denied, unnamed = (each for each in found["decisions"] if each["kind"] == "net")
    assert (denied["subject"], denied["rule"]) == ("x.b.example", "x.b.example")
    assert denied["layer"] == "~/.config/substrate/policy.toml" and denied["allows"] is None
    assert (unnamed["subject"], unnamed["rule"]) == ("d.example", None)
    assert unnamed["allows"] == '[net]\nallow = ["d.example"]\n'
    text = policed.run("policy", "explain", "last").stdout.decode()
    assert "no allow goes beyond that" in text


def test_a_group_is_what_the_tools_of_the_host_are_configured_for(policed):
    config = policed.caller.base / "home/.config/pip/pip.conf"
    policed.write(config, "[global]\nindex-url = https://mirror.example/simple\n")
    try:
        policed.user('[net]\nallow = ["@pip"]\n')
        assert asks(policed, "mirror.example", "pypi.org")[0] == ["yes", "no"]
        (row,) = policed.bodies("world_start")[0]["scopes"]["net"]["allow"]
        assert row["hosts"] == ["mirror.example:443"]
    finally:
        config.unlink()


# --- [fs] read_deny


def test_what_shall_not_be_read_is_not(policed):
    deep = policed.caller.make_directory(policed.work / "a/b/c/d")
    policed.write(deep / ".env", "secret-1")
    policed.write(policed.work / "keys/one.pem", "secret-2")
    place = policed.write(policed.caller.base / "home/vault/token", "secret-3")
    try:
        policed.user('[fs]\nread_deny = ["**/.env", "$PWD/keys/**", "~/vault/token"]\n')
        line = f"cat a/b/c/d/.env keys/one.pem {place}; grep -rs secret- . {place}; cp -r a copied; cat copied/b/c/d/.env"
        done = policed.run("-c", line)
        assert b"secret-" not in done.stdout + done.stderr
        told = policed.bodies("world_start")[0]["scopes"]["read_deny"]
        assert told["complete"] and told["found"] == 1 and told["covered"] >= 3
        shown = policed.run("-c", "mv a other; cat other/b/c/d/.env; rm -rf other; ls -d a")
        assert b"secret-" not in shown.stdout
    finally:
        place.unlink()


def test_another_way_to_what_is_not_to_be_read(policed):
    """By a link that was there, one that is made, the file's descriptor table, a bind, a hard link."""
    policed.write(policed.work / "keys/real", "secret-1")
    link = policed.work / "x.env"
    link.symlink_to("keys/real")
    policed.caller.own(link)
    (policed.work / "out.env").symlink_to("/etc/hostname")
    policed.user('[fs]\nread_deny = ["**/*.env"]\n')
    done = policed.run(
        "-c",
        "cat x.env keys/real; ln -s keys/real y; cat y; ln keys/real z 2>/dev/null; cat z;"
        "cat /proc/self/cwd/keys/real; cd keys; cat real; cat /proc/1/root/$PWD/real; true",
    )
    assert b"secret-" not in done.stdout
    (start,) = policed.bodies("world_start")
    (left,) = start["scopes"]["read_deny"]["left_open"]
    assert left["path"].endswith("out.env") and "out of the workspace" in left["why"]
    assert any("does not cover" in note for note in start["notes"])


def test_a_later_command_does_not_read_it_either(policed):
    policed.write(policed.work / "d/.env", "secret-1")
    policed.user('[fs]\nread_deny = ["**/.env"]\n')
    policed.run("-c", "mkdir e; touch d/more; chmod 700 d")
    done = policed.run("-c", "cat d/.env; cp d/.env e/copy; cat e/copy; ls d")
    assert b"secret-" not in done.stdout and b"more" in done.stdout


def test_what_is_hidden_by_a_policy_is_told_as_such(policed):
    place = policed.write(policed.work / "dir/inner", "x")
    policed.user('[fs]\nread_deny = ["$PWD/dir/**"]\n')
    done = policed.run("-c", f"cat {place}")
    assert done.returncode == 1
    assert b"fs.read_deny" in done.stderr


# --- [fs] write


def test_an_apply_outside_of_what_may_be_written_is_refused(at_home):
    caller = at_home
    config = caller.make_directory(caller.work / "project")
    policy = caller.make_directory(caller.work / ".config/substrate") / "policy.toml"
    caller.own(policy.parent.parent)
    policy.write_text(f'{BASE}[fs]\nwrite = ["$PWD/**"]\n')
    caller.own(policy)
    line = "echo in > inside; echo out > ../outside; mkdir ../dir; echo x > ../dir/x"
    ran = caller.substrate("-c", line, cwd=config)
    assert ran.returncode == 0, ran.stderr

    def apply(*words):
        return caller.substrate("apply", *words, cwd=config)

    for words in (("--yes",), ("--allow-special", "--yes"), ("--on-conflict", "ours"), ("1",),
                  ("../outside",), ("--dry-run",)):  # fmt: skip
        done = apply(*words)
        assert done.returncode == 1, (words, done.stderr)
        assert (
            b"denied" in done.stdout
            and b"fs.write of ~/.config/substrate/policy.toml" in done.stdout
        )
        assert b"the policy has some of it stay in the world" in done.stderr
        assert not (config / "inside").exists() and not (caller.work / "outside").exists()
    found = json.loads(apply("--format", "json").stdout)
    assert found["outcome"] == "denied" and len(found["denied"]) == 3
    at_end = caller.substrate("--apply", "-c", "true", cwd=config)
    assert at_end.returncode == 125 and b"E-APPLY-POLICY" in at_end.stderr
    decisions = [e["body"] for e in caller.events() if e["event_type"] == "policy_decision"]
    assert {(d["kind"], d["action"]) for d in decisions} == {("fs", "denied")}
    assert apply(".").returncode == 0
    assert (config / "inside").read_text() == "in\n" and not (caller.work / "outside").exists()
    caller.verify()


def test_a_rename_out_of_it_and_a_deletion_outside_are_refused(at_home):
    caller = at_home
    project = caller.make_directory(caller.work / "project")
    for path in (project / "mine", caller.work / "theirs"):
        path.write_text("x")
        caller.own(path)
    given = caller.work / "given.toml"
    given.write_text(f'{BASE}[fs]\nwrite = ["$PWD/**"]\n')
    caller.own(given)
    caller.substrate("--policy", given, "-c", "mv mine ../moved; rm ../theirs", cwd=project)
    done = caller.substrate("apply", "--yes", cwd=project)  # the session knows what it was given
    assert done.returncode == 1 and b"../moved" not in done.stdout
    assert str(caller.work / "theirs").encode() in done.stdout
    assert (project / "mine").exists() and (caller.work / "theirs").exists()
    assert caller.substrate("world", "fork", cwd=project).returncode == 0
    forked = caller.substrate("apply", "--yes", cwd=project)  # so does a fork of it
    assert forked.returncode == 1 and b"denied" in forked.stdout
    given.unlink()
    done = caller.substrate("apply", "--yes", cwd=project)
    assert done.returncode != 0 and b"is gone" in done.stderr
    assert (project / "mine").exists()


def test_a_given_policy_is_not_replaced_without_a_question(policed):
    """It lies anywhere and has any name, and the next command goes by what it says."""
    given = policed.write(policed.work / "rules.toml", f'{BASE}[fs]\nwrite = ["$PWD/**"]\n')
    before = given.read_text()
    policed.run("--policy", "rules.toml", "-c", "echo > rules.toml; echo > other")
    done = policed.run("apply")
    assert done.returncode == 1 and b"some of it is dangerous" in done.stderr
    assert b"danger " in done.stdout and b"rules.toml" in done.stdout
    assert given.read_text() == before
    assert policed.run("apply", "other").returncode == 0
    assert policed.run("apply", "--allow-special").returncode == 0
    assert given.read_text() == "\n"


def test_an_untrusted_project_can_keep_more_in_the_world_and_no_less(policed):
    policed.user('[fs]\nwrite = ["$PWD/**"]\n')
    policed.project('[fs]\nwrite = ["$PWD/src/**", "/**"]\n')
    policed.run("-c", "mkdir src; echo > src/a; echo > b")
    done = policed.run("apply", "--yes")
    assert done.returncode == 1
    assert b"/b: fs.write of " in done.stdout and b"src/a" not in done.stdout
    assert policed.run("apply", "src").returncode == 0


def test_what_a_world_does_to_the_policy_lifts_nothing(policed):
    policed.user("[fs]\nwrite = []\n")
    line = "mkdir -p .substrate; echo '[fs]\nwrite = [\"/**\"]' > .substrate/policy.toml; echo > x"
    policed.run("-c", line)
    done = policed.run("apply", "--yes", "--allow-special")
    assert done.returncode == 1 and not (policed.work / "x").exists()


# --- [limits]


def test_the_time_of_a_policy(policed):
    policed.user('[limits]\nruntime = "500ms"\n')
    done = policed.run("--timeout", "1h", "-c", "sleep 60")
    assert done.returncode == 124
    assert b"limits.runtime of ~/.config/substrate/policy.toml gives it 0.5 s (124)" in done.stderr
    assert b"--timeout" not in done.stderr


def test_a_flag_makes_it_shorter(policed):
    policed.user('[limits]\nruntime = "1h"\n')
    done = policed.run("--timeout", "300ms", "-c", "sleep 60")
    assert done.returncode == 124 and b"its time was up" in done.stderr


def test_the_memory_of_a_policy(policed):
    policed.user('[limits]\nmemory = "200m"\n')
    done = policed.run(
        "--limit", "memory=8g", "-c", "python3 -c 'x = bytearray(1 << 30); print(len(x))'"
    )
    assert done.returncode in (137, 1) and b"1073741824" not in done.stdout
    layers = policed.bodies("session_start")[0]["isolation"]["layers"]
    assert "limit_memory_bytes" in layers


def test_the_processes_of_a_policy(policed):
    policed.user("[limits]\npids = 30\n")
    flood = "import os, time\nn = 0\ntry:\n  while n < 100:\n    if os.fork() == 0: time.sleep(1); os._exit(0)\n    n += 1\nexcept OSError: pass\nprint(n)"
    done = policed.run(
        "--limit", "pids=4000", "--background", "50ms", "-c", f"python3 -c '{flood}'"
    )
    assert int(done.stdout) < 60


def test_the_disk_of_a_policy(policed):
    policed.user('[limits]\ndisk = "20m"\n')
    done = policed.run(
        "--limit",
        "disk=9g",
        "-c",
        "i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero > f$i; done",
    )
    assert done.returncode == 124
    assert b"limits.disk of ~/.config/substrate/policy.toml" in done.stderr


def test_what_goes_on_in_the_background_has_no_time_of_its_own(policed):
    policed.user('[limits]\nruntime = "2s"\n')
    begun = time.monotonic()
    done = policed.run("--background", "60", "-c", "sleep 50 & echo go")
    assert (done.returncode, done.stdout) == (0, b"go\n"), done.stderr
    assert time.monotonic() - begun < 30


def test_the_programs_of_a_policy_are_counted(policed):
    policed.user("[limits]\nexecs = 6\n")
    ok = policed.run("-c", "for i in 1 2 3 4 5; do /bin/true; done; echo five")
    assert (ok.returncode, ok.stdout) == (0, b"five\n"), ok.stderr
    done = policed.run("-c", "for i in 1 2 3 4 5 6 7 8; do /bin/echo $i; done; while :; do :; done")
    assert (done.returncode, done.stdout) == (124, b"1\n2\n3\n4\n5\n")
    assert b"it had run 6 programs, the most that limits.execs of ~/.config" in done.stderr
    (budget,) = policed.bodies("budget")
    assert (budget["budget"], budget["used"], budget["limit"]) == ("execs", 6, 6)
    # a shell that was not ended yet may have tried the next one, too
    rules = {decision["rule"] for decision in policed.bodies("policy_decision")}
    assert rules == {"limits.execs of ~/.config/substrate/policy.toml"}
    layers = policed.bodies("session_start")[0]["isolation"]["layers"]
    assert layers["limit_execs"] == {"on": True, "why": "gate"}
    policed.caller.verify()


def test_programs_are_counted_whoever_starts_them(policed):
    """By children that go on alone, by vfork, by a script, by a name that is no path."""
    policed.user("[limits]\nexecs = 8\n")
    script = policed.write(policed.work / "s", "#!/bin/sh\n/bin/true\n")
    script.chmod(0o755)
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    line = (
        "(setsid sh -c './s; ./s; ./s; ./s; ./s; ./s; ./s; echo through' &) ; "
        'python3 -c \'import subprocess; [subprocess.run(["true"]) for _ in range(9)]; print("through")\''
    )
    environ = {**policed.caller.environ, traces_left.MARK: mark}
    done = policed.run("-c", line, env=environ)
    assert done.returncode == 124 and b"through" not in done.stdout
    assert not traces_left.gone(lambda: traces_left.processes(mark))


def test_what_cannot_be_counted_is_told_and_may_be_required(policed):
    policed.user("[limits]\nexecs = 5\n")
    done = policed.run("--capture", "off", "-c", "true")
    assert done.returncode == 0
    layers = policed.bodies("session_start")[0]["isolation"]["layers"]
    assert layers["limit_execs"]["on"] is False and "soft" in layers["limit_execs"]["why"]
    policed.user('require = ["limits"]\n[limits]\nexecs = 5\n', base="")
    done = policed.run("--fresh", "--capture", "off", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"limits is required and would be missing: execs" in done.stderr


# --- no cost


def test_without_rules_nothing_is_looked_up(policed):
    policed.user("")
    policed.run("-c", "true")
    assert "net" not in policed.bodies("world_start")[0].get("scopes", {})
