"""What real clients say, taken from them on loopback, passes; in one piece and byte by byte."""

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from substrate.world.egress.inspector import Inspector
from tests.world.egress.hellos import parse_name, real_hello

NAME = "api.example"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TIME_S = 60
#: no proxy and no settings of the user's may change what is said
#: the system's programs, and a home below which nothing can be made: shims of rustup and the like, in
#: the PATH of whoever runs the tests, make their settings in any other
BARE = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/proc/none", "LC_ALL": "C"}


class Server:
    """A listener on loopback that keeps what each connection says and answers as it is told."""

    def __init__(self, answer):
        self._answer = answer  # what is said so far → what to say, b"" for nothing, None: close
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIME_S)
        self.port = self._listener.getsockname()[1]
        self.said = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIME_S)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it was shut down
                return
            with connection:
                connection.settimeout(TIME_S)
                self._hear(connection)

    def _hear(self, connection):
        said = b""
        self.said.append(said)
        while data := connection.recv(65536):
            said += data
            self.said[-1] = said
            answer = self._answer(said)
            if answer is None:
                return
            connection.sendall(answer)


def answer_requests(said):
    """A response to each head, a 100 for each that asks; good for bodies that are not parsed."""
    if said.endswith(b"Expect: 100-continue\r\n\r\n"):
        return CONTINUE
    if b"Expect:" in said and not said.endswith(b"end"):
        return b""
    if b"chunked" in said and not said.endswith(b"0\r\n\r\n"):
        return b""
    return OK if said.endswith((b"\r\n\r\n", b"end")) else b""


def hang_up(said):
    """After a whole record of TLS."""
    return None if len(said) > 5 and len(said) >= 5 + int.from_bytes(said[3:5]) else b""


def run(*command, feed=b"", fine=True):
    """Runs a client of which only what it says is of interest; `fine`: it has to succeed."""
    done = subprocess.run(command, input=feed, env=BARE, capture_output=True, timeout=TIME_S)
    assert not fine or done.returncode == 0, done.stderr.decode(errors="replace")


def need(program):
    if shutil.which(program, path=BARE["PATH"]) is None:
        pytest.skip(f"{program} is not installed")
    return program


def judge(said, port, speak, name=NAME):
    assert said
    whole, split = (Inspector(name, speak, port, parse_name) for _ in range(2))
    whole.feed(said)
    for byte in said:
        split.feed(bytes([byte]))
    for found in (whole, split):
        assert (found.refused, found.said) == ("", name)
    assert whole.ready == split.ready
    return whole


def passes(server, protocol, name=NAME):
    """Everything that was said passes, for this name and for no other."""
    assert server.said
    for said in server.said:
        for speak in ("checked", "any", protocol):
            found = judge(said, server.port, speak, name)
            assert (found.protocol, found.ready) == (protocol, len(said))
        other = Inspector("other.example", "checked", server.port, parse_name)
        other.feed(said)
        assert other.ready == 0
        assert f"{name}, the address was given for other.example" in other.refused


@pytest.fixture
def requests():
    with Server(answer_requests) as server:
        yield server


@pytest.fixture
def hellos():
    with Server(hang_up) as server:
        yield server


def curl(server, *more, path="/", scheme="http", fine=True):
    run(
        need("curl"),
        "-sS",
        "--max-time",
        str(TIME_S),
        "--connect-to",
        f"::127.0.0.1:{server.port}",
        *more,
        f"{scheme}://{NAME}:{server.port}{path}",
        fine=fine,
    )


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--http1.0"],
        ["-X", "OPTIONS", "--request-target", "*"],
        ["-H", "Expect: 100-continue", "-d", "the end"],
        ["-d", "a=b", "-H", "Transfer-Encoding: chunked"],
        ["--request", "PROPFIND"],
        ["-H", "User-Agent;", "-u", "me:secret"],
    ],
)
def test_curl(requests, options):
    curl(requests, *options)
    passes(requests, "http")


def test_curl_with_a_kept_connection(requests):
    again = f"http://{NAME}:{requests.port}/two"
    curl(requests, again, path="/one")
    assert len(requests.said) == 1 and requests.said[0].count(b"Host:") == 2
    passes(requests, "http")


