"""What `@` groups come to: by the tools' own configuration, and by nothing that a tree planted."""

import hashlib
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate.policy import trust
from substrate.policy.group_git import git_settings
from substrate.policy.group_look import host_and_port, ini_lines
from substrate.policy.groups import GROUPS, Around, expand
from substrate.world.egress.rule import BadRule, parse_rule

#: the machine that runs this has other work, too
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Tools:
    """A user and a system with configurations of tools."""

    def __init__(self, ground):
        self.ground = ground
        self.root = ground.user.parent / "root"
        self.root.mkdir()
        self.environ = {b"HOME": os.fsencode(ground.user)}
        self.repository = ground.work / ".git"

    def user(self, name, text):
        return self.ground.write(self.ground.user / name, text)

    def system(self, name, text):
        return self.ground.write(self.root / name.lstrip("/"), text)

    def tree(self, name, text):
        return self.ground.write(self.ground.work / name, text)

    def expand(self, *names):
        around = Around(
            environ=self.environ,
            home=os.fsencode(self.ground.home),
            user_home=os.fsencode(self.ground.user),
            workspace=os.fsencode(self.ground.work),
            repository=None if self.repository is None else os.fsencode(self.repository),
            root=os.fsencode(self.root),
        )
        return expand(names, around, time.time_ns())

    def rules(self, name):
        return {member.rule for member in self.expand(name).members[name]}

    def notes(self, name):
        return "\n".join(self.expand(name).notes)


@pytest.fixture
def tools(ground):
    return Tools(ground)


def test_without_configuration_the_tools_own_defaults_count(tools):
    assert tools.rules("@pip") == {"pypi.org:443", "files.pythonhosted.org:443"}
    assert tools.rules("@npm") == {"registry.npmjs.org:443", "registry.yarnpkg.com:443"}
    assert tools.rules("@cargo") == {
        "index.crates.io:443", "static.crates.io:443", "crates.io:443",
    }  # fmt: skip
    assert tools.rules("@go") == {"proxy.golang.org:443", "sum.golang.org:443"}
    assert tools.rules("@apt") == set()
    assert tools.rules("@git-remotes") == set()


def test_pip_mirrors_stand_in_place_of_the_default(tools):
    tools.user(
        ".config/pip/pip.conf", "[global]\nindex-url = https://user:pw@mirror.example:8443/simple\n"
    )
    assert tools.rules("@pip") == {"mirror.example:8443"}
    (member,) = tools.expand("@pip").members["@pip"]
    assert member.source.startswith("[global] index-url in ") and "pw" not in member.source


def test_further_pip_indexes_add_to_the_default(tools):
    tools.system(
        "/etc/pip.conf",
        "[install]\nextra_index_url =\n    https://a.example/simple\n    https://b.example/simple\n"
        "find-links = http://c.example/wheels\n    /srv/wheels\n",
    )
    assert tools.rules("@pip") == {
        "pypi.org:443", "files.pythonhosted.org:443",
        "a.example:443", "b.example:443", "c.example:80",
    }  # fmt: skip


def test_variables_count(tools):
    tools.environ.update({
        b"PIP_INDEX_URL": b"https://env.example/simple", b"UV_DEFAULT_INDEX": b"main=https://uv.example/",
        b"npm_config_registry": b"https://npm.example/", b"GOPROXY": b"https://go.example|direct",
        b"GOSUMDB": b"off", b"CARGO_REGISTRIES_MINE_INDEX": b"sparse+https://crates.example/",
    })  # fmt: skip
    assert tools.rules("@pip") == {"env.example:443", "uv.example:443"}
    assert tools.rules("@npm") == {"npm.example:443"}
    assert tools.rules("@go") == {"go.example:443"}
    assert "direct" in tools.notes("@go")
    assert "crates.example:443" in tools.rules("@cargo")


