"""Questions to a real HTTP server on loopback (policy.md §3)."""

import json
import os
import socket
import ssl
import threading
import time

import pytest

from substrate.errors import ConfigError
from substrate.session.approvals_values import ALWAYS
from substrate.session.approvals_webhook import load_key, make_key
from tests.nethosts.certificates import Authority
from tests.session.approvals_hook import Hook, signature
from tests.session.approvals_scene import Place, asked, held, run_until

DENIED = {"answer": "deny"}


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def hook(place):
    made = Hook(make_key(place.home.fd))
    yield made
    made.close()


def ask(place, url, what=None, *, timeout_s=20.0):
    """The one answer that comes of it."""
    approving = place.approving(webhook=url, timeout_s=timeout_s)
    try:
        known = approving.ask(what or asked("t"), time.monotonic())
        if known is not None:
            return known
        (answer,) = run_until(approving, lambda answers: answers)
        return answer
    finally:
        approving.close()


def url(hook, path="/ask"):
    return f"http://127.0.0.1:{hook.port}{path}"


def test_it_is_asked_and_allows(place, hook):
    hook.answer = lambda *_: {"answer": "allow", "by": "alice\x1b[2J"}
    answer = ask(
        place, url(hook, "/ask?team=a"), asked("t", chain=(b"bash x.sh",), touches=("h:1",))
    )
    assert (answer.allowed, answer.how, answer.scope) == (True, "person", "once")
    assert answer.approved_by == "webhook by alice\\e[2J"
    assert hook.requests == [("POST", "/ask?team=a", True)]
    (question,) = hook.questions
    assert question["schema"] == "substrate.approval-question/1"
    assert question["id"] == f"{place.files.session_id}:1"
    assert (question["command"], question["argv"]) == ("git push", ["git", "push"])
    assert (question["cwd"], question["program"]) == ("/work", "/usr/bin/git")
    assert (question["rule"], question["risk"]) == ("builtin command[1]", "high")
    assert question["variables"] == []
    assert question["parents"] == ["bash x.sh"] and question["touches"] == ["h:1"]
    assert 0 < question["expires_at"] - question["asked_at"] <= 20


def test_it_denies(place, hook):
    hook.answer = lambda *_: DENIED
    answer = ask(place, url(hook))
    assert (answer.allowed, answer.how) == (False, "person")
    assert "no, said webhook" in answer.line


def test_for_the_session(place, hook):
    hook.answer = lambda *_: {"answer": "allow", "for": "session"}
    assert ask(place, url(hook)).scope == "session"
    assert ask(place, url(hook), asked("t", action="spn_9")).how == "earlier"
    assert len(hook.requests) == 1


def test_secrets_are_not_sent(place, hook):
    words = ("curl", "-u", "me:hunter2secret", "https://me:hunter2secret@example.com")
    ask(place, url(hook), asked("t", *words))
    assert "hunter2secret" not in json.dumps(hook.questions)


def test_it_answers_later(place, hook):
    left = [2]

    def answer(request, _question):
        if request[0] == "POST" or left.pop():
            left.append(0)
            return 202, {"Location": "/later?n=1", "Retry-After": "0.2"}, b""
        return {"answer": "allow"}

    hook.answer = answer
    assert ask(place, url(hook)).allowed
    assert [r for r in hook.requests if not r[2]] == []
    assert {r[:2] for r in hook.requests} == {("POST", "/ask"), ("GET", "/later?n=1")}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ((500, {}, b""), "answered 500"),
        ((302, {"Location": "/other"}, b""), "answered 302"),
        ((204, {}, b""), "answered 204"),
        ((202, {"Location": "http://127.0.0.1:1/x"}, b""), "another server"),
        ((200, {}, b'{"answer": "allow"}'), "not signed"),
        ((200, {"X-Substrate-Signature": "sha256=" + "0" * 64}, b"{}"), "not signed"),
        ((200, {"X-Substrate-Signature": "sha256=\xff"}, b"{}"), "not signed"),
        ((200, {}, b"x" * 70000), "larger than"),
        ({"answer": "yes"}, "neither allow nor deny"),
        ({"answer": "allow", "for": ALWAYS}, "neither allow nor deny"),
        ({"answer": "allow", "for": ["once"]}, "neither allow nor deny"),
        ({"answer": "allow", "nonce": "0" * 32}, "another question"),
        ({"answer": "allow", "id": "ses_x:1"}, "another question"),
        ({"answer": "allow", "schema": "else"}, "is not substrate.approval-answer/1"),
    ],
)
def test_whatever_is_no_answer_is_a_denial_that_says_why(place, hook, told, words):
    hook.answer = lambda *_: told
    answer = ask(place, url(hook))
    assert (answer.allowed, answer.how) == (False, "failed")
    assert words in answer.line
    assert "[approval] webhook" in answer.hint


