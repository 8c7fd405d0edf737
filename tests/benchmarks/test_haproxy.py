"""The configuration for HAProxy, and what is read from its statistics."""

from __future__ import annotations

from pathlib import Path

from benchmarks.haproxy import checking, following_srv, usable, written_out

SAID = """\
# pxname,svname,qcur,status,weight,
bench,FRONTEND,,OPEN,,
bench,s1,0,no check,1,
bench,s2,0,UP,10,
bench,s3,0,MAINT (resolution),1,
bench,s4,0,DOWN,1,
bench,BACKEND,0,UP,11,
"""


def test_servers_that_have_an_address_and_are_well_can_be_chosen() -> None:
    """A slot without a record is in maintenance; totals of frontend and backend are not servers."""
    assert usable(SAID) == 2


def test_servers_are_written_out_with_their_weights() -> None:
    """A configuration has one line for each server, and none that follows DNS."""
    config = written_out(Path("/run/x"), "10.64.0.1:80", {"10.1.0.1:7000": 1, "10.1.0.2:7000": 9})
    assert config.endswith("    server s0 10.1.0.1:7000 weight 1\n    server s1 10.1.0.2:7000 weight 9\n")
    assert "resolvers" not in config


def test_a_record_is_followed_each_second() -> None:
    """The times are those that the documents recommend, and the DNS server is the given one."""
    config = following_srv(Path("/run/x"), "10.64.0.1:80", "127.0.0.1:53", "_a._tcp.example", 3)
    assert "    timeout resolve 1s\n" in config
    assert "    nameserver dns 127.0.0.1:53\n" in config
    assert "    server-template s 3 _a._tcp.example resolvers dns " in config


def test_servers_are_checked() -> None:
    """Servers of the next tier are backups; closing the connections of those that are down is not the default."""
    config = checking(Path("/run/x"), "10.64.0.1:80", ["10.1.0.1:7000"], ["10.1.0.2:7000"], closes=False)
    assert config.endswith("    server s0 10.1.0.1:7000\n    server s1 10.1.0.2:7000 backup\n")
    assert "    default-server check inter 2s\n" in config
    assert "check inter 2s on-marked-down" in checking(Path("/run/x"), "10.64.0.1:80", [], [], closes=True)
