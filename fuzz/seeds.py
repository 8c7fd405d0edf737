"""The inputs that are mutated: well-formed ones, and earlier findings."""

from __future__ import annotations

import json
from typing import Final

import dns.message
import dns.name
import dns.rrset

from clb_discovery.datapath import close_request
from clb_discovery.model.servers import Protocol

_ENTRY: Final = {
    "Node": {"Node": "n1", "Address": "10.9.9.9", "TaggedAddresses": {"wan": "10.7.7.7"}, "Meta": {"zone": "eu-1a"}},
    "Service": {
        "ID": "s1",
        "Address": "10.0.0.1",
        "Port": 80,
        "Meta": {
            "clb-vip": "10.64.0.1:80, [fd00:64::1]:53/udp, auto",
            "clb-algorithm": "least-conn",
            "clb-connect-timeout": "2s",
        },
        "Tags": ["v1", "clb", "clb.vip=10.64.0.2"],
        "Weights": {"Passing": 7, "Warning": 2},
        "TaggedAddresses": {"wan": {"Address": "198.51.100.1", "Port": 8001}},
    },
    "Checks": [{"Node": "n1", "CheckID": "c1", "ServiceName": "web", "Status": "warning"}],
}
_NAMED: Final = {"Node": {}, "Service": {"Address": "a.example", "Port": 1}, "Checks": None}
_RIGHTS: Final = [{"Resource": "service", "Access": "read", "Allow": True}, {"Resource": "node", "Allow": True}]


def _http(*lines: str, entries: object, rights: object = None) -> bytes:
    return "\n".join([*lines, "", json.dumps(entries), "", json.dumps(rights)]).encode()


CONSUL: Final = (
    _http("X-Consul-Index: 8", "X-Consul-LastContact: 0", "X-Consul-KnownLeader: true", entries=[_ENTRY, _NAMED]),
    _http("X-Consul-Index: 8", entries=[], rights=_RIGHTS),
    _http("X-Consul-Results-Filtered-By-ACLs: true", entries=[]),
    _http("X-Consul-Index: 1", "X-Consul-LastContact: 99999", entries=_ENTRY["Checks"]),
    _http("X-Consul-Index: 8", entries={"consul": [], "web": ["clb", "clb.vip=10.64.0.2"]}),
    _http("X-Consul-Index: 8", entries=[{"Name": "web", "PeerName": ""}, {"Name": "far", "PeerName": "other"}]),
)
_Said = tuple[str, str, list[str], list[str]]
"""Owner and type of a query, records of the answer and of the additional section."""


def _answer(said: _Said) -> bytes:
    """Return an answer on the wire."""
    owner, kind, records, more = said
    response = dns.message.make_response(dns.message.make_query(owner, kind, id=1))
    for section, lines in ((response.answer, records), (response.additional, more)):
        for line in lines:
            name, ttl, rdtype, data = line.split(" ", 3)
            section.append(dns.rrset.from_text(name, int(ttl), "IN", rdtype, data))
    return response.to_wire()


def _answers(*answers: _Said) -> bytes:
    """Return answers in the form that `targets.srv` reads."""
    stream = b""
    for answer in answers:
        wire = _answer(answer)
        said = wire[2:4] + wire[6:12] + wire[16 + len(dns.name.from_text(answer[0]).to_wire() or b"") :]
        stream += len(said).to_bytes(2, "big") + said
    return stream


_NAME: Final = "_web._tcp.example."
_RECORDS: Final[_Said] = (_NAME, "SRV", [f"{_NAME} 60 SRV 1 2 80 a.example."], ["a.example. 60 A 10.0.0.1"])
_ALIAS: Final[_Said] = (
    "b.other.",
    "A",
    ["b.other. 60 CNAME c.other.", "c.other. 60 A 10.0.0.2"],
    [],
)
_NONE: Final[_Said] = (_NAME, "SRV", [f"{_NAME} 60 SRV 0 0 0 ."], [])
_OTHER: Final[_Said] = (_NAME, "SRV", [f"{_NAME} 0 SRV 1 2 80 b.other."], [])