def test_curl_by_an_absolute_target(requests):
    curl(requests, "--request-target", f"http://{NAME}:{requests.port}/x")
    passes(requests, "http")


def test_curl_that_offers_http2(requests):
    curl(requests, "--http2")
    assert b"Upgrade: h2c" in requests.said[0]
    passes(requests, "http")
    found = judge(requests.said[0], requests.port, "checked")
    assert found.needs_upstream_head
    found.feed_upstream(OK)
    assert not found.refused and not found.needs_upstream_head


def test_curl_that_knows_http2():
    with Server(lambda said: None) as server:
        curl(server, "--http2-prior-knowledge", fine=False)
    found = Inspector(NAME, "checked", server.port, parse_name)
    found.feed(server.said[0])
    assert "HTTP/2 without TLS" in found.refused
    found = Inspector(NAME, "any", server.port, parse_name)
    found.feed(server.said[0])
    assert (found.refused, found.protocol) == ("", "other")


@pytest.mark.parametrize("options", [[], ["--tls-max", "1.2"], ["--http1.1"]])
def test_curl_with_tls(hellos, options):
    curl(hellos, "--insecure", *options, scheme="https", fine=False)
    passes(hellos, "tls")


def test_python_http(requests):
    client = http.client.HTTPConnection("127.0.0.1", requests.port, timeout=TIME_S)
    for body in (None, b"the end", iter([b"one", b"two"])):
        headers = {"Host": f"{NAME}:{requests.port}"}
        chunked = body is not None and not isinstance(body, bytes)
        client.request("POST" if body else "GET", "/", body, headers, encode_chunked=chunked)
        assert client.getresponse().read() == b"ok"
    client.close()
    passes(requests, "http")


def test_python_tls():
    found = judge(real_hello(), 443, "tls")
    assert found.needs_upstream_head


