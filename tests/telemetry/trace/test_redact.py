import random
import shlex
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from substrate.telemetry.trace import redact, secret_rules
from substrate.telemetry.trace.canonical import encode_line, text_or_b64
from substrate.telemetry.trace.ids import new_session_id, new_span_id
from substrate.telemetry.trace.redact import (
    redact_argv,
    redact_body,
    redact_text,
    scan,
)

ORDINARY = (Path(__file__).parent / "ordinary_commands.txt").read_text().splitlines()


def letters(rng, count, alphabet=string.ascii_letters + string.digits):
    """`count` random letters, at least one a digit."""
    return "".join(rng.choices(alphabet, k=count - 1)) + rng.choice(string.digits)


UPPER = string.ascii_uppercase + string.digits
SHAPES = {
    "aws_key": lambda r: "AKIA" + letters(r, 16, UPPER),
    "github_token": lambda r: r.choice(["ghp_", "gho_", "ghs_"]) + letters(r, 36),
    "github_pat": lambda r: "github_pat_" + letters(r, 22) + "_" + letters(r, 40),
    "gitlab_token": lambda r: "glpat-" + letters(r, 20),
    "slack_token": lambda r: r.choice(["xoxb-", "xoxp-"]) + letters(r, 12) + "-" + letters(r, 24),
    "openai": lambda r: r.choice(["sk-", "sk-proj-"]) + letters(r, 40),
    "anthropic": lambda r: "sk-ant-api03-" + letters(r, 90),
    "stripe": lambda r: "sk_live_" + letters(r, 24),
    "google": lambda r: "AIza" + letters(r, 35),
    "npm": lambda r: "npm_" + letters(r, 36),
    "pypi": lambda r: "pypi-AgEIcHlwaS5vcmc" + letters(r, 60),
    "jwt": lambda r: f"eyJ{letters(r, 20)}.eyJ{letters(r, 40)}.{letters(r, 43)}",
    "huggingface": lambda r: "hf_" + letters(r, 34),
    "age": lambda r: "AGE-SECRET-KEY-1" + letters(r, 58, UPPER),
    "pem": lambda r: (
        f"-----BEGIN RSA PRIVATE KEY-----\n{letters(r, 64)}\n-----END RSA PRIVATE KEY-----"
    ),
}
#: {} is the secret: one that only its place gives away
PLACES = [
    "--password {}",
    "--password={}",
    "--password '{}'",
    '--password="{}"',
    "PGPASSWORD={} psql",
    "MYSQL_PWD='{}'",
    "export GITHUB_TOKEN={}",
    "API_KEY={}",
    "STRIPE_KEY={}",
    "AWS_SECRET_ACCESS_KEY={}",
    "client_secret: {}",
    '{{"password": "{}"}}',
    "{{'apiKey': '{}'}}",
    '-d "{{\\"token\\":\\"{}\\"}}"',
    "https://example.org/x?access_token={}&page=2",
    "https://example.org/x?api_key={}",
    "curl -u someone:{} http://localhost",
    "curl --user someone:{}",
    "curl --user=someone:{}",
    "curl -usomeone:{}",
    "curl -fsSu 'someone:{}'",
    "-H 'Authorization: Bearer {}'",
    '-H "Authorization: token {}"',
    "-H 'Cookie: a=b; session={}'",
    "Set-Cookie: sid={}; Path=/",
    "-H 'X-Api-Key: {}'",
    "-H X-Auth-Token:{}",
    "-H 'PRIVATE-TOKEN: {}'",
    "bearer {}",
    "postgres://someone:{}@localhost/db",
    "https://someone:{}@git.example.org/x.git",
    "mysql -u root -p{} app",
    "sshpass -p {} ssh host",
    "sshpass -p{} ssh host",
    "redis-cli -a {} ping",
    "curl -b 'sid={}' http://localhost",
    "openssl rsa -passin pass:{}",
    "Server=db;User Id=sa;Password={};Encrypt=yes",
    "DefaultEndpointsProtocol=https;AccountKey={};x=y",
    "//registry.example.org/:_authToken={}",
    "password = {}",
    'password := "{}"',
    "kubectl create secret generic x --from-literal=password={}",
]


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_command_lines_come_through_unchanged(line):
    assert redact_text(line) == line
    assert redact_argv(["bash", "-c", line]) == ["bash", "-c", line]
    if "$" not in line:  # a shell would have replaced it in the arguments
        assert redact_argv(shlex.split(line)) == shlex.split(line)