def test_uv_files(tools):
    tools.user(
        ".config/uv/uv.toml",
        '[[index]]\nname = "a"\nurl = "https://a.example/"\ndefault = true\n[[index]]\nurl = "https://b.example/"\n'
        '[pip]\nextra-index-url = ["https://c.example/"]\n',
    )
    assert tools.rules("@pip") == {"a.example:443", "b.example:443", "c.example:443"}


def test_pip_config_file_of_dev_null_switches_files_off(tools):
    tools.user(".config/pip/pip.conf", "[global]\nindex-url = https://mirror.example/\n")
    tools.environ[b"PIP_CONFIG_FILE"] = b"/dev/null"
    assert "pypi.org:443" in tools.rules("@pip")


def test_npm_registries_and_scopes(tools):
    tools.user(
        ".npmrc",
        "; comment\nregistry=https://npm.example/x/\n@corp:registry = http://corp.example:4873/\n"
        "//corp.example:4873/:_authToken=secret\nproxy=http://proxy.example:3128\n",
    )
    assert tools.rules("@npm") == {"npm.example:443", "corp.example:4873"}
    assert "proxy is not allowed by itself" in tools.notes("@npm")
    assert "secret" not in repr(tools.expand("@npm"))


def test_yarn_registries(tools):
    tools.user(".yarnrc.yml", 'npmRegistryServer: "https://yarn.example"\n')
    assert tools.rules("@npm") == {"registry.npmjs.org:443", "yarn.example:443"}
    tools.user(".yarnrc.yml", "")
    tools.user(".yarnrc", 'registry "https://one.example/"\n')
    assert "one.example:443" in tools.rules("@npm")


def test_cargo_source_replacement(tools):
    tools.user(
        ".cargo/config.toml",
        '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\nregistry = "sparse+https://mirror.example/index/"\n'
        '[registries.mine]\nindex = "https://git.example/index.git"\n',
    )
    assert tools.rules("@cargo") == {"mirror.example:443", "git.example:443"}


def test_go_files(tools):
    tools.user(
        ".config/go/env",
        "GOPROXY=https://goproxy.example,https://other.example\nGOSUMDB=sum.example+abc https://db.example/x\n",
    )
    assert tools.rules("@go") == {"goproxy.example:443", "other.example:443", "db.example:443"}
    tools.environ[b"GOENV"] = b"off"
    assert tools.rules("@go") == {"proxy.golang.org:443", "sum.golang.org:443"}


def test_apt_sources(tools):
    tools.system(
        "/etc/apt/sources.list",
        "# deb http://no.example/ x main\ndeb [arch=amd64 signed-by=/k] https://one.example/debian x main\n"
        "deb-src http://two.example/ x main\ndeb cdrom:[x]/ x main\ndeb tor+http://onion.example/ x main\n",
    )
    tools.system(
        "/etc/apt/sources.list.d/three.sources",
        "Types: deb\nURIs: http://three.example/debian\n  https://four.example:8443/\nSuites: x\n\n"
        "Types: deb\nEnabled: no\nURIs: http://no.example/\n\nTypes: deb\nURIs: mirror+file:/etc/apt/mirrors\n",
    )
    tools.system("/etc/apt/mirrors", "http://five.example/debian\tpriority:1\n")
    tools.system("/etc/apt/sources.list.d/off.list.save", "deb http://no.example/ x main\n")
    assert tools.rules("@apt") == {
        "one.example:443", "two.example:80", "three.example:80", "four.example:8443", "five.example:80",
    }  # fmt: skip
    assert "onion.example" in tools.notes("@apt")


def git_config(tools, text):
    tools.tree(".git/config", text)


