"""The sources of parts: each queries what its part names, and another datacenter takes no place of the local one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.config.sources import open_sources
from clb_discovery.sources.consul.server import LOCAL, REMOTE
from tests.support.fake_consul import FakeConsul, Reply
from tests.support.pace import patient


class FarAway(FakeConsul):
    """An agent that forwards queries to another datacenter, from where no answer comes."""

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.query.get("dc") == "dc2":
            self.asked.append(request)
            await asyncio.Event().wait()
        return await super()._answer(request)


def options_of(folder: Path, services: str, *arguments: str) -> Options:
    """Return the options of a file with these services."""
    file = folder / "clb.toml"
    file.write_text(services)
    return read_options(make_parser().parse_args(["run", "--config", str(file), *arguments]), {})


def service(name: str, number: int, *parts: str) -> str:
    """Return the table of a service."""
    return f'[[service]]\nname = "{name}"\nvip = "10.64.0.{number}"\nfrom = [{", ".join(parts)}]\n'


async def test_each_part_is_queried_as_it_says(tmp_path: Path) -> None:
    """Datacenter, filter and tags are those of the part, else those of the options."""
    async with FakeConsul(Reply()) as consul:
        parts = ('{ consul = "web" }', '{ consul = "web", datacenter = "dc2", filter = "f", tags = ["a", "b"] }')
        options = options_of(tmp_path, service("web", 1, *parts), "--consul", consul.url, "--tag", "x")
        async with open_sources(options, read_services(options)) as sources:
            for source in sources.values():
                await source.next()
        assert list(sources) == ["consul:web", "consul:web?dc=dc2&filter=f&tag=a&tag=b"]
        assert [source.name for source in sources.values()] == list(sources)
    asked = [(request.path, request.query.getall("tag"), request.query.get("dc")) for request in consul.asked]
    assert asked == [("/v1/health/service/web", ["x"], None), ("/v1/health/service/web", ["a", "b"], "dc2")]
    assert [request.query.get("filter") for request in consul.asked] == [None, "f"]


async def test_another_datacenter_that_hangs_delays_no_local_answer(tmp_path: Path) -> None:
    """However many services have a part there, the local answers come at once, and few queries hang."""
    names = [f"web-{number}" for number in range(LOCAL.at_once + LOCAL.direct)]
    tables = "".join(
        service(name, number, f'{{ consul = "{name}" }}', f'{{ consul = "{name}", datacenter = "dc2", priority = 1 }}')
        for number, name in enumerate(names, 1)
    )
    async with FarAway(Reply()) as consul:
        options = options_of(tmp_path, tables, "--consul", consul.url)
        async with open_sources(options, read_services(options)) as sources:
            remote = [asyncio.create_task(one.next()) for name, one in sources.items() if name.endswith("?dc=dc2")]
            assert len(remote) == len(names)
            await asyncio.sleep(0)
            local = (one.next() for name, one in sources.items() if not name.endswith("?dc=dc2"))
            await asyncio.wait_for(asyncio.gather(*local), patient(10))
            assert not any(task.done() for task in remote)
            assert sum(query.get("dc") == "dc2" for query in consul.queries) == REMOTE.at_once
            for task in remote:
                task.cancel()
            await asyncio.wait(remote)
