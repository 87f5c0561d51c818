"""Controls: what ordinary programs reach from the client, without substrate. Where a world is
tested to be refused something, the same has been seen to work here."""

import hashlib
import sys
import tempfile
from pathlib import Path

import pytest

from tests.nethosts import content, plan
from tests.nethosts.programs import need

PYTHON = "/usr/bin/python3"


@pytest.fixture
def folder(hosts, tmp_path):
    return tmp_path


def test_curl_and_its_bytes_are_counted(hosts):
    need("/usr/bin/curl")
    told = hosts.run(["curl", "-sS", "-D-", f"http://{hosts.plain.name}/bytes/3000000"]).stdout
    head, _, body = told.partition(b"\r\n\r\n")
    assert hashlib.sha256(body).hexdigest() == content.digest(3_000_000)
    (seen,) = hosts.plain.wait_closed()
    assert seen.local == (plan.PLAIN[1], 80)  # IPv6 is asked for first
    assert seen.peer[0] == plan.CLIENT6
    assert seen.sent == len(head) + 4 + 3_000_000
    assert seen.received == len(seen.head)
    assert seen.sha256 == hashlib.sha256(seen.head).hexdigest()
    assert [(r.method, r.target, r.host) for r in seen.requests] == [
        ("GET", "/bytes/3000000", "plain.example.net")
    ]


@pytest.mark.parametrize(
    ("options", "version"), [(["--tls-max", "1.2"], "TLSv1.2"), (["--tlsv1.3"], "TLSv1.3")]
)
def test_curl_over_tls_of_each_version(hosts, options, version):
    need("/usr/bin/curl")
    done = hosts.run(["curl", "-sS", *options, f"https://{hosts.secure.name}/chunked/200000"])
    assert done.stdout == content.content(200_000)
    (seen,) = hosts.secure.wait_closed()
    assert (seen.sni, seen.tls, seen.alpn, seen.failure) == (
        "secure.example.net",
        version,
        "http/1.1",
        "",
    )
    assert seen.sent > 200_000  # the wire's bytes, not those inside


def test_two_names_of_one_address_have_certificates_of_their_own(hosts):
    need("/usr/bin/curl")
    for name in ("secure.example.net", "neighbour.example.net"):
        hosts.run(["curl", "-sS", f"https://{name}/", "--resolve", f"{name}:443:{plan.SECURE[0]}"])
        assert hosts.secure.address == plan.SECURE[0]
    assert [seen.sni for seen in hosts.secure.wait_closed(2)] == [
        "secure.example.net",
        "neighbour.example.net",
    ]


def test_a_certificate_for_another_name_is_refused(hosts):
    need("/usr/bin/curl")
    port = 443
    assert port in hosts.secure.ports
    words = ["curl", "-sS", "https://plain.example.net/", "--connect-to"]
    done = hosts.run([*words, f"::{plan.SECURE[0]}:{port}"], status=60)
    assert b"certificate" in done.stderr
    (seen,) = hosts.secure.wait_closed()
    assert seen.sni == "plain.example.net"
    assert not seen.requests


def test_http2(hosts):
    need("/usr/bin/curl")
    words = ["curl", "-sS", "--http2", "-w", "%{stderr}%{http_version}"]
    done = hosts.run([*words, f"https://{hosts.h2.name}/1000000"])
    assert done.stderr == b"2"
    assert hashlib.sha256(done.stdout).hexdigest() == content.digest(1_000_000)
    (request,) = hosts.h2.wait_requests()
    assert (request.protocol, request.host, request.sni) == ("HTTP/2.0", *["h2.example.net"] * 2)
    (seen,) = hosts.h2.wait_closed()
    assert seen.sent > 1_000_000
    assert seen.head[:1] == b"\x16"


def test_http2_without_tls(hosts):
    need("/usr/bin/curl")
    done = hosts.run(["curl", "-sS", "--http2-prior-knowledge", f"http://{hosts.h2.name}/1000"])
    assert done.stdout == content.content(1000)
    (request,) = hosts.h2.wait_requests()
    assert (request.protocol, request.host, request.sni) == ("HTTP/2.0", "h2.example.net", "")
    (seen,) = hosts.h2.wait_closed()
    assert seen.head.startswith(b"PRI * HTTP/2.0")


def test_wget(hosts):
    need("/usr/bin/wget")
    for server, scheme in ((hosts.plain, "http"), (hosts.secure, "https")):
        done = hosts.run(["wget", "-q", "-O-", f"{scheme}://{server.name}/bytes/70000"])
        assert done.stdout == content.content(70_000)
        assert len(server.wait_closed()) == 1


@pytest.mark.parametrize("python", [PYTHON, sys.executable])
def test_python(hosts, python):
    script = (
        "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1]).read().decode())"
    )
    for server, scheme in ((hosts.plain, "http"), (hosts.secure, "https")):
        done = hosts.run([python, "-c", script, f"{scheme}://{server.name}/"])
        assert done.stdout.decode() == f"{server.name}\n"


def test_node(hosts):
    node = need("/usr/bin/node")
    script = "fetch(process.argv[1]).then(r => r.text()).then(t => process.stdout.write(t))"
    for server, scheme in ((hosts.plain, "http"), (hosts.secure, "https")):
        done = hosts.run([node, "-e", script, f"{scheme}://{server.name}/"])
        assert done.stdout.decode() == f"{server.name}\n"
    assert hosts.secure.wait_closed()[0].requests[0].host == "secure.example.net"