def test_git_remotes(tools):
    git_config(
        tools,
        '[core]\n\tbare = false\n[remote "origin"]\n\turl = git@github.example:me/x.git\n'
        '\tpushurl = ssh://git@push.example:2222/x\n[remote "https"] url = https://token@web.example/x # note\n'
        '[remote "here"]\n\turl = /srv/git/x.git\n[remote "odd"]\n\turl = ext::sh -c evil\n'
        '[remote "git"]\n\turl = git://plain.example/x\n[submodule "s"]\n\turl = https://submodule.example/\n',
    )
    assert tools.rules("@git-remotes") == {
        "github.example:22", "push.example:2222", "web.example:443", "plain.example:9418",
    }  # fmt: skip
    sources = {member.source for member in tools.expand("@git-remotes").members["@git-remotes"]}
    assert f'remote "origin" in {tools.ground.work}/.git/config' in sources
    assert "token" not in repr(tools.expand("@git-remotes").members)


def test_git_remotes_are_rewritten_as_the_user_says(tools):
    git_config(
        tools,
        '[remote "origin"]\n\turl = https://github.example/x\n[url "https://evil.example/"]\n\tinsteadOf = https://github.example/\n',
    )
    assert tools.rules("@git-remotes") == {"github.example:443"}
    tools.user(".gitconfig", "[include]\n\tpath = ~/more.conf\n")
    tools.user(
        "more.conf",
        '[url "ssh://git@mirror.example/"]\n\tinsteadOf = https://github.example/\n[url "git@push.example:"]\n\tpushInsteadOf = https://github.example/\n',
    )
    assert tools.rules("@git-remotes") == {"mirror.example:22", "push.example:22"}


@pytest.mark.parametrize(
    "url",
    [
        "https://*/x", "https://*.example/x", "http://169.254.169.254/x", "https://127.0.0.1/x",
        "http://10.0.0.1/x", "https://[::1]/x", "https://localhost/x", "https:///x", "https://a b/x",
        "https://0x7f.1/x", "https://good.example:0/x", "https://good.example:443x/", "git@*:x",
        "file:///etc/passwd", "../up", "https://" + "a" * 400 + ".example/",
    ],
)  # fmt: skip
def test_a_repository_cannot_name_what_is_no_host(tools, url):
    git_config(tools, f'[remote "origin"]\n\turl = {url}\n')
    assert tools.rules("@git-remotes") == set()


def test_a_repository_cannot_name_hosts_without_end(tools):
    git_config(
        tools, "".join(f'[remote "r{n}"]\n\turl = https://h{n}.example/\n' for n in range(5000))
    )
    assert len(tools.rules("@git-remotes")) == 64
    assert "more than 64 hosts" in tools.notes("@git-remotes")
    assert len(tools.expand("@git-remotes").notes) <= 64


def test_a_repository_through_a_symlink_does_not_count(tools):
    target = tools.user("other.conf", '[remote "origin"]\n\turl = https://evil.example/\n')
    (tools.ground.work / ".git/config").symlink_to(target)
    assert tools.rules("@git-remotes") == set()


def test_a_repository_that_lies_elsewhere_is_told(tools):
    tools.repository = None
    assert "lies elsewhere" in tools.notes("@git-remotes")


TREE = (
    ("@pip", "pip.conf", "[global]\nindex-url = https://planted.example/\n"),
    ("@npm", ".npmrc", "registry=https://planted.example/\n"),
    ("@cargo", ".cargo/config.toml", '[registries.x]\nindex = "https://planted.example/"\n'),
)


@pytest.mark.parametrize(("group", "name", "text"), TREE)
def test_what_a_tree_says_counts_only_where_it_is_trusted(tools, group, name, text):
    path = tools.tree(name, text)
    assert "planted.example:443" not in tools.rules(group)
    assert f"`substrate policy trust {name}`" in tools.notes(group)
    digest = hashlib.sha256(text.encode()).hexdigest()
    trust.trust(os.fsencode(tools.ground.home), os.fsencode(path), digest)
    assert "planted.example:443" in tools.rules(group)
    path.write_text(text + "\n")
    assert "planted.example:443" not in tools.rules(group)


