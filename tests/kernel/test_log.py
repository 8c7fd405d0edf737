"""The log is the history: what an operator finds there the next morning."""

from __future__ import annotations

from pathlib import Path

from tests.support.dataplane import dial
from tests.support.moody import moody_servers
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, sidecar
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP = "10.64.0.1"


def configured(tmp_path: Path, servers: list[str], *lines: str) -> list[str]:
    """Write a file with one service without suspicion; return the options that name it."""
    file = tmp_path / "clb.toml"
    names = ", ".join(map(repr, servers))
    table = f'[[service]]\nname = "web"\nvip = "{VIP}:80"\nservers = [{names}]\n'
    file.write_text("\n".join(['real-range = ["127.0.0.0/8"]', "no-suspicion = true", *lines, table]))
    return ["--config", str(file)]


def lines_of(found: Sidecar, event: str) -> list[dict[str, object]]:
    """Return the fields of all lines of an event that name a server, a cause or a duration."""
    fields = ("service", "vip", "server", "cause")
    return [{name: line[name] for name in fields if name in line} for line in found.lines() if line["event"] == event]


def test_ejection_and_return_are_in_the_log(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A server that refuses is a line within seconds, with its cause; so is its return, with the time."""
    with moody_servers("127.0.0.1", "127.0.0.2") as (moody, spare):
        options = configured(tmp_path, [moody.name, spare.name], 'eject-time = "1s"', 'eject-max = "1s"')
        with sidecar(instance, cgroup, tmp_path, options) as found:
            moody.refuse()
            dial(cgroup, VIP, 80, 30)
            found.wait_for(lambda: "server ejected" in found.events(), "the ejection is logged")
            names = {"service": "web", "vip": f"{VIP}:80", "server": moody.name}
            assert lines_of(found, "server ejected") == [
                names | {"cause": "3 failed connects in a row, the last one refused"}
            ]
            moody.accept()

            def is_back() -> bool:
                dial(cgroup, VIP, 80, 1)
                return "server returned" in found.events()

            wait_until(is_back, "the return is logged")
            assert lines_of(found, "server returned") == [names]
            (returned,) = (line for line in found.lines() if line["event"] == "server returned")
            assert returned["out_for"] >= 1.0


def test_an_outage_of_many_sources_is_a_few_lines(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Some sources are named, and the others counted within seconds, without another event."""
    options = ["--consul", f"http://127.0.0.1:{free_port()}"]
    options += [word for number in range(1, 41) for word in ("--service", f"s{number}=10.64.0.{number}:80")]
    with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
        found.wait_for(lambda: "more lines left out" in found.events(), "the others are counted")
        (counted,) = (line for line in found.lines() if line["event"] == "more lines left out")
        assert (counted["of"], counted["count"]) == ("source fails", 8)
        assert found.events().count("source fails") >= 32


def test_ejections_before_the_start_are_in_the_log(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar that starts while a server is out says so, because the log of the previous one may be lost."""
    with moody_servers("127.0.0.1", "127.0.0.2") as (moody, spare):
        options = configured(tmp_path, [moody.name, spare.name], 'eject-time = "1h"', 'eject-max = "1h"')
        with sidecar(instance, cgroup, tmp_path, options):
            moody.refuse()
            dial(cgroup, VIP, 80, 30)
        (tmp_path / f"sidecar-{instance}.log").unlink()
        with sidecar(instance, cgroup, tmp_path, options) as found:
            found.wait_for(lambda: "server ejected" in found.events(), "the ejection is logged")
            assert [line["cause"] for line in lines_of(found, "server ejected")] == [
                "3 failed connects in a row, the last one refused, before this sidecar started"
            ]