def test_the_ordinary_command_lines_are_many():
    assert len(ORDINARY) >= 60


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("kind", SHAPES)
@given(seed=seeds, before=texts, after=texts)
@settings(max_examples=40, deadline=None)
def test_a_known_shape_never_survives_wherever_it_stands(kind, seed, before, after):
    secret = SHAPES[kind](random.Random(seed))
    for text in (f"{before} {secret} {after}", f"x={secret}", f'"{secret}"', f"/{secret}/"):
        safe = redact_text(text)
        assert secret not in safe
        assert "[redacted:" in safe
        assert redact_text(safe) == safe
        assert redact_argv(["run", text])[1] != text


SECRETS = st.text(string.ascii_letters + string.digits + "!%+./_~^*", min_size=8, max_size=40).map(
    lambda text: "Zq7" + text + "9kX"
)


@pytest.mark.parametrize("place", PLACES)
@given(secret=SECRETS, before=texts)
@settings(max_examples=40, deadline=None)
def test_a_secret_never_survives_where_its_place_gives_it_away(place, secret, before):
    assume(not {"Zq7", "9kX"} & {before[n : n + 3] for n in range(len(before))})
    text = place.format(secret)
    for whole in (text, f"{before}\n{text}", f"cd /x && {text} && ls", f'bash -c "{text}"'):
        safe = redact_text(whole)
        assert "Zq7" not in safe, safe
        assert "9kX" not in safe, safe
        assert redact_text(safe) == safe


@given(secret=SECRETS | st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=40))
@settings(deadline=None)
@pytest.mark.parametrize(
    "argv",
    [
        ["tool", "--password", "{}"],
        ["tool", "--password={}", "x"],
        ["tool", "--api-key", "{}"],
        ["env", "DB_PASSWORD={}", "tool"],
        ["curl", "-H", "X-Api-Key: {}"],
        ["curl", "-H", "Authorization: Bearer {}"],
        ["/usr/bin/mysql", "-u", "root", "-p{}"],
        ["sudo", "sshpass", "-p", "{}", "ssh"],
    ],
)
def test_a_secret_argument_is_redacted_whole(argv, secret):
    if secret.strip().lower() in secret_rules.NO_VALUES or secret.startswith("-"):
        return
    planted = [word.format(secret) for word in argv]
    safe = redact_argv(planted)
    assert len(safe) == len(planted)
    for word, was, template in zip(safe, planted, argv, strict=True):
        if template.endswith("{}"):
            assert word.endswith("]"), (word, was)
            assert word.partition("[redacted:")[0] in template
        else:
            assert word == was
    assert redact_argv(safe) == safe


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a --password 'two words' b", "a --password '[redacted:password]' b"),
        ("--password=a'b c'd e", "--password=[redacted:password] e"),
        ("PASS=x\\ y z", "PASS=[redacted:password] z"),
        ('{"password": "a\\"b", "user": "u"}', '{"password": "[redacted:password]", "user": "u"}'),
        ("https://u:p@ss@h/x", "https://[redacted:userinfo]@h/x"),
        ("https://u:p/w@h/x", "https://[redacted:userinfo]@h/x"),
        ("Password=a;Uid=b", "Password=[redacted:password];Uid=b"),
        ("x?token=abc&b=c", "x?token=[redacted:token]&b=c"),
        ('bash -c "curl --password x1"', 'bash -c "curl --password [redacted:password]"'),
        ("TOKEN='$ecret'", "TOKEN='[redacted:token]'"),
        ("(PASS=x1)", "(PASS=[redacted:password])"),
        ("--key 0123abcd4567efgh", "--key [redacted:key]"),
    ],
)
def test_only_the_secret_is_taken_away(text, safe):
    assert redact_text(text) == safe


def test_a_variable_is_a_secret_only_where_no_shell_expands_it():
    assert redact_argv(["tool", "--password=$ecret"]) == ["tool", "--password=[redacted:password]"]
    assert redact_text("tool --password=$SECRET") == "tool --password=$SECRET"


def test_scan_says_kind_and_place():
    text = "é " + "ghp_" + "a1" * 18 + " --password x1"
    assert [(kind, text[start:end]) for kind, start, end in scan(text)] == [
        ("github_token", "ghp_" + "a1" * 18),
        ("password", "x1"),
    ]


FRAGMENTS = [
    *("password", "PWD", "--token", "key", "sig", "auth", "-u", "--user", "curl", "mysql", "-p"),
    *("=", ":", " ", "\t", "\n", "'", '"', "\\", "\\'", '\\"', "&", ";", "|", "@", "://", "/", "$"),
    *(
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "[redacted:password]",
        "[redacted:",
        "bearer",
        "Basic",
        "baſic",
    ),
    *("eyJ", "sk-", "AKIA", ".", "-", "--", "a", "x1", "Zm9vOmJhcg==", "id=", "true", ",", "\xa0"),
    *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "K", "0123456789abcdef", "ghp_"),
]
tangles = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)