RESOLV_CONF: Final = (
    b"# by hand\nnameserver 10.0.0.53\nnameserver fd00::53\nsearch corp.example example\noptions ndots:2 timeout:1\n",
    b"domain example\noptions attempts:0 rotate use-vc ndots:99\n;nameserver 10.0.0.1\nnameserver 10.0.0.2 # two\n",
)
HOSTS_TABLE: Final = (b"127.0.0.1 localhost\n::1 localhost ip6-localhost # both\n10.0.0.7 web-1.example web-1\n",)

SRV: Final = (
    _answers(_RECORDS, ("a.example.", "AAAA", ["a.example. 60 AAAA fd00::1"], []), _RECORDS),
    _answers(_NONE),
    _answers(_OTHER, _OTHER, _ALIAS, ("b.other.", "AAAA", [], []), _OTHER),
)
_HOST: Final = "web.example."
PLAIN_NAME: Final = (
    _answers(
        (_HOST, "A", [f"{_HOST} 60 A 10.0.0.1", f"{_HOST} 60 A 10.0.0.2"], []),
        (_HOST, "AAAA", [f"{_HOST} 60 AAAA fd00::1"], []),
    ),
    _answers((_HOST, "A", [f"{_HOST} 5 CNAME b.other."], []), (_HOST, "AAAA", [], []), _ALIAS),
)

CONFIGURATION: Final = (
    b"""consul = "http://127.0.0.1:8500"
real-range = ["10.0.0.0/8", "fd00::/8"]
hold = "30s"
max-removal = 0.5
[[service]]
name = "redis"
consul = "redis"
vip = "10.64.0.1:6379,[fd00:64::1]:6379"
algorithm = "least-conn"
eject-time = "5s"
silent-after = "off"
connect-timeout = "10s"
dead-after = "off"
suspicion = false
check = "https://web.example:8443/health?a=b"
check-interval = "1s"
rise = 1
check-verify = false
[[service]]
name = "ldap"
vip = "10.64.0.2"
servers = ["10.0.0.5:389", { address = "10.0.0.6:3389", weight = 3, priority = 0 }]
""",
    b'resolver = ["10.0.0.53"]\n[[service]]\nname = "dns"\nsrv = "_dns._udp.example"\n',
    b'[[service]]\nname = "db"\ndns = "db.example:5432"\nvip = "10.64.0.3:5432"\n',
)

DISK: Final = (
    b'{"version":1,"sources":{"srv:_web._tcp.example":{"answered":1700000000,"servers":[[0,"10.0.0.1",80,1]]}}}',
    b'{"version":1,"sources":{"consul:web":{"answered":null,"servers":[[1,"fd00::1",80,0]]}}}',
)

HOSTS_FILE: Final = (
    b"""127.0.0.1 localhost
# BEGIN clb-discovery default: written by the sidecar, changes are lost
10.64.0.1 web.clb
# END clb-discovery default
::1 localhost
""",
    b"127.0.0.1 localhost",
)

CHECK_RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 503 Service Unavailable\r\n\r\n",
    b"HTTP/1.0 302\n\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 3000,
)

WORDS: Final = tuple(
    text.encode()
    for text in (
        "10.64.0.1:6379/udp",
        "redis=10.64.0.1,[fd00::1]:6379",
        "1.5m",
        "0.5",
        "tls://10.0.0.53:853#dns.example",
        "https://consul.example:8501/path",
        "unix:///run/consul.sock",
        "http://[fd00::7]:81/health?a=%20",
        "_redis._tcp.example",
    )
)

_MEMBER: Final = bytes(10) + b"\xff\xff" + bytes((10, 64, 0, 1, 0, 80, 6, 0)) + bytes(10) + b"\xff\xff" + bytes(8)
CLOSE: Final = (
    close_request.requests("default", [_MEMBER, _MEMBER], [Protocol.TCP, Protocol.UDP])[0],
    close_request.HEAD.pack(b"CLBC", 2, 1, 7, 1),
    close_request.answer(close_request.Closed(3, ("some UDP sockets may be left", "\x1b[2J"), 7)),
    close_request.refusal("malformed close request: it is cut off"),
    b'{"instance": "default", "members": [], "protocols": [6]}',
)
