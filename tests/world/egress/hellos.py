"""ClientHellos, records and names for the tests; built by hand so that each part can be wrong."""

import ssl

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
#: dummy change_cipher_spec
CHANGE = b"\x14\x03\x03\x00\x01\x01"


def parse_name(raw):
    """A plain stand-in for names.parse_name."""
    text = raw.decode("ascii").lower().removesuffix(".")
    if not text or not text.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError("not a name")
    if text.replace(".", "").isdigit():
        raise ValueError("an address")
    return text


def vector(prefix, data):
    return len(data).to_bytes(prefix, "big") + data


def extension(kind, data=b""):
    return kind.to_bytes(2, "big") + vector(2, data)


def server_name(*names, kind=0):
    entries = b"".join(bytes([kind]) + vector(2, name) for name in names)
    return extension(0, vector(2, entries))


def body(*extensions, version=b"\x03\x03", session=b"s" * 32, suites=b"\x13\x01", block=True):
    head = version + b"r" * 32 + vector(1, session) + vector(2, suites) + vector(1, b"\0")
    return head + (vector(2, b"".join(extensions)) if block else b"")


def message(content, kind=1):
    return bytes([kind]) + vector(3, content)


def record(content, kind=22, version=b"\x03\x01"):
    return bytes([kind]) + version + vector(2, content)


def records(content, size):
    return b"".join(record(content[at : at + size]) for at in range(0, len(content), size))


def hello(name=b"api.example", *more):
    """A whole hello in one record, with some extensions before and after the name."""
    names = () if name is None else (server_name(name),)
    return record(message(body(extension(10, b"\0\2\0\x1d"), *names, *more)))


def server_hello(random=b"R" * 32):
    return record(message(b"\x03\x03" + random + b"\0\x13\x01\0\0\0", kind=2), version=b"\x03\x03")


def real_hello(name="api.example"):
    """What OpenSSL says."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
