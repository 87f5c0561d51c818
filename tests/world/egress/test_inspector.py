"""What may be said where: the verdict on the bytes of a client, for each kind of rule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.world.egress.inspector import SPEAK, Inspector
from substrate.world.egress.speech import MOST
from tests.world.egress.hellos import (
    CHANGE,
    RETRY,
    body,
    extension,
    hello,
    message,
    parse_name,
    record,
    records,
    server_hello,
    server_name,
)

NAME = "api.example"
OTHER = b"other.example"
GET = b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n"
BAD = b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: api.example\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n"
)
HIDDEN = hello(b"api.example", extension(0xFE0D, b"sealed"))
EARLY = record(b"sealed", kind=23)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SSL2 = b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10"
COMPARED = ("any", "checked", "tls", "http")


def inspect(data, speak="checked", name=NAME, port=80):
    inspector = Inspector(name, speak, port, parse_name)
    inspector.feed(data)
    return inspector


def upgrade(offered, *more):
    lines = (b"GET / HTTP/1.1", b"Host: api.example", b"Connection: Upgrade", *more)
    return b"\r\n".join((*lines, b"Upgrade: " + offered, b"", b""))


# -- names --


@pytest.mark.parametrize("speak", ["any", "checked", "tls"])
def test_the_hello_has_to_name_it(speak):
    passed = inspect(hello(), speak)
    assert (passed.refused, passed.ready, passed.protocol) == ("", len(hello()), "tls")
    refused = inspect(hello(OTHER), speak)
    assert refused.refused == (
        "the TLS hello names other.example, the address was given for api.example"
    )
    assert (refused.ready, refused.splice, refused.said) == (0, 0, "other.example")


@pytest.mark.parametrize("speak", ["any", "checked", "http"])
def test_the_host_has_to_be_it(speak):
    passed = inspect(GET, speak)
    assert (passed.refused, passed.ready, passed.protocol) == ("", len(GET), "http")
    refused = inspect(BAD, speak)
    assert refused.refused == (
        "the request is for other.example, the address was given for api.example"
    )
    assert (refused.ready, refused.splice, refused.said) == (0, 0, "other.example")


@pytest.mark.parametrize(
    "said",
    [
        b"evilapi.example",
        b"api.example.evil.example",
        b"evil.example/api.example",
        b"api.example@evil.example",
        b"api.example evil.example",
        b"api.example,evil.example",
        b"api.example\tevil.example",
        b"api.example..",
        b".api.example",
        b"203.0.113.7",
        b"3405803783",
        b"[::ffff:203.0.113.7]",
        b"[2001:db8::1]",
        b"\xd0\xb0pi.example",
        b"api\xe3\x80\x82example",
        b"api.example:81",
        b"api.example:080",
        b"api.example:",
        b"api.example:80:80",
        b"",
    ],
)
def test_nothing_else_is_it(said):
    request = b"GET / HTTP/1.1\r\nHost: " + said + b"\r\n\r\n"
    for speak in ("any", "checked", "http"):
        found = inspect(request, speak)
        assert found.refused and found.ready == 0
        assert found.refused.isprintable() and found.refused.isascii()
    if said:
        found = inspect(hello(said), "checked")
        assert found.refused and found.ready == 0


@pytest.mark.parametrize(
    "said", [b"api.example", b"API.Example", b"api.example.", b"api.example:80"]
)
def test_spellings_of_it(said):
    found = inspect(b"GET / HTTP/1.1\r\nHost:\t" + said + b" \r\n\r\n")
    assert (found.refused, found.said) == ("", NAME)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"GET http://other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n", "other.example"),
        (b"GET http://api.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n", "other.example"),
        (b"GET http://api.example:81/ HTTP/1.1\r\nHost: api.example\r\n\r\n", "port 81"),
        (b"GET http://api.example/ HTTP/1.1\r\n\r\n", "no Host"),
        (b"GET / HTTP/1.0\r\n\r\n", "no Host"),
        (b"GET / HTTP/1.1\r\n\r\n", "no Host"),
        (b"CONNECT api.example:80 HTTP/1.1\r\nHost: api.example\r\n\r\n", "CONNECT"),
    ],
)
def test_targets_count_too(request_, reason):
    found = inspect(request_)
    assert reason in found.refused
    assert found.ready == 0


def test_an_absolute_target_may_name_it():
    request = b"GET http://API.example:80/ HTTP/1.1\r\nHost: api.example\r\n\r\n"
    assert inspect(request).ready == len(request)


@pytest.mark.parametrize("speak", ["any", "checked", "tls"])
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (hello(None), "names no server"),
        (HIDDEN, "encrypted_client_hello"),
        (SSL2, "SSL 2"),
        (record(message(body(server_name(b"api.example", OTHER)))), "several"),
        (record(message(body(server_name(b"api.example"), server_name(OTHER)))), "twice"),
        (b"\x16\x03\x01\x00\x00" + hello(), "length of 0"),
        (records(hello()[5:], 1)[:6] + hello(OTHER), "longer"),
    ],
)
def test_hellos_that_hide_or_confuse(raw, reason, speak):
    if speak == "tls" and raw == SSL2:
        reason = "SSL 2"
    found = inspect(raw, speak)
    assert reason in found.refused
    assert found.ready == 0


# -- which protocol --


@pytest.mark.parametrize(
    ("speak", "passes"),
    [
        ("any", {"tls", "http", "other", "h2"}),
        ("checked", {"tls", "http"}),
        ("tls", {"tls"}),
        ("http", {"http"}),
        ("unchecked", {"tls", "http", "other", "h2"}),
    ],
)
def test_what_may_be_spoken(speak, passes):
    said = {"tls": hello(), "http": GET, "other": b"\0\0\0\x08", "h2": PREFACE}
    found = {kind: inspect(raw, speak) for kind, raw in said.items()}
    assert {kind for kind, one in found.items() if one.ready == len(said[kind])} == passes
    assert {kind for kind, one in found.items() if not one.refused} == passes


@pytest.mark.parametrize("speak", ["checked", "http"])
def test_http2_without_tls_is_told_how_to_pass(speak):
    assert "tcp://" in inspect(PREFACE, speak).refused


@pytest.mark.parametrize(
    "first", [b"hello", b"\0", b"EHLO me\r\n", b"{", b"\x16\x2a", b"GETS", b"\xff\xfb\x01"]
)
def test_a_protocol_of_its_own_does_not_wait(first):
    found = inspect(first, "any")
    assert (found.refused, found.ready) == ("", len(first))
    found.feed(b"more")
    assert found.ready == len(first) + 4


def test_after_a_first_line_of_its_own_nothing_is_looked_at():
    found = inspect(b"EHLO me\r\n", "any")
    assert (found.protocol, found.splice, found.splice_upstream) == ("other", -1, -1)


def test_a_text_that_turns_out_to_be_http_is_checked():
    line = b"FOO / HTTP/1.1\r\n"
    found = inspect(b"FO", "any")
    assert found.ready == 2
    found.feed(line[2:] + b"Host: other.example\r\n\r\n")
    assert "other.example" in found.refused
    assert found.ready < len(line) - 2
    request = line + b"Host: api.example\r\n\r\n"
    good = inspect(request, "any")
    assert (good.refused, good.protocol, good.ready) == ("", "http", len(request))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\r\n" + GET, "before the request"),
        (b" " + GET, "before the request"),
        (b"GET /\r\n", "HTTP/0.9"),
        (b"GET http://other.example/\r\n", "HTTP/0.9"),
        (b"\nget /\n", "HTTP/0.9"),
        (b"GET\t/ HTTP/1.1\r\nHost: other.example\r\n\r\n", "HTTP/1"),
        (b"get / http/1.1\nHost: other.example\n\n", "line feed"),
        (b"GET /\0 HTTP/1.1\r\n", "control"),
        (b"GET /" + b"x" * MOST, "longer"),
        (b"FOO /" + b"x" * MOST, "longer"),
        (GET + PREFACE, "HTTP/2"),
    ],
)
def test_where_any_protocol_may_be_spoken_lax_http_is_not(raw, reason):
    assert reason in inspect(raw, "any").refused


@pytest.mark.parametrize("line", [b"GET key\r\n", b"POST\r\n", b"OPTIONS sip:a SIP/2.0\r\n"])
def test_words_of_http_in_other_protocols(line):
    found = inspect(line, "any")
    assert (found.refused, found.protocol, found.ready) == ("", "other", len(line))


# -- time --


@pytest.mark.parametrize("speak", ["checked", "tls", "http"])
@pytest.mark.parametrize("start", [b"", b"GE", b"\x16\x03", hello()[:-1]])
def test_what_is_not_said_in_time_is_refused(speak, start):
    found = inspect(start, speak)
    found.timed_out()
    assert found.refused


def test_a_server_that_speaks_first_may_be_waited_for():
    found = inspect(b"", "any")
    found.timed_out()
    found.feed_upstream(b"220 mail.example\r\n")
    assert (found.refused, found.splice) == ("", 0)
    found.feed(b"QUIT\r\n")
    assert (found.protocol, found.ready) == ("other", 6)


@pytest.mark.parametrize("start", [b"GE", b"GET", b"GET ", b"GET key"])
def test_a_word_of_http_that_is_all_passes_in_time_and_is_watched(start):
    found = inspect(start, "any")
    assert found.ready == 0
    found.timed_out()
    assert (found.refused, found.ready) == ("", len(start))
    found.feed(b"GET / HTTP/1.1"[len(start) :] if b"k" not in start else b" HTTP/1.1")
    found.feed(b"\r\nHost: other.example\r\n\r\n")
    assert found.refused
    assert found.ready < len(b"GET / HTTP/1.1")


def test_what_could_be_tls_does_not_pass_in_time():
    for start in (b"\x16", b"\x16\x03\x01\x00\x05", b"\x80\x2e", hello()[:-1]):
        found = inspect(start, "any")
        found.timed_out()
        assert found.refused and found.ready == 0


def test_time_does_not_matter_between_requests_nor_in_a_body():
    for data in (GET, GET + POST[:-2], CHUNKED[:-11], upgrade(b"websocket")):
        found = inspect(data)
        found.timed_out()
        assert (found.refused, found.ready) == ("", len(data))
    sent = inspect(hello())
    sent.timed_out()  # how long a server may take to answer is not for here
    assert (sent.refused, sent.needs_upstream_head) == ("", True)
    sent.feed_upstream(server_hello())
    sent.timed_out()
    assert (sent.refused, sent.splice) == ("", -1)
    half = inspect(GET + GET[:9])
    half.timed_out()
    assert "not complete" in half.refused
    assert half.ready == len(GET)


# -- requests on one connection --


def test_a_second_request_for_another_host_is_refused():
    found = inspect(GET)
    assert (found.splice_upstream, found.owed) == (0, True)  # its answer is looked at
    found.feed(BAD)
    assert "other.example" in found.refused
    assert found.ready == len(GET)
    found.feed(GET)
    assert found.ready == len(GET)


def test_what_is_owed_to_a_client_that_is_refused():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"
    found = inspect(GET + BAD)
    assert found.refused and found.owed
    found.feed_answer(answer)
    assert found.owed
    found.feed_answer(b"lo")
    assert not found.owed
    # a request that broke off is not answered
    found = inspect(POST[:-3])
    assert not found.owed
    found = inspect(GET)
    found.feed_upstream(answer)
    assert found.splice_upstream == 2
    found.spliced_upstream(2)
    assert (found.splice_upstream, found.owed) == (0, False)


def test_a_body_is_spliced():
    found = inspect(POST[:-3])
    assert found.splice == 3
    found.spliced(2)
    assert found.splice == 1
    found.spliced(1)
    assert found.splice == 0
    found.feed(BAD)
    assert found.refused and found.ready == len(POST) - 3


def test_what_may_be_spliced_may_be_fed():
    found = inspect(POST[:-3])
    found.feed(POST[-3:] + GET)
    assert (found.ready, found.splice) == (len(POST + GET), 0)


def test_no_more_is_spliced_than_may_be():
    found = inspect(POST[:-3])
    with pytest.raises(ValueError, match="4 bytes"):
        found.spliced(4)
    with pytest.raises(ValueError, match="unseen"):
        inspect(b"").spliced(1)


def test_expect_does_not_matter():
    head = (
        b"PUT / HTTP/1.1\r\nHost: api.example\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    )
    found = inspect(head)
    assert (found.ready, found.splice, found.needs_upstream_head) == (len(head), 9, False)


# -- changes of protocol --


def test_a_websocket_is_not_looked_at():
    first = upgrade(b"websocket")
    found = inspect(first + b"\x81\x05hello")
    assert (found.ready, found.splice, found.needs_upstream_head) == (len(first), 0, True)
    found.feed_upstream(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 1")
    assert found.splice_upstream == 0
    found.feed_upstream(b"01 Switching Protocols\r\n")
    assert (found.refused, found.splice, found.splice_upstream) == ("", -1, -1)
    assert found.ready == len(first) + 7
    assert not found.needs_upstream_head


def test_without_a_change_requests_go_on_being_judged():
    first = upgrade(b"h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
    found = inspect(first + GET)
    assert found.ready == len(first)
    found.feed_upstream(b"HTTP/1.1 200 OK\r\n")
    assert (found.ready, found.needs_upstream_head) == (len(first + GET), False)
    found.feed(BAD)
    assert "other.example" in found.refused


@pytest.mark.parametrize("offered", [b"h2c", b"websocket, h2c", b"TLS/1.2", b"unknown"])
def test_a_change_to_what_could_name_others_is_refused(offered):
    for speak in ("checked", "http"):
        found = inspect(upgrade(offered), speak)
        found.feed_upstream(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert "tcp://" in found.refused
    found = inspect(upgrade(offered), "any")
    found.feed_upstream(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert (found.refused, found.splice) == ("", -1)


def test_the_answer_may_come_before_the_body_is_complete():
    first = upgrade(b"h2c", b"Content-Length: 5")
    found = inspect(first)
    assert (found.splice, found.needs_upstream_head) == (5, False)
    found.feed_upstream(b"HTTP/1.1 413 Too Large\r\n")
    found.feed(b"hello" + GET)
    assert (found.refused, found.ready) == ("", len(first) + 5 + len(GET))


def test_a_body_is_waited_for_before_the_answer():
    found = inspect(upgrade(b"h2c", b"Content-Length: 5"))
    found.spliced(5)
    assert (found.splice, found.needs_upstream_head) == (0, True)


def test_a_later_offer_is_not_followed():
    found = inspect(GET + upgrade(b"websocket"))
    assert (found.ready, found.needs_upstream_head) == (len(GET + upgrade(b"websocket")), False)
    found.feed_upstream(b"HTTP/1.1 101 \r\n")
    found.feed(b"\x81\x05hello\r\n")
    assert found.refused


def test_too_much_before_the_answer_is_refused():
    found = inspect(upgrade(b"websocket") + b"x" * (4 * MOST + 1))
    assert "too much" in found.refused
    found = inspect(hello() + b"x" * (4 * MOST + 1))
    assert "too much" in found.refused


# -- the second hello --


def test_after_the_servers_hello_everything_passes():
    found = inspect(hello() + EARLY)
    assert (found.ready, found.splice, found.splice_upstream) == (len(hello()), 0, 0)
    assert found.needs_upstream_head
    answer = server_hello()
    found.feed_upstream(answer[:20])
    assert found.splice == 0
    found.feed_upstream(answer[20:])
    assert (found.ready, found.splice, found.splice_upstream) == (len(hello() + EARLY), -1, -1)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (hello(), ""),
        (records(hello()[5:], 3), ""),
        (hello(OTHER), "other.example"),
        (hello(None), "names no server"),
        (HIDDEN, "encrypted_client_hello"),
        (record(message(b"", kind=16)), "type 16"),
    ],
)
def test_a_second_hello_has_to_name_it_too(second, reason, early):
    """`early`: the client says it before the server has asked."""
    found = inspect(hello())
    if early:
        found.feed(CHANGE + EARLY + second)
    found.feed_upstream(server_hello(RETRY))
    if not early:
        assert (found.ready, found.splice, found.splice_upstream) == (len(hello()), 0, -1)
        found.feed(CHANGE + EARLY + second)
    before = len(hello() + CHANGE + EARLY)
    if reason:
        assert reason in found.refused
        assert (found.ready, found.splice) == (before, 0)
    else:
        assert (found.refused, found.ready, found.splice) == ("", before + len(second), -1)


def test_a_server_that_does_not_answer_in_tls():
    for speak in ("checked", "tls"):
        found = inspect(hello(), speak)
        found.feed_upstream(b"220 mail.example\r\n")
        assert "did not answer in TLS" in found.refused
    found = inspect(hello(), "any")
    found.feed_upstream(b"220 mail.example\r\n")
    assert (found.refused, found.splice) == ("", -1)


# -- without names, without checks --


@pytest.mark.parametrize(
    ("raw", "protocol", "said"),
    [
        (hello(), "tls", "api.example"),
        (hello(None), "tls", ""),
        (HIDDEN, "tls", "api.example"),
        (BAD, "http", "other.example"),
        (b"GET http://third.example/ HTTP/1.1\r\nHost: a\r\n\r\n", "http", "third.example"),
        (b"GET / HTTP/1.0\r\n\r\n", "http", ""),
        (b"GET / HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n", "other", ""),
        (b"GET / HTTP/1.1\r\nHost: 203.0.113.7:99\r\n\r\n", "http", "203.0.113.7"),
        (record(message(b"x")), "other", ""),
        (PREFACE, "other", ""),
        (SSL2, "other", ""),
        (b"\0", "other", ""),
        (b"hello\r\n", "other", ""),
    ],
)
@pytest.mark.parametrize(("name", "speak"), [(NAME, "unchecked"), ("", "any"), ("", "unchecked")])
def test_unchecked_everything_passes_and_is_told(raw, protocol, said, name, speak):
    found = inspect(raw, speak, name)
    assert (found.refused, found.ready, found.splice) == ("", len(raw), -1)
    assert (found.protocol, found.said) == (protocol, said)


def test_unchecked_nothing_waits():
    found = inspect(b"GET / HT", "unchecked")
    assert (found.ready, found.splice) == (8, 0)
    found.timed_out()
    assert (found.refused, found.protocol, found.splice) == ("", "other", -1)


def test_an_address_has_no_name_to_compare():
    for said in (b"other.example", b"203.0.113.7:81", b"[2001:db8::1]"):
        found = inspect(b"GET / HTTP/1.1\r\nHost: " + said + b"\r\n\r\n", "http", "")
        assert (found.refused, found.splice) == ("", 0)
    assert found.said == "[2001:db8::1]"
    assert inspect(GET + BAD, "http", "").ready == len(GET + BAD)
    assert inspect(HIDDEN, "tls", "").splice == -1
    smuggled = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert "both" in inspect(smuggled, "http", "").refused
    assert inspect(b"SSH-2.0-x\r\n", "tls", "").refused


def test_an_unknown_way_to_speak_is_a_mistake():
    with pytest.raises(ValueError, match="speak is one of"):
        Inspector(NAME, "all", 80, parse_name)


def test_names_are_parsed_as_everywhere_by_default():
    pytest.importorskip("substrate.world.egress.names")
    inspector = Inspector(NAME, "checked", 80)
    inspector.feed(GET)
    assert (inspector.ready, inspector.said) == (len(GET), NAME)
    inspector.feed(BAD)
    assert inspector.refused


# -- whatever is said --

PIECES = (
    GET,
    BAD,
    POST,
    CHUNKED,
    upgrade(b"websocket"),
    PREFACE,
    hello(),
    hello(OTHER),
    HIDDEN,
    CHANGE,
    EARLY,
    records(hello()[5:], 9),
    SSL2,
    b"\r\n",
    b"hello",
    b"GET",
    b"\x16\x03\x01",
    b"FOO / HTTP/1.1\r\nHost: other.example\r\n\r\n",
    b"a b HTTP/1.0\r\nHost: api.example\r\n\r\n",
)
streams = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=30)), max_size=5).map(
    b"".join
)
modes = st.tuples(st.sampled_from(SPEAK), st.sampled_from((NAME, "")))
answers = st.sampled_from((b"", server_hello(), server_hello(RETRY), b"HTTP/1.1 200 OK\r\n", b"x"))


def verdict(found):
    return (
        found.refused,
        found.ready,
        found.protocol,
        found.said,
        found.splice,
        found.splice_upstream,
        found.needs_upstream_head,
    )


@settings(max_examples=400, deadline=None)
@given(streams, modes, answers, st.data())
def test_the_verdict_is_the_same_however_the_bytes_are_split(stream, mode, answer, data):
    speak, name = mode
    whole, split = inspect(stream, speak, name), inspect(b"", speak, name)
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, max(1, len(stream) // 4)))
        before = split.ready
        split.feed(stream[at : at + size])
        at += size
        assert before <= split.ready <= min(at, len(stream))
    assert verdict(split) == verdict(whole)
    whole.feed_upstream(answer)
    for byte in answer:
        split.feed_upstream(bytes([byte]))
    assert verdict(split) == verdict(whole)
    assert whole.refused.isprintable() and whole.refused.isascii() and len(whole.refused) < 600


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), modes, st.data())
def test_random_bytes_are_judged_whatever_comes(parts, mode, data):
    speak, name = mode
    found = Inspector(name, speak, 443, parse_name)
    for part in parts:
        step = data.draw(st.sampled_from((found.feed, found.feed_upstream)))
        step(part)
        if data.draw(st.booleans()):
            found.timed_out()
        if found.splice > 0:
            found.spliced(min(found.splice, 3))
    assert found.splice in (0, -1) or found.protocol == "http"


requests = st.sampled_from((GET, POST, CHUNKED))


@settings(deadline=None)
@given(
    st.lists(requests, max_size=6),
    st.lists(requests, max_size=3),
    st.sampled_from(
        (
            BAD,
            POST.replace(b"api.example", OTHER),
            CHUNKED.replace(b"api.example", b"api.example.evil"),
            b"GET http://other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n",
            GET.replace(b"\r\n\r\n", b"\r\nHost: other.example\r\n\r\n"),
            GET.replace(b"\r\nHost", b"\nHost"),
            b"\r\n" + BAD,
        )
    ),
    st.sampled_from(("any", "checked", "http")),
    st.data(),
)
def test_no_byte_of_a_request_for_another_passes(before, after, bad, speak, data):
    good = b"".join(before)
    if speak == "any" and not before and bad.startswith(b"\r\n"):
        good = b"\r\nGET / HTTP/"  # in front of it nothing could tell that it would be HTTP
    stream = b"".join((*before, bad, *after))
    found = inspect(b"", speak)
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, 200))
        found.feed(stream[at : at + size])
        at += size
    assert found.refused
    assert found.ready <= len(good)
    if before:
        assert found.ready == len(good)


@pytest.mark.parametrize("speak", COMPARED)
def test_a_refusal_is_the_end(speak):
    found = inspect(b"\x80" * 9 if speak != "any" else BAD, speak)
    refused = verdict(found)
    found.feed(GET)
    found.feed_upstream(server_hello())
    found.timed_out()
    found.spliced(0)
    assert found.refused and verdict(found) == refused
    assert (found.splice, found.splice_upstream, found.needs_upstream_head) == (0, 0, False)
