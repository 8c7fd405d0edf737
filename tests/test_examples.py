"""docs/examples/: complete configuration files, each with a comment that describes its use, and a link to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.config.file import decode
from clb_discovery.config.options import Options, make_options
from clb_discovery.config.services import read_services
from tests.support.documents import EXAMPLES, ROOT, command_lines

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)


def head(example: Path) -> str:
    """Return the comment at the head of a file, as a document."""
    comment = example.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    return "".join(re.sub(r"^# ?", "", line) + "\n" for line in comment.splitlines())


def options_of(example: Path) -> Options:
    """Return the options of a file, as `run --config` reads them."""
    config = decode(example.read_bytes())
    typed: dict[str, Any] = vars(make_parser().parse_args(["run", *config.arguments]))
    return make_options(typed, {}, config.entries, {})


@each_example
def test_example_is_taken(example: Path) -> None:
    """The program reads the file, and finds services to follow."""
    assert read_services(options_of(example))


@each_example
def test_example_limits_what_discovery_may_return(example: Path) -> None:
    """Each file that follows discovery, or has loopback servers, names the networks of its servers."""
    options = options_of(example)
    assert options.real_range or all(part.servers for entry in options.entries for part in entry.service.parts)


@each_example
def test_head_describes_the_use(example: Path) -> None:
    """The comment shows how to check and how to run this file."""
    path = str(example.relative_to(ROOT))
    lines = list(command_lines(head(example)))
    assert ["check", "--config", path] in lines
    assert ["run", "--config", path] in lines


@each_example
def test_example_is_linked(example: Path) -> None:
    """docs/configuring.md leads to each file."""
    assert f"](examples/{example.name})" in (ROOT / "docs" / "configuring.md").read_text()


def test_examples_show_each_way_of_discovery() -> None:
    """Six files or more: Consul by names and by the catalog, SRV, plain DNS names, static servers, and one host."""
    services = [service for example in EXAMPLES for service in read_services(options_of(example))]
    assert len(EXAMPLES) >= 6
    assert {service.source.partition(":")[0] for service in services} == {"consul", "catalog", "srv", "dns", "static"}
    assert any("127.0.0.0/8" in map(str, options_of(example).real_range) for example in EXAMPLES)


def test_debian_package_has_them() -> None:
    """The package has them where Debian's users look for examples; docs/ is installed as a whole."""
    packaging = ROOT / "contrib" / "debian"
    documents = "usr/share/doc/clb-discovery"
    assert "docs" in (packaging / "clb-discovery.docs").read_text().split()
    assert (packaging / "clb-discovery.links").read_text().split() == [
        f"{documents}/docs/examples",
        f"{documents}/examples",
    ]