def test_git_over_https(hosts, folder):
    need("/usr/lib/git-core/git-http-backend")
    url = f"https://{hosts.git.name}/git/project.git"
    hosts.run(["git", "clone", "-q", url, "project"], cwd=folder)
    assert (folder / "project" / "file").read_text() == "one\ntwo\n"
    assert (folder / "project" / "big").read_bytes() == content.content(300_000)
    script = """
        git checkout -q -b pushed; echo three >> file
        git -c user.name=N -c user.email=n@example.net commit -qam More; git push -q origin pushed
        git ls-remote origin pushed | grep refs/heads/pushed; git push -q origin :pushed
    """
    hosts.run(["sh", "-euc", script], cwd=folder / "project")
    assert {seen.sni for seen in hosts.git.connections()} == {"git.example.net"}


@pytest.mark.parametrize("place", ["git@git.example.net:", "ssh://git@git.example.net:2222/~/"])
@pytest.mark.parametrize("uid", [0, 65534])
def test_git_over_ssh(hosts, place, uid):
    server = hosts.git_ssh
    words = ["git", "clone", "-q", f"{place}project.git", "project"]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        folder = Path(directory)
        folder.chmod(0o777)  # for another user, too
        hosts.run(words, cwd=folder, uid=uid, env=hosts.ssh_environment)
        assert (folder / "project" / "big").read_bytes() == content.content(300_000)
    (seen,) = server.wait_closed()
    assert seen.head.startswith(b"SSH-2.0-OpenSSH")
    assert seen.sent > 300_000
    assert seen.local[1] == (2222 if ":2222" in place else 22)


@pytest.mark.parametrize("mode", ["disable", "verify-full"])
def test_psql(hosts, mode):
    need("/usr/bin/psql")
    options = f"sslmode={mode}&sslrootcert=/etc/ssl/certs/ca-certificates.crt"
    url = f"postgresql://postgres@{hosts.database.name}/postgres?{options}"
    done = hosts.run(["psql", "-XAtc", "select sum(n) from generate_series(1, 1000) n", url])
    assert done.stdout == b"500500\n"
    (seen,) = hosts.database.wait_closed()
    assert seen.local == (plan.DATABASE[1], 5432)
    assert seen.received > 0
    assert mode != "disable" or seen.failure == ""  # with TLS it does not wait for the end


def test_pip(hosts, folder):
    url = f"https://{hosts.packages.name}/simple/"
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-cache-dir", "--index-url", url]
    hosts.run([*words, "nethosts-probe"], cwd=folder)
    assert {path.name for path in folder.iterdir()} == {
        "nethosts_probe-1.0-py3-none-any.whl",
        "nethosts_base-1.0-py3-none-any.whl",
    }
    assert {request.host for request in hosts.packages.requests()} == {"pypi.example.net"}


def test_dig(hosts):
    dig = need("/usr/bin/dig")
    done = hosts.run([dig, "+short", "www.example.net", "A"])
    assert done.stdout.split() == [b"plain.example.net.", plan.PLAIN[0].encode()]
    for words in (["+tcp"], [f"@{plan.DNS[1]}"]):
        done = hosts.run([dig, *words, "+short", "six.example.net", "AAAA"])
        assert done.stdout.split() == [plan.SIX[0].encode()]
    assert b"NXDOMAIN" in hosts.run([dig, "nobody.example.net"]).stdout
    done = hosts.run([dig, "six.example.net", "A"])
    assert b"NOERROR" in done.stdout and b"ANSWER: 0" in done.stdout
    assert [(query.name, query.type, query.transport) for query in hosts.names.queries()] == [
        ("www.example.net", "A", "udp"),
        ("six.example.net", "AAAA", "tcp"),
        ("six.example.net", "AAAA", "udp"),
        ("nobody.example.net", "A", "udp"),
        ("six.example.net", "A", "udp"),
    ]


def test_a_host_with_ipv6_only(hosts):
    need("/usr/bin/curl")
    assert hosts.run(["curl", "-sS", f"http://{hosts.six.name}/"]).stdout == b"six.example.net\n"
    assert hosts.run(["curl", "-sS", f"https://{hosts.six_secure.name}/"]).stdout
    (seen,) = hosts.six.wait_closed()
    assert (seen.peer[0], seen.local) == (plan.CLIENT6, (plan.SIX[0], 80))


@pytest.mark.parametrize("address", [*plan.METADATA, *plan.PRIVATE])
def test_special_addresses_answer(hosts, address):
    need("/usr/bin/curl")
    server = hosts.metadata if address in plan.METADATA else hosts.private
    where = f"[{address}]" if ":" in address else address
    done = hosts.run(["curl", "-sS", f"http://{where}/"])
    assert done.stdout.decode() == f"{server.name}\n"
    (seen,) = server.wait_closed()
    assert seen.local == (address, 80)


def test_the_secret_answers_and_tells(hosts):
    """What is never reached by a world could be: else its silence would say nothing."""
    need("/usr/bin/curl")
    assert hosts.secret.connections() == []
    hosts.secret_untouched()
    script = "exec 3<>/dev/tcp/secret.example.net/80; echo here >&3; read line <&3; echo $line"
    assert hosts.run(["bash", "-c", script]).stdout == b"here\n"
    with pytest.raises(AssertionError):
        hosts.secret_untouched()
    hosts.secret.wait_closed()
    hosts.forget()
    hosts.secret_untouched()
    hosts.run(["bash", "-c", f"echo x > /dev/udp/{plan.SECRET[1]}/4444"])
    with pytest.raises(AssertionError):
        hosts.secret_untouched()
