"""What of an environment goes into a world."""

import fnmatch
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from substrate.world import environment
from substrate.world.environment import select


def outcome(name, text=b"x", **options):
    chosen = select({name: text}, **options)
    if (name, text) in chosen.passed:
        return "passed"
    assert chosen.passed == ()
    return "masked" if name in chosen.masked else "withheld"


PASSED = b"""
PATH HOME LANG LC_ALL TZ PWD OLDPWD TERM EDITOR LESSOPEN NO_COLOR CLICOLOR_FORCE CI CFLAGS CMAKE_GENERATOR
PKG_CONFIG_PATH PYTHONPATH PYTHONDONTWRITEBYTECODE PIP_INDEX_URL UV_CACHE_DIR VIRTUAL_ENV
CONDA_PREFIX NODE_ENV NODE_PATH npm_config_registry NVM_DIR CARGO_HOME RUSTFLAGS RUST_BACKTRACE
GOPATH GOFLAGS JAVA_HOME MAVEN_OPTS GRADLE_USER_HOME GEM_HOME BUNDLE_PATH GIT_AUTHOR_NAME
GIT_AUTHOR_EMAIL GIT_COMMITTER_DATE GIT_DIR DEBIAN_FRONTEND SOURCE_DATE_EPOCH SSL_CERT_FILE
REQUESTS_CA_BUNDLE LD_LIBRARY_PATH GITHUB_SHA CI_COMMIT_SHA XDG_CACHE_HOME BASH_FUNC_module%%
""".split()
WITHHELD = b"""
SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO DBUS_SESSION_BUS_ADDRESS XDG_RUNTIME_DIR DISPLAY
WAYLAND_DISPLAY XAUTHORITY LD_PRELOAD LD_AUDIT BASH_ENV ENV PROMPT_COMMAND DOCKER_HOST KUBECONFIG
GIT_ASKPASS GIT_SSH_COMMAND SHELLOPTS AWS_SECRET_ACCESS_KEY AWS_PROFILE ANTHROPIC_API_KEY
SUBSTRATE_HOME DATABASE_URL MY_VARIABLE http_proxy HTTPS_PROXY NOTIFY_SOCKET
""".split()
MASKED = b"""
UV_PUBLISH_TOKEN UV_PUBLISH_PASSWORD NPM_CONFIG__AUTH npm_config__auth npm_config__authToken
NODE_AUTH_TOKEN GITHUB_TOKEN CI_JOB_TOKEN CI_JOB_JWT CARGO_REGISTRY_TOKEN POETRY_PYPI_TOKEN_X
GOAUTH GEM_HOST_API_KEY BUNDLE_GEMS__EXAMPLE__PASSWORD PYTHON_API_KEY GIT_PASS RUNNER_COOKIE
MAVEN_GPG_PASSPHRASE CI_DEPLOY_PAT PIP_CREDENTIALS CONDA_SECRETS
""".split()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [(n, "passed") for n in PASSED]
    + [(n, "withheld") for n in WITHHELD]
    + [(n, "masked") for n in MASKED],
    ids=os.fsdecode,
)
def test_by_name(name, wanted):
    assert outcome(name) == wanted


@pytest.mark.parametrize(
    "text",
    [
        b"https://user:pass@pypi.example/simple",
        b"https://token@pypi.example/simple",
        b"https://a.example/ https://u:p@b.example/",
        b"https://proxy.example,https://u:p@b.example,direct",
        b"git+https://x-access-token:abc@example.org/r.git",
        b"https://us:er@info@example.org",
        b"'http.extraheader=AUTHORIZATION: basic eHg='",
        b"Authorization: Bearer x",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
        b"ghp_0123456789",
        b"AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_a_secret_in_the_value_is_masked(text):
    assert outcome(b"PIP_INDEX_URL", text) == "masked"
    assert outcome(b"PIP_INDEX_URL", text, also=[b"PIP_INDEX_URL"]) == "passed"


@pytest.mark.parametrize(
    "text",
    [
        b"https://pypi.example/simple",
        b"https://pypi.example/@scope/x:y",
        b"ssh://git@example.org/r.git",
        b"git@example.org:r.git",
        b"https://example.org/?q=a@b",
        b"someone@example.org",
        b"",
    ],
)
def test_what_only_looks_a_little_like_one_passes(text):
    assert outcome(b"PIP_INDEX_URL", text) == "passed"


def test_the_exact_name_opens_every_door():
    for name in (*WITHHELD, *MASKED):
        assert outcome(name, also=[name]) == "passed"


def test_a_pattern_of_the_users_adds_names_but_no_secrets():
    assert outcome(b"MY_VARIABLE", also=[b"MY_*"]) == "passed"
    assert outcome(b"MY_TOKEN", also=[b"MY_*"]) == "masked"
    assert outcome(b"MY_TOKEN", also=[b"*"]) == "masked"
    assert outcome(b"SSH_AUTH_SOCK", also=[b"SSH_*", b"*"]) == "withheld"


def test_drop_beats_also():
    assert outcome(b"PATH", drop=[b"PATH"]) == "withheld"
    assert outcome(b"PYTHONPATH", drop=[b"PYTHON*"], also=[b"PYTHONPATH"]) == "withheld"


def test_set_beats_all():
    chosen = select({b"PATH": b"/bin"}, drop=[b"PATH"], set_to={b"PATH": b"/x", b"A_TOKEN": b"t"})
    assert chosen.passed == ((b"A_TOKEN", b"t"), (b"PATH", b"/x"))
    assert chosen.withheld == chosen.masked == ()


def test_proxies_go_where_the_hosts_network_is():
    assert outcome(b"https_proxy", b"http://10.0.0.1:3128", host_network=True) == "passed"
    assert outcome(b"HTTPS_PROXY", b"http://u:p@10.0.0.1:3128", host_network=True) == "masked"


NAMES = st.text("ABCTOKENSECRTPASWDKEYUHI_*%0", min_size=1, max_size=24).map(str.encode)
ENVIRONS = st.dictionaries(
    NAMES | st.sampled_from([*PASSED, *WITHHELD, *MASKED]), st.binary(max_size=40), max_size=12
)


@given(ENVIRONS, st.lists(NAMES, max_size=4), st.booleans())
@example({b"GIT_X_TOKEN": b"1"}, [b"GIT_*"], True)
def test_no_secret_passes_unless_named(environ, also, host_network):
    chosen = select(environ, also=also, host_network=host_network)
    exact = {name for name in also if b"*" not in name}
    for name, _ in chosen.passed:
        for part in (b"TOKEN", b"SECRET", b"PASSWORD", b"CREDENTIAL"):
            assert part not in name or name in exact
        last = name.rsplit(b"_", 1)[-1]
        assert last not in (b"KEY", b"AUTH", b"PASS") or name in exact


@given(ENVIRONS, st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=2))
def test_everything_is_accounted_for_in_order(environ, also, drop):
    chosen = select(environ, also=also, drop=drop)
    names = [name for name, _ in chosen.passed]
    for part in (names, list(chosen.withheld), list(chosen.masked)):
        assert part == sorted(part)
    assert sorted([*names, *chosen.withheld, *chosen.masked]) == sorted(environ)
    assert all(environ[name] == text for name, text in chosen.passed)
    reordered = dict(reversed(environ.items()))
    assert select(reordered, also=also, drop=drop) == chosen


@given(st.text("AB*", max_size=8), st.text("AB", max_size=10))
def test_patterns_match_as_globs_do(pattern, name):
    ours = environment._Patterns([pattern.encode()]).match(name.encode())
    assert ours == fnmatch.fnmatchcase(name, pattern)