def test_an_answer_cannot_be_played_again(place, hook):
    first = []

    def answer(_request, question):
        if not first:
            text = json.dumps({
                "schema": "substrate.approval-answer/1", "id": question["id"],
                "nonce": question["nonce"], "answer": "allow",
            })  # fmt: skip
            made = signature(hook.key, "answer", text)
            first.append((200, {"X-Substrate-Signature": made}, text.encode()))
        return first[0]

    hook.answer = answer
    assert ask(place, url(hook)).allowed
    assert "another question" in ask(place, url(hook), asked("t", "git", "tag")).line


def test_nobody_listens(place):
    make_key(place.home.fd)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        answer = ask(place, f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert (answer.allowed, answer.how) == (False, "failed")
    assert "ConnectionRefusedError" in answer.line


def test_without_a_key_nothing_is_sent(place):
    answer = ask(place, "http://127.0.0.1:9/")
    assert (answer.allowed, answer.how) == (False, "failed")
    assert "there is no key" in answer.line


def test_plain_http_to_elsewhere_is_refused(place):
    make_key(place.home.fd)
    answer = ask(place, "http://192.0.2.1/")
    assert "neither https" in answer.line and not answer.allowed


def test_one_that_is_silent_is_ended_in_time_and_stops_nothing(place, hook):
    silent = threading.Event()
    hook.answer = lambda *_: silent.wait(30) and DENIED
    approving = place.approving(webhook=url(hook), timeout_s=2.0)
    try:
        before = time.monotonic()
        assert approving.ask(asked("t"), before) is None
        slowest = 0.0

        def over(answers):
            nonlocal slowest
            begun = time.monotonic()
            approving.pump(begun)
            slowest = max(slowest, time.monotonic() - begun)
            return answers or approving.state.open_questions() == ()

        answers = run_until(approving, over) + approving.answers()
        assert [a.how for a in answers] in (["timeout"], ["failed"])
        assert not answers[0].allowed
        assert time.monotonic() - before < 10
        assert slowest < 1.0
    finally:
        silent.set()
        approving.close()


def test_its_process_ends_with_the_question(place, hook):
    silent = threading.Event()
    hook.answer = lambda *_: silent.wait(30) and DENIED
    approving = place.approving(webhook=url(hook), timeout_s=60.0)
    try:
        assert approving.ask(asked("t"), time.monotonic()) is None
        (asking,) = approving._webhooks.values()
        run_until(approving, lambda _: hook.requests)
        approving.end_action("spn_1")
        assert approving.fds() == ()
        assert not os.path.exists(f"/proc/{asking._pid}")
    finally:
        silent.set()
        approving.close()


@pytest.fixture
def secure(place, tmp_path):
    """An https server, and the authority that vouches for it."""
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certify("127.0.0.1"))
    made = Hook(make_key(place.home.fd), context)
    yield made, authority
    made.close()


def test_a_certificate_is_verified(place, secure, monkeypatch):
    hook, authority = secure
    there = f"https://127.0.0.1:{hook.port}/"
    answer = ask(place, there)
    assert (answer.allowed, answer.how) == (False, "failed")
    assert "certificate" in answer.line.lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    assert ask(place, there, asked("t", "git", "tag")).allowed
    wrong = ask(place, f"https://localhost:{hook.port}/", asked("t", "git", "fetch"))
    assert not wrong.allowed and "certificate" in wrong.line.lower()


def test_proxies_of_the_environment_are_not_asked(place, hook, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    assert ask(place, url(hook)).allowed


def test_an_answer_by_the_socket_counts_before_it(place, hook):
    silent = threading.Event()
    hook.answer = lambda *_: silent.wait(30) and DENIED
    approving = place.approving(webhook=url(hook))
    try:
        assert approving.ask(asked("t", given=held("git", "push")), time.monotonic()) is None
        approving.decide(1, "once", "control uid=0 pid=1")
        (answer,) = approving.answers()
        assert answer.allowed and answer.approved_by.startswith("control")
        assert approving.fds() == ()
    finally:
        silent.set()
        approving.close()


def test_the_key_is_one_and_for_us_alone(place):
    key = make_key(place.home.fd)
    assert make_key(place.home.fd) == key == load_key(place.home.fd)
    path = place.home.path + b"/keys/webhook.key"
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.chmod(path, 0o640)
    with pytest.raises(ConfigError, match="others can read"):
        load_key(place.home.fd)
    os.unlink(path)
    os.symlink("/dev/zero", path)
    with pytest.raises(ConfigError):
        load_key(place.home.fd)