def test_what_others_may_write_does_not_count(tools):
    tools.user(".npmrc", "registry=https://mirror.example/\n").chmod(0o666)
    assert tools.rules("@npm") == {"registry.npmjs.org:443", "registry.yarnpkg.com:443"}
    assert "may be written by others" in tools.notes("@npm")


def test_odd_files_are_notes(tools):
    os.mkfifo(tools.ground.user / ".npmrc")
    tools.user(".cargo/config.toml", "no toml")
    tools.user(".config/pip/pip.conf", "x" * (2 << 20))
    assert "is not a regular file" in tools.notes("@npm")
    assert "is not TOML" in tools.notes("@cargo")
    assert "is larger than" in tools.notes("@pip")


def test_an_expansion_is_kept_until_something_changes(tools):
    path = tools.user(".npmrc", "registry=https://one.example/\n")
    later = time.time_ns() + 10**12
    around = Around(
        environ={}, home=os.fsencode(tools.ground.home), user_home=os.fsencode(tools.ground.user),
        workspace=os.fsencode(tools.ground.work), repository=None, root=os.fsencode(tools.root),
    )  # fmt: skip
    first = expand(["@npm"], around, later)
    assert len(list((tools.ground.home / "cache").iterdir())) == 1
    assert expand(["@npm"], around, later) == first
    path.write_text("registry=https://two.example/\n")
    assert expand(["@npm"], around, later).members["@npm"][0].rule == "two.example:443"
    tools.system("/etc/npmrc", "@x:registry=https://three.example/\n")
    assert len(expand(["@npm"], around, later).members["@npm"]) == 2


def test_rules_replace_groups(tools):
    found = tools.expand("@pip").rules(["a.example", "@pip", "pypi.org:443"])
    assert found == ("a.example", "pypi.org:443", "files.pythonhosted.org:443")


def test_a_group_that_is_denied_is_denied_on_all_ports(ground):
    ground.user_file('[net]\ndeny = ["@npm", "other.example:8080"]\n')
    net = ground.load().net()
    assert net.deny == ("registry.npmjs.org", "registry.yarnpkg.com", "other.example:8080")


def test_the_brokers_network_has_no_groups(ground):
    ground.write(ground.work / ".git/config", '[remote "o"]\n\turl = https://code.example/x\n')
    net = ground.load().net()
    assert "code.example:443" in net.allow
    assert not [rule for rule in (*net.allow, *net.deny) if rule.startswith("@")]


@slow
@given(st.text(max_size=60))
def test_any_text_names_a_host_and_port_or_none(text):
    for url in (text, f"https://{text}", f"ssh://x@{text}:22/y"):
        found = host_and_port(url)
        assert found is None or (isinstance(found[0], str) and 0 <= found[1] < 100_000)


@slow
@given(st.text(alphabet='[]"=\\\n remoteurlhttps:/.#*;x', max_size=200))
def test_any_configuration_is_read(text):
    list(git_settings(text))
    list(ini_lines(text))


@slow
@given(st.text(alphabet='[]"=\\:/.*@#remoteurlhttpsx-%{}$', max_size=40))
def test_what_a_repository_says_is_a_plain_rule_or_nothing(tools_once, text):
    git_config(tools_once, f'[remote "o"]\n\turl = https://{text}/\n[remote "p"]\n\turl = {text}\n')
    for rule in tools_once.rules("@git-remotes"):
        try:
            parsed = parse_rule(rule, "allow")
        except BadRule as wrong:
            raise AssertionError(rule) from wrong
        assert parsed.name and not parsed.wildcard and parsed.low_port == parsed.high_port > 0


@pytest.fixture(scope="module")
def tools_once(tmp_path_factory):
    from tests.policy.conftest import Ground

    return Tools(Ground(tmp_path_factory.mktemp("once")))


def test_every_group_has_a_reader(tools):
    assert set(tools.expand(*GROUPS).members) == set(GROUPS)
