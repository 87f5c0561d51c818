"""A learned policy allows the session that it was learned of, and not much else."""

import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.errors import TraceCorrupt
from substrate.policy.decide import compile_policy
from substrate.policy.learn import learn, learned_policy, write_patterns
from substrate.policy.needs import Needs, collect
from substrate.policy.rules import Subject
from substrate.telemetry.trace.octets import text_or_b64

#: the machine that runs this has other work, too
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def start(*argv, exe=None, interpreter=None, parent=1):
    words = [text_or_b64(word.encode() if isinstance(word, str) else word) for word in argv]
    return {
        "event_type": "process_start",
        "body": {
            "argv": words, "exe": exe or f"/usr/bin/{argv[0]}", "cwd": "/work", "parent": parent,
            "interpreter": interpreter,
        },
    }  # fmt: skip


def command(text, scopes=(), ended_by="exit", span="spn_1"):
    display = {"argv": ["bash", "-c", text], "cmd": text}
    yield {
        "event_type": "command_start", "span_id": span, "body": {"display": display, "cwd": "/work"},
    }  # fmt: skip
    yield {
        "event_type": "command_end", "span_id": span,
        "body": {
            "ended_by": ended_by,
            "scopes_used": [{"scope": scope, "connections": number} for scope, number in scopes],
        },
    }  # fmt: skip


def diff(*paths):
    return {"event_type": "fs_diff", "body": {"entries": [{"path": path} for path in paths]}}


def learned(events):
    needs = collect(events)
    found = learn(needs, "ses_0123456789", b"/work", b"/home/me")
    assert found.problems == ()
    return needs, found, compile_policy(learned_policy(found.text))


def action(compiled, *argv, **fields):
    return compiled.decide(Subject(argv=tuple(w.encode() for w in argv), **fields)).action


def test_what_ran_is_allowed_and_nothing_else():
    _, found, compiled = learned(
        [*command("make && ls"), start("bash", "-c", "make && ls"), start("make"), start("ls"), start("cc", "-c", "a.c")]
    )  # fmt: skip
    assert action(compiled, "make") == "allow"
    assert action(compiled, "cc", "-c", "a.c") == "allow"
    assert action(compiled, "cc", "-c", "b.c") == "deny"
    assert action(compiled, "make", "install") == "deny"
    assert action(compiled, "curl", "https://example.com") == "deny"
    assert 'match = ["ls"' not in found.text  # the profile lets it run
    assert found.rules == 2


def test_a_program_that_was_run_in_many_ways_may_run_in_all():
    _, found, compiled = learned([start("cc", "-c", f"{n}.c") for n in range(9)])
    assert found.rules == 1
    assert "# 9 times, 9 ways: cc -c 0.c" in found.text
    assert action(compiled, "cc", "-o", "x") == "allow"


def test_subcommands_are_kept_apart():
    _, _, compiled = learned([start("git", "-C", f"/{n}", "commit", "-m", "x") for n in range(9)])
    assert action(compiled, "git", "-C", "/y", "commit", "--amend") == "allow"
    assert action(compiled, "git", "push") == "deny"


def test_a_program_by_another_name_and_a_script():
    _, _, compiled = learned(
        [
            start("sh", "-c", "exit", exe="/usr/bin/dash"),
            start("/usr/bin/env", "node", "/x/tool", "--fast", exe="/x/tool", interpreter="/usr/bin/env"),
            start("node", "/x/tool", "--fast"),
        ]
    )  # fmt: skip
    assert action(compiled, "sh", "-c", "exit", program=b"/usr/bin/dash") == "allow"
    assert action(compiled, "/x/tool", "--slow", program=b"/x/tool") == "allow"
    assert action(compiled, "node", "/x/other") == "deny"


def test_words_are_taken_at_their_word():
    _, _, compiled = learned([start("tool", "a*b", "[x]", "q?", '"', "\n")])
    assert action(compiled, "tool", "a*b", "[x]", "q?", '"', "\n") == "allow"
    assert action(compiled, "tool", "aXb", "[x]", "q?", '"', "\n") == "deny"
    assert action(compiled, "tool", "a*b", "x", "q?", '"', "\n") == "deny"


def test_what_was_redacted_may_be_anything():
    _, _, compiled = learned([start("tool", "--token=[redacted:token]", "x")])
    assert action(compiled, "tool", "--token=secret", "x") == "allow"
    assert action(compiled, "tool", "--other=secret", "x") == "deny"


def test_whom_it_reached_and_where_it_wrote():
    scopes = [("tls://a.example:443", 2), ("tls://refused.example:443", 0), ("odd scope", 1)]
    _, found, _ = learned(
        [*command("x", scopes), diff("/work/src/a", "/work/b", "/home/me/.cache/x/y", "/srv/z")]
    )
    document = tomllib.loads(found.text)
    assert document["net"]["allow"] == ["tls://a.example:443"]
    assert "# was reached, and is no rule: 'odd scope'" in found.text
    assert document["fs"]["write"] == ["$PWD/**", "/srv/**", "~/.cache/x/**"]


def test_without_captured_programs_the_commands_count():
    _, found, compiled = learned([*command("make test")])
    assert "the programs were not captured" in found.text
    assert action(compiled, "bash", "-c", "make test") == "allow"
    assert action(compiled, "make", "install") == "deny"


def test_what_was_denied_is_no_need():
    needs, _, compiled = learned([*command("curl x", ended_by="denied")])
    assert needs.tops == {}
    assert action(compiled, "curl", "x") == "deny"


def test_a_body_that_cannot_be_read_is_told():
    with pytest.raises(TraceCorrupt, match="process_start cannot be read"):
        collect([{"event_type": "process_start", "seq": 3, "body": {"argv": 3}}])


def test_inner_directories_go_without_saying():
    written = {b"/var/a/b/c", b"/var/a/x", b"/root-file", b"/etc/[x]/y"}
    assert write_patterns(written, b"/work", b"/home/me") == [
        "/etc/[[]x]/**",
        "/root-file",
        "/var/a/**",
    ]


WORDS = st.binary(min_size=1, max_size=12).filter(lambda word: b"\0" not in word)
ARGV = st.lists(WORDS, max_size=5).flatmap(
    lambda rest: st.sampled_from(
        [b"git", b"rm", b"make", b"python3", b"tool", b"sh", b"env", b"xargs", b"docker", b"-x"]
    ).map(lambda name: (name, *rest))
)


@slow
@given(st.lists(ARGV, min_size=1, max_size=6))
def test_every_exec_of_a_session_passes(argvs):
    subjects = {Subject(argv=argv, program=b"/usr/bin/" + argv[0]): 1 for argv in argvs}
    tops = {Subject(argv=argv): 1 for argv in argvs}
    for needs in (Needs(subjects=subjects), Needs(tops=tops), Needs(subjects=subjects, tops=tops)):
        found = learn(needs, "ses_0123456789", b"/work", b"/home/me")
        assert found.problems == ()