def test_python_second_hello(tmp_path):
    """OpenSSL as the server, with a group that the client has offered no share for: it asks
    for a second hello (RFC 8446 §4.1.4). The handshake goes through the inspector."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    run(
        *(need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"),
        *("ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={NAME}", "-days", "2"),
        *("-keyout", str(key), "-out", str(certificate)),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_ecdh_curve("secp521r1")
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    to_client, from_client, to_server, from_server = (ssl.MemoryBIO() for _ in range(4))
    client = trusting.wrap_bio(to_client, from_client, server_hostname=NAME)
    server = context.wrap_bio(to_server, from_server, server_side=True)
    found = Inspector(NAME, "tls", 443, parse_name)
    stream, passed, asked = b"", 0, 0
    for _ in range(10):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            if end is client:
                data = from_client.read()
                stream += data
                found.feed(data)
                assert not found.refused
                to_server.write(stream[passed : found.ready])
                passed = found.ready
        data = from_server.read()
        found.feed_upstream(data)
        asked += found.splice_upstream == -1 and found.splice == 0
        to_client.write(data)
        if client.version() and server.version():
            break
    assert server.version() == client.version() == "TLSv1.3"
    assert asked == 1  # the server has asked for another hello, and it was waited for
    assert (found.splice, passed) == (-1, len(stream))


def test_openssl(hellos):
    run(
        *(need("openssl"), "s_client", "-connect", f"127.0.0.1:{hellos.port}"),
        *("-servername", NAME),
        fine=False,
    )
    passes(hellos, "tls")


def test_node(requests, hellos):
    script = """
    const [plain, sealed] = process.argv.slice(1);
    const host = {host: "127.0.0.1", headers: {Host: "api.example:" + plain}};
    const agent = new (require("http").Agent)({keepAlive: true, maxSockets: 1});
    const say = (more, then) => require("http").request({...host, port: plain, agent, ...more},
        answer => answer.resume().on("end", then)).end(more.body);
    say({}, () => say({method: "POST", headers: {...host.headers, "Transfer-Encoding": "chunked"},
        body: "x"}, () => { agent.destroy(); require("https").get(
            {host: "127.0.0.1", port: sealed, servername: "api.example"}).on("error", () => {}); }));
    """
    run(need("node"), "-e", script, str(requests.port), str(hellos.port))
    passes(requests, "http")
    passes(hellos, "tls")


def test_the_request_for_a_websocket(requests):
    """With the fields that a browser says (RFC 6455 §4.1)."""
    curl(
        requests,
        *("-H", "Connection: Upgrade", "-H", "Upgrade: websocket"),
        *("-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "-H", "Sec-WebSocket-Version: 13"),
    )
    passes(requests, "http")


def test_wget(requests):
    run(
        *(need("wget"), "-q", "-O", "/dev/null", f"--header=Host: {NAME}:{requests.port}"),
        f"http://127.0.0.1:{requests.port}/%20a",
    )
    passes(requests, "http")


def test_git_push_with_chunks(tmp_path):
    """The smart protocol: a POST larger than http.postBuffer is sent in chunks."""
    git = need("git")
    repository = tmp_path / "repository"
    run(git, "init", "-q", str(repository))
    (repository / "file").write_bytes(os.urandom(200_000))
    author = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    run(git, "-C", str(repository), "add", "file")
    run(git, "-C", str(repository), *author, "commit", "-q", "-m", "one")
    refs = b"0" * 40 + b" capabilities^{}\0report-status delete-refs\n"
    lines = (b"# service=git-receive-pack\n", None, refs, None)
    body = b"".join(b"0000" if one is None else b"%04x" % (len(one) + 4) + one for one in lines)
    kind = b"application/x-git-receive-pack-advertisement"
    advertised = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        *(kind, len(body), body),
    )
    done = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-receive-pack-result\r\n"
    done += b"Content-Length: 0\r\n\r\n"

    def answer(said):
        if said.startswith(b"GET") and said.endswith(b"\r\n\r\n") and b"POST" not in said:
            return advertised
        return done if said.endswith((b"\r\n0\r\n\r\n", b"\r\n\r\n0000")) else b""

    with Server(answer) as server:
        run(
            *(git, "-C", str(repository), "-c", "http.postBuffer=4096"),
            *("-c", f"http.extraHeader=Host: {NAME}:{server.port}"),
            *("push", f"http://127.0.0.1:{server.port}/x.git", "HEAD:refs/heads/main"),
            fine=False,
        )
    assert any(b"chunked" in said for said in server.said)
    passes(server, "http")


def test_pip(requests, tmp_path):
    """That there is no such package is an error of pip's own."""
    pip = (sys.executable, "-m", "pip")
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("pip is not installed")
    run(
        *(*pip, "download", "--no-input", "--retries", "0", "--disable-pip-version-check"),
        *("--trusted-host", "localhost", "--no-cache-dir", "-d", str(tmp_path)),
        *("--index-url", f"http://localhost:{requests.port}/simple/", "no-such-package"),
        fine=False,
    )
    passes(requests, "http", name="localhost")


def test_java_offers_http2_with_each_request(requests, tmp_path):
    """On a kept connection, too: there the offer is not followed, and that is no mistake."""
    source = tmp_path / "Client.java"
    source.write_text("""
    import java.net.URI;
    import java.net.http.*;
    public class Client {
        public static void main(String[] arguments) throws Exception {
            var client = HttpClient.newHttpClient();
            for (int i = 0; i < 2; i++)
                client.send(HttpRequest.newBuilder(URI.create(arguments[0])).build(),
                    HttpResponse.BodyHandlers.discarding());
            System.exit(0);
        }
    }""")
    if subprocess.run([need("javac"), "--version"], capture_output=True).returncode:
        pytest.skip("javac does not run")
    run("java", str(source), f"http://localhost:{requests.port}/")
    (said,) = requests.said
    assert said.count(b"Upgrade: h2c") == 2
    found = Inspector("localhost", "checked", requests.port, parse_name)
    found.feed(said)
    assert found.needs_upstream_head
    found.feed_upstream(OK)
    assert (found.refused, found.ready, found.needs_upstream_head) == ("", len(said), False)
