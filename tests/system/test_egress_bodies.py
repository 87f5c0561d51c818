"""Bodies of requests on their way out of a world: they go by unseen, and the next head is seen."""

from tests.nethosts.fixtures import hosts, internet

__all__ = ["hosts", "internet"]


def test_bodies_of_any_size_on_one_connection(hosts, caller):
    name = hosts.plain.name
    sizes = (100_000, 0, 1, 3_000_000, 17, 16384)
    made = [f"head -c {size} /dev/urandom > {size}" for size in sizes]
    calls = [f"-sS --data-binary @{s} http://{name}/echo -o {s}.back" for s in sizes]
    compared = [f"cmp {size} {size}.back" for size in sizes]
    line = " && ".join((*made, "curl " + " --next ".join(calls), *compared))
    _substrate(hosts, caller, line)
    (connection,) = hosts.plain.wait_closed()
    assert connection.received > sum(sizes)


def test_the_request_behind_a_body_is_judged(hosts, caller):
    """A pipelined one that has another Host: not a byte of it goes out."""
    name = hosts.plain.name
    body = 300_000
    head = rf"POST /echo HTTP/1.1\r\nHost: {name}\r\nContent-Length: {body}\r\n\r\n"
    other = r"GET / HTTP/1.1\r\nHost: neighbour.example.net\r\n\r\n"
    line = (
        f"exec 3<>/dev/tcp/{name}/80; printf '{head}' >&3; head -c {body} /dev/zero >&3;"
        f" printf '{other}' >&3; cat <&3 > /dev/null; true"
    )
    done = _substrate(hosts, caller, f'bash -c "{line}"')
    assert b"neighbour.example.net" in done.stderr
    (connection,) = hosts.plain.wait_closed()
    assert body < connection.received < body + 200


def _substrate(hosts, caller, line):
    words = ("--allow", hosts.plain.name, "-c", line)
    return hosts.run(
        [caller.command, *words],
        uid=caller.uid,
        gid=caller.gid,
        cwd=caller.work,
        env=caller.environ,
    )
