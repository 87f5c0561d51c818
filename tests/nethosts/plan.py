"""Who is where in the internet of the tests: names, addresses and ports, nothing that acts.

Addresses are of the documentation ranges (RFC 5737, RFC 3849), but 192.0.2.0/24, in which a host
of ours may really lie; and of the special ranges that a world must not reach by an allowed name.
They exist in namespaces only, so every internet has the same.
"""

#: the client's link to the servers
CLIENT = "198.51.100.2"
GATEWAY = "198.51.100.1"
CLIENT6 = "2001:db8:0:1::2"
GATEWAY6 = "2001:db8:0:1::1"

#: All addresses of these are the server machine's. What is in none of them is unreachable.
SERVED = (
    "203.0.113.0/25",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.169.254/32",
)
SERVED6 = ("2001:db8:0:2::/64", "fd00:db8::/32")
#: what is sent here is lost: a connect goes on until its caller gives up
BLACK_HOLE = "203.0.113.240"
BLACK_HOLES = ("203.0.113.240/28",)
BLACK_HOLES6 = ("2001:db8:0:f::/64",)
#: no route to it: a connect fails at once
UNREACHABLE = "203.0.113.200"

DNS = ("203.0.113.53", "2001:db8:0:2::53")
PLAIN = ("203.0.113.10", "2001:db8:0:2::10")
SECURE = ("203.0.113.11", "2001:db8:0:2::11")
H2 = ("203.0.113.12", "2001:db8:0:2::12")
RAW = ("203.0.113.13", "2001:db8:0:2::13")
UDP = ("203.0.113.14", "2001:db8:0:2::14")
SIX = ("2001:db8:0:2::15",)
GIT = ("203.0.113.16", "2001:db8:0:2::16")
DATABASE = ("203.0.113.17", "2001:db8:0:2::17")
PACKAGES = ("203.0.113.18", "2001:db8:0:2::18")
SECRET = ("203.0.113.66", "2001:db8:0:2::66")
METADATA = ("169.254.169.254",)
PRIVATE = ("10.1.2.3", "172.16.5.5", "192.168.77.7", "fd00:db8::7")

#: behaviours of `raw.example.net` by port (raw_servers.BEHAVIOURS)
RAW_PORTS = {
    7: "echo",
    9: "sink",
    19: "source",
    22: "ssh",
    25: "smtp",
    443: "echo",
    4001: "unread",
    4002: "reset",
    4003: "mute",
    4004: "half",
    4005: "flood:1000000",
}
SECRET_PORTS = (22, 25, 53, 80, 443, 853, 5432, 8080)

#: what the domain name server knows at first
NAMES: dict[str, tuple[str, ...]] = {
    "dns.example.net": DNS,
    "plain.example.net": PLAIN,
    "secure.example.net": SECURE,
    # a second tenant of the same address, with a certificate of its own
    "neighbour.example.net": SECURE,
    "h2.example.net": H2,
    "raw.example.net": RAW,
    "udp.example.net": UDP,
    "six.example.net": SIX,
    "git.example.net": GIT,
    "db.example.net": DATABASE,
    "pypi.example.net": PACKAGES,
    "secret.example.net": SECRET,
    # names that anybody may own, of addresses that nobody should reach by them
    "metadata.example.net": METADATA,
    "private.example.net": (PRIVATE[0],),
    "lost.example.net": (BLACK_HOLE,),
    "unreachable.example.net": (UNREACHABLE,),
}
ALIASES = {"www.example.net": "plain.example.net", "alias.example.net": "www.example.net"}
