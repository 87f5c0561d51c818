"""What runs another command is judged as that, too."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.policy import wrappers
from substrate.policy.decide import STRICTNESS
from substrate.policy.reading_as import MOST_DEPTH, MOST_PARTS, MOST_WORDS, parts_of
from substrate.policy.rules import Subject
from substrate.policy.shell_text import MOST_TEXT, read_text
from substrate.policy.wrappers import split_words, unwrap
from tests.policy.rule_sets import action, compiled, decide, rule, subject, words
from tests.system.gate_ordinary import GROUPS

BROKER = compiled(rule("deny", "rm -rf **"), rule("ask", "git push **"))


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf x",
        "/bin/rm -r -f x",
        "sudo rm -rf x",
        "sudo -u root FOO=1 rm -rf x",
        "sudo -s rm -rf x",
        "doas -u root rm -rf x",
        "su -c 'rm -rf x'",
        "su - bob -c 'rm -rf x'",
        "runuser -u bob -- rm -rf x",
        "pkexec rm -rf x",
        "env FOO=1 rm -rf x",
        "env -i -u X - rm -fr x",
        "env -S 'rm -rf' x",
        "env -S '-i FOO=1 rm' -rf x",
        "env -vS 'rm -rf x'",
        "env -S rm -rf x",
        "env --split-string='rm -r' -f x",
        "env -S '-S rm' -rf x",
        "nice -n 5 rm -rf x",
        "nice -5 rm -rf x",
        "ionice -c 3 rm -rf x",
        "chrt -f 1 rm -rf x",
        "taskset -c 0 rm -rf x",
        "timeout -k 5 --signal KILL 10s rm -rf x",
        "nohup rm -rf x",
        "setsid -w rm -rf x",
        "stdbuf -oL rm -rf x",
        "time -p rm -rf x",
        "xargs rm -rf",
        "xargs -0 -n 1 -I{} rm -r {} -f",
        "find . -name x -exec rm -rf {} +",
        "find . -name x -execdir rm -rf {} ';'",
        "find . -name x -ok rm -r -f {} ';'",
        "watch -n 1 rm -rf x",
        "watch -x rm -rf x",
        "parallel -j 4 rm -rf ::: a b",
        "flock /tmp/l rm -rf x",
        "flock /tmp/l -c 'rm -rf x'",
        "flock -n /tmp/l --command 'rm -rf x'",
        "script -q -c 'rm -rf x' /dev/null",
        "busybox rm -rf x",
        "/bin/busybox sh -c 'rm -rf x'",
        "toybox rm -rf x",
        "/lib64/ld-linux-x86-64.so.2 /bin/rm -rf x",
        "/lib64/ld-linux-x86-64.so.2 --library-path /x --argv0 y /bin/rm -rf x",
        "bash -c 'rm -rf x'",
        "sh -ec 'rm -rf x'",
        "zsh -o pipefail -c 'rm -rf x'",
        "dash -c 'rm -rf x' name",
        "bash -c -l 'cd a && rm -rf x'",
        "bash -lc 'cd a && sudo env A=1 timeout 5 rm -rf x'",
        "bash --norc -c 'rm -rf x'",
        "chroot / rm -rf x",
        "unshare -Ur rm -rf x",
        "nsenter -t 1 -m rm -rf x",
        "systemd-run --user -p X=1 rm -rf x",
        "strace -f -o /x rm -rf x",
        "linux64 rm -rf x",
        "setarch x86_64 -R rm -rf x",
        "prlimit --nofile=1 rm -rf x",
        "setpriv --no-new-privs rm -rf x",
        "git -c 'alias.x=!rm -rf x' x",
        "git -c core.sshCommand='rm -rf x' fetch",
        "git submodule foreach 'rm -rf x'",
        "git bisect run rm -rf x",
        "git rebase -x 'rm -rf x' main",
        "git filter-branch --tree-filter 'rm -rf x'",
        "npx rm -rf x",
        "npx -c 'rm -rf x'",
        "npm exec -- rm -rf x",
        "npm x -c 'rm -rf x'",
        "pnpm exec rm -rf x",
        "yarn exec rm -rf x",
        "uv run rm -rf x",
        "uv tool run rm -rf x",
        "poetry run rm -rf x",
        "bundle exec rm -rf x",
        "bash -c 'exec -a foo rm -rf x'",
        "bash -c 'command rm -rf x'",
        "bash -c 'builtin eval rm -rf x'",
        "bash -c 'eval \"rm -rf x\"'",
        "bash -c \"trap 'rm -rf x' EXIT\"",
        'sh -c "sh -c \\"sh -c \'rm -rf x\'\\""',
    ],
)
def test_the_rule_for_what_is_run_is_met(line):
    assert decide(BROKER, line).rule == "deny rm -rf **"


@pytest.mark.parametrize(
    "text",
    [
        "rm -rf x",
        "  rm\t-rf   x  ",
        "true; rm -rf x",
        "true && rm -rf x || false",
        "ls | xargs rm -rf",
        "rm -rf x &",
        "(cd a; rm -rf x)",
        "{ rm -rf x; }",
        "! rm -rf x",
        "if true; then rm -rf x; fi",
        "if false; then ls; elif rm -rf x; then ls; fi",
        "while rm -rf x; do ls; done",
        "for i in a b; do rm -rf $i; done",
        "for ((i=0; i<3; i++)); do rm -rf $i; done",
        "case $1 in a|b) rm -rf x;; *) ls;; esac",
        "f() { rm -rf x; }; f",
        "function f { rm -rf x; }\nf",
        "echo $(rm -rf x)",
        'echo "a $(rm -rf x) b"',
        "echo `rm -rf x`",
        'echo "`rm -rf x`"',
        "cat <(rm -rf x)",
        "tee >(rm -rf x)",
        "A=1 B='x y' rm -rf x",
        "A=$(rm -rf x) ls",
        "r''m -r\"f\" x",
        "r\\m -\\rf x",
        "$'\\x72\\155' -rf x",
        "rm \\\n-rf x",
        "rm -rf x > /dev/null 2>&1 < f",
        ">f 2>&1 rm -rf x",
        "rm -rf x # why",
        "# first\nrm -rf x",
        "ls\nrm -rf x\nls",
        "cat <<EOF\nnothing\nEOF\nrm -rf x",
        "cat <<-'EOF' && rm -rf x\n\tnothing\n\tEOF",
        "bash <<'EOF'\nrm -rf x\nEOF",
        "[[ a && b ]] && rm -rf x",
        "((1)) && rm -rf x",
        "a=(1 2 3) && rm -rf x",
        "echo ${a:-b} $((1+2)) && rm -rf x",
        "time rm -rf x",
        "coproc rm -rf x",
        "coproc { rm -rf x; }",
        "coproc NAME { rm -rf x; }",
        "coproc NAME while true; do rm -rf x; done",
        "coproc NAME for f in x; do rm -rf $f; done",
        "coproc NAME ( rm -rf x )",
        'find . | while read f; do rm -rf "$f"; done',
    ],
)
def test_a_shells_text(text):
    found = BROKER.decide(Subject(argv=(b"bash", b"-c", text.encode())))
    assert found.rule == "deny rm -rf **"


#: real bash runs `rm` for each of them (a test below has it do so)
SUBSTITUTIONS = [
    "arr=($(rm -rf x))",
    "a=(1 `rm -rf x`)",
    'a=(1 "$(rm -rf x)")',
    "a+=(\\) ')' \"$(rm -rf x)\")",
    "a=(1 # it's\n $(rm -rf x))",
    "a=(<(rm -rf x)); wait",
    "a=([0]=$(rm -rf x))",
    "f() { local b=($(rm -rf x)); }; f",
    "declare -a a=(1 $(rm -rf x))",
    "cat <<E\n$(rm -rf x)\nE",
    "cat <<-E\n\t`rm -rf x`\n\tE",
    "cat <<E\n\tE\n'\nE\nrm -rf x #'",
    "cat <<E\na\\\nE\n$(rm -rf x)\nE",
    "cat <<E\nit's \"${b:-$(rm -rf x)}\nE",
    "cat <<E; cat <<'F'\n$(rm -rf x)\nE\n$(ls)\nF",
    "cat <<E\n$(cat <<F\n$(rm -rf x)\nF\n)\nE",
    "bash <<E\necho $(rm -rf x)\nE",
    "echo ${b:-$(rm -rf x)}",
    'echo "${b:-$(rm -rf x)}"',
    "echo ${b:-`rm -rf x`}",
    "echo ${b:-<(rm -rf x)}; wait",
    'echo ${b:-${c:-"$(rm -rf x)"}}',
    "echo \"${b:-'$(rm -rf x)'}\"",
    "b=a; echo ${b:-{}; rm -rf x",
    'b=y; printf %s "${b/$(rm -rf x)/}"',
    'b=y; printf %s "${b//\'"\'/}" $(rm -rf x)',
    "b=y; printf %s \"${b//$'\\''/}\"; rm -rf x #'",
    "b=y; echo ${b%$}; rm -rf x",
    "echo ${$}; rm -rf x",
    "b=y; echo ${b:$(rm -rf x)0:1}",
    "echo $((`rm -rf x` 1))",
    "echo $(( $(rm -rf x) + 1 ))",
    'echo "$(( $(rm -rf x) + 1 ))"',
    "echo $(( 1 + $(( $(rm -rf x) 2 )) ))",
    "echo $(( ${b:-$(rm -rf x)} + 1 ))",
    "echo $[ $(rm -rf x) + 1 ]",
    "(( $(rm -rf x) 1 ))",
    "for ((i = 0$(rm -rf x); i < 1; i++)); do ls; done",
    "((rm -rf x) ; ls)",
    "echo $((rm -rf x); ls)",
    "echo ${a[$(rm -rf x)0]}",
    "a[$(rm -rf x)0]=1",
    "(( a[$(rm -rf x)0] ))",
    "[[ -e <(rm -rf x) ]]; wait",
    "if [[ a < b ]]; then rm -rf x; fi",
    "([[ a && b ]]) && [[ a ]]&& rm -rf x",
    "[[ b ]]|rm -rf x",
    "echo \"${b:-'$(echo 'a'; rm -rf x)'}\"",
    'echo "$`rm -rf x`"',
    'echo "$\\"; ls"; rm -rf x',
    'echo "`\\"rm\\" -rf x`"',
]


@pytest.mark.parametrize("text", SUBSTITUTIONS)
def test_substitutions_are_read_wherever_they_are_made(text, tmp_path):
    found = BROKER.decide(Subject(argv=(b"bash", b"-c", text.encode())))
    assert (found.rule, found.is_cut) == ("deny rm -rf **", False)
    tool = tmp_path / "bin/rm"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/ran\n')
    tool.chmod(0o755)
    subprocess.run(
        ["bash", "-c", text],
        env={"PATH": f"{tool.parent}:{os.environ['PATH']}"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert (tmp_path / "ran").read_text() == "-rf x\n"


@pytest.mark.parametrize(
    "text",
    [
        "cat <<'E'\n$(rm -rf x)\nE",
        "cat <<\\E\n`rm -rf x`\nE",
        "cat <<E\n\\$(rm -rf x) \\`rm -rf x\\`\nE",
        "a=(rm -rf x)",
        "local a=(rm -rf x)",
        "a=('$(rm -rf x)' \\$\\(rm -rf x\\))",
        "a=(1 # $(rm -rf x)\n2)",
        "echo ${b:-'$(rm -rf x)'}",
        'echo "${b:-\\$(rm -rf x)}"',
        "echo $(( rm + (2 * rf) - x ))",
        "((rm - rf - x))",
        "(( (a + b) * c ))",
        "echo ${#b} ${b##*/} ${b%%.*} ${b//a/b} ${b:-c} ${b:0:2} ${!b} ${b^^} ${a[@]} $$ $? $#",
        "echo \"${b//\\'/}\" \"${b//$'\\n'/ }\" \"${b//'\"'/}\" '${'",
        "cat > f <<E\nit's \"a $b ${c}\nE",
        'git commit -m "$(cat <<\'E\'\nIt\'s (so) "good" `x` ${y\nE\n)"',
        "[[ $a < $b && $c =~ ^(x|y)$ ]]",
        "sed 's/a$/b/' f | grep \"^$b$\" | awk '{ print $1 }'",
        'for f in *.c; do gcc -c "${f%.c}.o" & done; wait',
    ],
)
def test_what_is_no_substitution_is_not_read_as_one(text):
    found = BROKER.decide(Subject(argv=(b"bash", b"-c", text.encode())))
    assert (found.action, found.is_cut) == ("allow", False)


@pytest.mark.parametrize(
    "text",
    [
        "echo ${ rm -rf x; }",
        "echo ${| rm -rf x; }",
        "cat <<$(x)\nls\n$(x)\nrm -rf x",
        "echo \"${b:-it's}\"; rm -rf x; echo 'a'",
        "b=y; echo \"${b//'$('/}\"; rm -rf x; echo '",
        "${a:-" * 40 + "$(rm -rf x)" + "}" * 40,
        "echo $((" * 40 + "$(rm -rf x)" + "))" * 40,
        "((" * 3000 + " `x`",
    ],
    ids=lambda text: text[:16],
)
def test_where_a_command_may_hide_it_is_said(text):
    found = BROKER.decide(Subject(argv=(b"bash", b"-c", text.encode())))
    assert found.is_cut or found.rule == "deny rm -rf **"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0])
def test_ordinary_lines_are_read_whole(group):
    for line in group[2]:
        assert not read_text(line.encode()).is_cut


@pytest.mark.parametrize(
    "line",
    [
        "echo rm -rf x",
        "bash -c 'echo rm -rf x'",
        "bash -c \"echo 'rm -rf x'\"",
        "bash -c 'cat <<EOF\nrm -rf x\nEOF'",
        "bash -c '# rm -rf x\nls'",
        "bash -c \"grep 'a; rm -rf x' f\"",
        "bash -c 'a=(rm -rf x)'",
        "bash -c 'case rm in rm) ls;; esac'",
        "bash -c 'ls > rm -rf x'",
        "ssh host rm -rf x",
        "docker run img rm -rf x",
        "find . -name rm -print",
        "xargs echo rm -rf",
        "timeout 5 echo rm -rf x",
        "git commit -m 'rm -rf x'",
        "sudo -l",
        "env",
        "su",
        "bash script.sh rm -rf x",
        "python3 -c 'import os; os.system(\"rm -rf x\")'",
    ],
)
def test_what_is_only_words_is_not_met(line):
    assert action(BROKER, line) == "allow"


@pytest.mark.parametrize(
    ("line", "rule_of"),
    [
        ("python3 -m pip install x", "pip install **"),
        ("python3.11 -I -m pip install x", "pip install **"),
        ("uv pip install x", "pip install **"),
        ("docker-compose down -v", "docker compose down -v **"),
        ("docker container run --privileged x", "docker run --privileged **"),
        ("git -c alias.p=push p origin", "git push **"),
        ("git -c alias.p='push --force' p origin", "git push --force **"),
        ("/usr/lib/git-core/git-push origin", "git push **"),
        ("git-push -f origin", "git push --force **"),
        ("npm publ", "npm publish"),
        ("node /usr/bin/npm publish", "npm publish **"),
        ("node --no-warnings /usr/lib/node_modules/npm/bin/npm-cli.js publish", "npm publish **"),
        ("python3 -I /usr/bin/twine upload x", "twine upload **"),
        ("bash -e ./deploy.sh now", "./deploy.sh **"),
        ("ruby /usr/bin/gem push x", "gem push **"),
        ("npm run-script x", "npm run x"),
        ("apt-get -y install x", "apt-get install **"),
        ("nodejs -e x", "node -e **"),
    ],
)
def test_other_names_of_the_same(line, rule_of):
    assert action(compiled(rule("deny", rule_of)), line) == "deny"


def test_the_verdict_says_how_it_was_read():
    found = decide(BROKER, "sudo bash -c 'cd a && git push'")
    assert found.read_as == (
        words("sudo bash -c 'cd a && git push'"),
        words("bash -c 'cd a && git push'"),
        words("cd a"),
        words("git push"),
    )


def test_what_meets_a_gate_of_its_own_may_be_left_to_it():
    for line in ("sudo rm -rf x", "bash -c 'rm -rf x'", "xargs rm -rf"):
        assert BROKER.decide(subject(line), whole=False).action == "allow"
    for line in ("busybox rm -rf x", "/lib/ld-linux.so.2 /bin/rm -rf x", "systemd-run rm -rf x"):
        assert BROKER.decide(subject(line), whole=False).action == "deny"


def test_what_is_too_deep_is_asked_about():
    line = "env " * (MOST_DEPTH + 1) + "ls"
    found = decide(BROKER, line)
    assert (found.action, found.rule) == ("ask", None) and "too deep" in found.reason
    assert action(BROKER, "env " * MOST_DEPTH + "ls") == "allow"


@pytest.mark.parametrize("name", sorted(wrappers._FIND))
def test_every_wrapper_can_be_read(name):
    for rest in ((), (b"-x",), (b"-c", b"ls"), (b"a", b"b", b"c"), (b"--", b"ls"), (b"",)):
        for argv in ((name, *rest), (b"", *rest)):
            assert all(inner.argv or inner.text is not None for inner in unwrap(name, argv, {}))


def test_texts_in_texts_for_env_are_read_or_said_to_be_too_deep():
    for times in (1, 3, 6, 200):
        argv = (b"env", *[b"-iS-v"] * times, b"rm", b"-rf", b"x")
        assert BROKER.decide(Subject(argv=argv)).action in ("deny", "ask")


def test_parts_are_bounded():
    text = b"; ".join([b"sudo ls"] * 10_000)
    parts = parts_of(Subject(argv=(b"bash", b"-c", text)))
    assert len(parts) <= MOST_PARTS and parts[0].unclear


def test_an_allow_list_holds_for_each_part_but_not_for_builtins():
    broker = compiled(rule("allow", "bash **"), rule("allow", "git status **"), default="deny")
    assert action(broker, "bash -c 'cd x && git status'") == "allow"
    assert action(broker, "bash -c 'cd x && git status && git log'") == "deny"
    assert action(broker, "bash -c '$x y'") == "allow"  # the gate sees what that is
    assert action(broker, "bash -c '$x y'", in_world=False) == "deny"


def test_functions_of_the_text_are_no_programs():
    broker = compiled(rule("allow", "bash **"), rule("allow", "ls **"), default="deny")
    assert action(broker, "bash -c 'f() { ls; }; f'") == "allow"


def test_a_rule_may_speak_of_a_builtin():
    assert action(compiled(rule("deny", "cd /etc")), "bash -c 'cd /etc && ls'") == "deny"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ls -l", "allow"),
        ("ls > f", "deny"),
        ("ls; ls", "deny"),
        ("ls & ", "deny"),
        ("ls | cat", "deny"),
        ("ls && ls", "deny"),
        ("echo $(ls)", "deny"),
        ("echo `ls`", "deny"),
        ('echo "$(ls)"', "deny"),
        ("ls\nls", "deny"),
        ("(ls)", "deny"),
        ("echo ${a:-$(ls)}", "deny"),
        ("echo 'a; b' \"c | d\" $x", "allow"),
        ("ls\n", "allow"),
    ],
)
def test_operators_may_be_forbidden(text, expected):
    broker = compiled(allow_operators=False)
    assert broker.decide(Subject(argv=(b"bash", b"-c", text.encode()))).action == expected
    outer = Subject(argv=(b"sudo", b"bash", b"-c", text.encode()))
    assert broker.decide(outer).action == expected


def test_splitting_as_env_does():
    assert split_words(b"a 'b c' \"d e\" f\\ g h\\_i ''") == (
        b"a",
        b"b c",
        b"d e",
        b"f g",
        b"h",
        b"i",
        b"",
    )


PIECES = st.sampled_from(
    [b"rm -rf x", b"ls", b"$(", b")", b"`", b"'", b'"', b";", b"&&", b"|", b"\n", b"<<E", b"E", b"case x in",
     b"esac", b"{", b"}", b"((", b"))", b"$((", b"${", b"\\", b"$'", b"f()", b"if", b"fi", b"[[", b"]]", b"a=(",
     b">", b"<(", b"#", b"}", b"${x:-", b"<<-E\n", b"\n\tE\n", b"a[", b" ", b"for i in", b"do", b"done", b"sudo ", b"sh -c ", b"env -S "]
)  # fmt: skip
HOSTILE = st.one_of(
    st.lists(PIECES, max_size=30).map(b" ".join),
    st.lists(PIECES, max_size=30).map(b"".join),
    st.binary(max_size=80),
)


@given(HOSTILE)
def test_no_text_raises_or_grows_without_bound(text):
    given_one = Subject(argv=(b"sh", b"-c", text))
    parts = parts_of(given_one)
    assert len(parts) <= MOST_PARTS
    assert max(part.depth for part in parts) <= MOST_DEPTH
    assert BROKER.decide(given_one) == BROKER.decide(given_one)


@given(
    st.lists(
        st.one_of(
            PIECES,
            st.sampled_from(
                [
                    b"sudo",
                    b"env",
                    b"find",
                    b"-exec",
                    b"xargs",
                    b"timeout",
                    b"git",
                    b"-c",
                    b"alias.x=!ls",
                ]
            ),
        ),
        min_size=1,
        max_size=14,
    )
)
def test_no_argv_raises_and_the_whole_is_as_strict_as_each_part(argv):
    whole = BROKER.decide(Subject(argv=tuple(argv)))
    for part in parts_of(Subject(argv=tuple(argv))):
        if part.how in ("given", "exec"):
            alone = BROKER.decide(Subject(argv=part.argv))
            if "too deep" not in alone.reason:
                assert STRICTNESS[whole.action] >= STRICTNESS[alone.action]


@pytest.mark.parametrize(
    "piece",
    [
        b"$(",
        b"`",
        b"${",
        b"a=('",
        b"<<E\n",
        b"((",
        b"case x in ",
        b"'",
        b'"',
        b"x;",
        b"f() { ",
        b"\\",
        b"( ",
        b"$((",
        b"${x:-'",
        b'"${x:-\'"',
        b"${",
        b"$((1))",
        b"a=($(",
        b"<<E\n$(",
        b"<<E\n${x\nE\n",
        b'"`',
        b"(( (",
    ],
)
def test_steps_grow_with_the_text_and_no_faster(piece):
    """A reader of quadratic time would not come back."""
    read_text(piece * MOST_TEXT)


@pytest.mark.parametrize(
    "words",
    [
        [b"git", b"submodule", b"foreach", *[b"--"] * 80_000],
        [b"pnpm", b"exec", *[b"-"] * 120_000],
        [b"git", b"push", *[b"push"] * 50_000],
        [b"git", b"push", *[b"./"] * 80_000],
        [b"rm", b"-rf", *[b"/"] * 120_000],
        [b"env", *[b"-S"] * 80_000],
        [b"find", *[b"-exec", b"a", b";"] * 20_000],
    ],
    ids=lambda words: b" ".join(words[:3]).decode(),
)
def test_no_argv_of_the_longest_holds_up_whoever_decides(words):
    """One thread decides for all that a session runs: quadratic steps would stop every clock of it."""
    subject = Subject(argv=tuple(words), program=b"/usr/bin/" + words[0], cwd=b"/a" * 2000)
    assert len(b"\0".join(words)) <= 256 << 10
    for whole in (True, False):
        BROKER.decide(subject, whole=whole)


def test_words_behind_the_most_may_be_anything():
    long = subject("git " + "-q " * MOST_WORDS + "push")
    assert BROKER.decide(long).action == "ask"
    assert len(parts_of(long)[0].argv) == MOST_WORDS


@pytest.mark.parametrize(
    ("program", "line", "expected"),
    [
        ("/usr/bin/git", "git-push origin", "ask"),
        ("/usr/lib/git-core/git-push", "git-push origin", "ask"),
        ("", "/usr/lib/git-core/git-push origin", "ask"),
        ("/usr/bin/git", "git-fetch origin", "allow"),
        ("/usr/bin/busybox", "busybox sh -c 'ls; rm -rf x'", "deny"),
        ("/usr/bin/busybox", "sh -c 'rm -rf x'", "deny"),
        ("/usr/bin/busybox", "busybox xargs rm -rf", "deny"),
        ("/usr/bin/busybox", "busybox env sh -c 'rm -rf x'", "deny"),
        ("/usr/bin/busybox", "find . -exec rm -rf {} ;", "deny"),
        ("/usr/bin/busybox", "busybox-1.36 rm -rf x", "deny"),
        ("/usr/bin/busybox", "busybox sh -c 'ls'", "allow"),
        ("/usr/bin/dash", "sh -c 'rm -rf x'", "allow"),  # rm meets the gate by itself
    ],
)
def test_what_one_process_does_is_judged_at_its_only_exec(program, line, expected):
    given_one = subject(line, program=program.encode())
    assert BROKER.decide(given_one, whole=False).action == expected


@pytest.mark.parametrize(
    ("program", "line", "expected"),
    [
        ("/usr/bin/systemctl", "ls poweroff", "deny"),
        ("/usr/sbin/ip", "ls netns exec a b", "deny"),
        ("/usr/bin/kmod", "ls x", "deny"),
        ("/usr/bin/busybox", "ls x", "allow"),
        ("/usr/bin/ls", "ls x", "allow"),
        ("/usr/bin/systemctl", "reboot", "allow"),
    ],
)
def test_no_program_passes_as_another_that_is_allowed(program, line, expected):
    broker = compiled(rule("allow", "ls **"), rule("allow", "reboot **"), default="deny")
    assert broker.decide(subject(line, program=program.encode()), whole=False).action == expected