@given(tangles)
@settings(max_examples=1500, deadline=None)
@example("'password='password='a")
def test_redacting_twice_changes_nothing(text):
    once = redact_text(text)
    assert redact_text(once) == once


@given(tangles, st.booleans())
@settings(max_examples=1500, deadline=None)
def test_where_the_cheap_check_says_no_no_rule_fires(text, literal):
    if not redact.is_suspicious(text, text.lower()):
        assert secret_rules.find_secrets(text, literal=literal) == []


@given(st.lists(tangles, max_size=5))
@settings(max_examples=800, deadline=None)
def test_arguments_stay_as_many_and_redacting_twice_changes_nothing(argv):
    once = redact_argv(argv)
    assert len(once) == len(argv)
    assert redact_argv(once) == once


def test_ids_digests_and_references_come_through_unharmed():
    body = {
        "span": new_span_id(),
        "session": new_session_id(),
        "digest": "0a1b" * 16,
        "argv": {"commitment": "ab" * 32, "size": 3, "media_type": "a/b", "encoding": "zlib"},
        "secret_env": {"API_KEY": {"commitment": "cd" * 32, "size": 3}},
        "env_names": ["API_KEY", "SSH_AUTH_SOCK", "PATH"],
        "input_tokens": 17,
        "rows": [[1, 2, "/usr/lib/x.so", None, True]],
        "public_key": "MCowBQYDK2VwAyEA" + "A" * 27 + "=",
    }
    assert redact_body(body) is body


def test_nothing_raw_comes_through_a_body():
    raw = b"--password=Zq7secret9kX \xff"
    body = {
        "password": "Zq7secret9kX",
        "nested": {"Authorization": "Bearer Zq7secret9kX"},
        "display": {"argv": ["mysql", "-pZq7secret9kX"], "cmd": "PASS=Zq7secret9kX x"},
        "rows": [[1, "read", "https://a:Zq7secret9kX@h/", None]],
        "bytes": text_or_b64(raw),
        "mixed": ["tool", text_or_b64(b"\xff"), "--token", text_or_b64(b"Zq7secret9kX\xff")],
        "TOKEN=Zq7secret9kX": 1,
    }
    safe = redact_body(body)
    line = encode_line(safe)
    assert b"Zq7secret9kX" not in line
    assert safe["mixed"][1] == {"b64": "/w=="}
    assert safe["mixed"][3] == "[redacted:token]"
    assert b"Zq7secret9kX" not in secret_rules.a2b_base64(safe["bytes"]["b64"])
    assert safe["rows"][0][0] == 1
    assert redact_body(safe) == safe
    assert body["password"] == "Zq7secret9kX"


MEGABYTE = 1_000_000
HOSTILE = {
    "weak": "key=",
    "substitution": "token=$(",
    "path": "auth=/",
    "quotes": 'cookie="',
    "flags": ',--cookie "',
    "mysql": 'mysql -p"-p" ',
    "jwt": "eyJ",
    "sk": "sk-",
    "url": "://a:b",
    "users": ",-u",
    "pem": "-----BEGIN PRIVATE KEY-----",
    "names": "a",
    "dashes": "-",
    "backslashes": "token=\\",
    "fields": "token=a&",
    "escaped": 'token=\\"',
    "bearer": "bearer ",
    "blanks": "token =        ",
    "headers": "cookie:$x ",
    "marks": "[redacted:",
    "basic": "basic aaaaaaaaa",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_megabyte_of_hostile_text_takes_linear_time(piece):
    # Not a benchmark: quadratic time would be minutes here, not seconds.
    text = (piece * (MEGABYTE // len(piece))) + " --password Zq7secret9kX"
    begin = time.process_time()
    safe = redact_text(text)
    assert time.process_time() - begin < 20
    assert "Zq7secret9kX" not in safe


def test_texts_without_secrets_do_not_load_the_rules():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from substrate.telemetry.trace.redact import redact_body\n"
        "redact_body({'argv': ['bash', '-c', 'ls -la /usr/lib | grep x'], 'env': ['API_KEY']})\n"
        "new = set(sys.modules) - before\n"
        "sys.exit('re' in new or any('secret_rules' in name for name in new))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "text", ["basic knowledge of café", "Basic crème-brûlée", "basic ²²²²²²²²"]
)
def test_basic_before_what_cannot_be_base64_is_no_credential(text: str) -> None:
    assert redact_text(text) == text
