"""The services on the page: their order, what is collapsed, the filter, and what happens while nothing is new."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest

from clb_discovery.documents.zones import Zones, add_zones
from tests.page.stage import Stage, document, real, sixty, source, staged, virtual
from tests.support.chromium import Chromium, Tab
from tests.support.pace import patient

pytestmark = pytest.mark.page

_TITLES: Final = "Array.from(document.querySelectorAll('h2'), title => title.innerText)"
_OPEN: Final = "Array.from(document.querySelectorAll('h2 [aria-expanded=true]'), title => title.innerText)"
_HEALTH: Final = "document.querySelector('#health').innerText"
_LINKS: Final = "Array.from(document.querySelectorAll('#health a'), link => link.innerText)"
_SHOWN: Final = "document.querySelector('#shown').value"
_FOCUSED: Final = "document.activeElement.id || document.activeElement.innerText"
_FILTER: Final = "document.querySelector('#filter')"
Opener = Callable[..., Tab]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Return a server with sixty services, ten of them with problems."""
    with staged(sixty()) as found:
        yield found


@pytest.fixture
def opened(browser: Chromium, stage: Stage) -> Opener:
    """Return a function that opens the page with a query."""

    def open_tab(query: str = "") -> Tab:
        tab = browser.open()
        tab.size(1180, 900)
        tab.goto(f"{stage.origin}/{query}")
        tab.wait_for("document.querySelector('#shown')?.value")
        return tab

    return open_tab


def write(tab: Tab, text: str) -> None:
    """Write into the filter, in place of what is there."""
    tab.evaluate(f"{{ {_FILTER}.focus(); {_FILTER}.select(); }}")
    tab.call("Input.insertText", text=text)


def troubled() -> list[str]:
    """Return the services with problems, in the order in which the page has to show them."""
    names = list(dict.fromkeys(one["service"] for one in sixty()["virtual_servers"]))
    kinds = ([17], [7, 33], [11, 29, 58], [23, 41, 47], [53])  # as in `sixty`
    return [name for kind in kinds for name in sorted(names[number] for number in kind)]


def test_problems_come_first(opened: Opener) -> None:
    """The ten services with problems come first, the worst of them before all others, and the headline counts them."""
    tab = opened()
    titles = tab.evaluate(_TITLES)
    assert titles[:10] == troubled()
    assert titles[10:] == sorted(titles[10:])
    assert tab.evaluate(_LINKS) == [
        "1 service not published in full",
        "2 services without real servers",
        "3 real servers ejected",
        "3 sources not fresh",
        "1 source partly rejected",
    ]
    assert tab.evaluate(_HEALTH).startswith("▲ 1 service not published in full; 2 services")
    tab.evaluate("document.querySelector('#problems').click()")
    assert tab.evaluate(_TITLES) == troubled()


def test_a_family_without_servers_is_no_problem(opened: Opener, stage: Stage) -> None:
    """An empty pool counts if the service has no real servers of the other family either."""
    both = [virtual("web", "10.64.0.1", real("10.0.0.1")), virtual("web", "fd00::1")]
    stage.show(document(both))
    tab = opened("?problems=1")
    assert tab.evaluate(_HEALTH) == "● balancing"
    assert tab.evaluate("document.title") == "clb-discovery default"
    assert tab.evaluate("document.querySelector('#none').innerText").startswith("No service has a problem.")
    tab.evaluate("document.querySelector('#all').click()")
    assert tab.evaluate("document.querySelector('.empty .none').innerText") == (
        "○ no IPv6 servers: connects to this VIP are refused"
    )
    assert tab.evaluate("document.querySelectorAll('#services .bad:not(:empty)').length") == 0
    stage.show(document([virtual("web", "10.64.0.1"), both[1]]))
    tab.wait_for(f"{_HEALTH} === '▲ 1 service without real servers'")
    assert tab.evaluate("document.querySelectorAll('.empty .none.bad').length") == 2


def test_a_service_without_servers_is_not_hidden_by_another_of_its_name(opened: Opener, stage: Stage) -> None:
    """Services of one name are two on the page, and only the one without real servers has the problem."""
    stage.show(
        document([virtual("db", "10.64.0.1", real("10.0.0.1")), virtual("db", "10.64.0.2") | {"source": "srv:db"}])
    )
    tab = opened()
    assert tab.evaluate(_HEALTH) == "▲ 1 service without real servers"
    assert tab.evaluate(_TITLES) == ["db", "db"]
    assert tab.evaluate("document.querySelectorAll('.empty .none.bad').length") == 1


def test_a_server_behind_several_vips_is_one(opened: Opener, stage: Stage) -> None:
    """The headline, the totals and the service count servers, each once however many VIPs lead to it."""
    servers = [real("10.0.0.1", ejected=True), real("10.0.0.2")]
    stage.show(document([virtual("web", "10.64.0.1", *servers), virtual("web", "10.64.0.2", *servers)]))
    tab = opened()
    assert tab.evaluate(_HEALTH) == "▲ 1 real server ejected"
    assert tab.evaluate("document.querySelector('.wrong').innerText") == "▲ 1 of 2 ejected"
    totals = tab.evaluate("Array.from(document.querySelectorAll('#totals div'), tile => tile.innerText)")
    assert any(re.match(r"Real servers\s+2\s+▲ 1 ejected", text) for text in totals)


def test_an_incomplete_answer_is_not_called_rejected(opened: Opener, stage: Stage) -> None:
    """Nothing of it is to be corrected; a pool of parts has this problem if no part of it is rejected."""
    kept = source("dns:web", reason="some addresses cannot be looked up now, so previous ones are kept")
    composed = virtual("web", "10.64.0.1", real("10.0.0.1")) | {"source": "pool:web"}
    part = {"source": None, "priority": 0, "share": None, "real_servers": 1, "tiers": [0], "target_share": 1.0}
    composed["parts"] = [part | {"source": "dns:web"}, part | {"source": "consul:web"}]
    stage.show(document([composed], sources=[kept, source("consul:web")]))
    tab = opened("?problems=1")
    assert tab.evaluate(_HEALTH) == "▲ 1 source with an incomplete answer"
    assert tab.evaluate("document.querySelector('.wrong').innerText") == "▲ answer incomplete"
    stage.show(document([composed], sources=[kept, source("consul:web", reason="it is a VIP", rejected=1)]))
    tab.wait_for(f"{_HEALTH} === '▲ 1 source partly rejected; 1 source with an incomplete answer'")
    assert tab.evaluate("document.querySelector('.wrong').innerText") == "▲ partly rejected"


def test_servers_that_fail_their_checks_are_a_problem(opened: Opener, stage: Stage) -> None:
    """It is one also while all of them stay in service, and none of them counts as ejected once more."""
    servers = [real(f"10.0.0.{host}", check_failure="HTTP 503") for host in (1, 2)]
    quiet = virtual("mail", "10.64.0.2", real("10.0.0.3"))
    stage.show(document([virtual("web", "10.64.0.1", *servers), quiet]))
    tab = opened("?problems=1")
    assert tab.evaluate(_HEALTH) == "▲ 2 real servers fail their checks"
    assert tab.evaluate(_TITLES) == ["web"]
    assert tab.evaluate("document.querySelector('.wrong').innerText") == "▲ 2 of 2 real servers fail their checks"
    servers = [real("10.0.0.1", ejected=True, check_failure="HTTP 503"), real("10.0.0.2", ejected=True)]
    stage.show(document([virtual("web", "10.64.0.1", *servers, real("10.0.0.4"), real("10.0.0.5")), quiet]))
    tab.wait_for(f"{_HEALTH} === '▲ 1 real server fails its checks; 1 real server ejected'")
    assert tab.evaluate("document.querySelector('.wrong').innerText") == (
        "▲ 1 of 4 real servers fail their checks ▲ 1 of 4 ejected"
    )


@pytest.mark.parametrize("by_key", [False, True])
def test_the_headline_leads_to_the_problem(opened: Opener, *, by_key: bool) -> None:
    """Each part leads to the first service with this problem, with the focus on it, even if the filter hides it."""
    tab = opened("?filter=stock-ams")
    assert tab.evaluate(_TITLES) == ["stock-ams"]
    link = "document.querySelectorAll('#health a')[2]"
    if by_key:
        tab.evaluate(f"{link}.focus()")
        tab.press("Enter")
    else:
        tab.evaluate(f"{link}.click()")
    first = troubled()[3]
    assert tab.evaluate(_FOCUSED) == first
    top = "document.activeElement.getBoundingClientRect().top"
    assert 0 <= tab.evaluate(top) < 900
    assert "ejected" in tab.evaluate("document.activeElement.closest('section').innerText")
    tab.listen(3)
    assert tab.evaluate(_FOCUSED) == first


def test_a_problem_that_comes_leaves_the_focus_where_it_is(opened: Opener, stage: Stage) -> None:
    """If services change their places, the one with the focus keeps it."""
    before = [virtual(name, f"10.64.0.{number}", real("10.0.0.1")) for number, name in enumerate("abc")]
    stage.show(document(before))
    tab = opened()
    for name in "abc":
        stage.show(document(before))
        tab.wait_for(f"{_TITLES}.join('') === 'abc'")
        tab.evaluate(f"Array.from(document.querySelectorAll('h2 button')).find(b => b.innerText === '{name}').focus()")
        stage.show(document([*before[:2], virtual("c", "10.64.0.2")]))
        tab.wait_for(f"{_TITLES}.join('') === 'cab'")
        assert tab.evaluate(_FOCUSED) == name


def test_healthy_services_beyond_twenty_are_collapsed(opened: Opener) -> None:
    """They are lines that a key or a click expands, and they stay as the user left them."""
    tab = opened()
    titles = tab.evaluate(_TITLES)
    assert len(titles) == 60
    assert tab.evaluate(_OPEN) == titles[:30]
    assert tab.evaluate(_SHOWN) == "60 of 60 services, 30 collapsed"
    last = "document.querySelector('section.service:last-child')"
    tab.wait_for(
        f"/^10[.]64[.]\\d+[.]1:80[/]tcp and 1 more · \\d real servers?, [\\d.]+ connects[/]s$/.test(\
        Array.from({last}.querySelectorAll('.summary span'), one => one.innerText).join(' · '))"
    )
    assert tab.evaluate(f"{last}.querySelectorAll('table').length") == 0
    tab.evaluate(f"{last}.querySelector('h2 button').focus()")
    tab.press("Enter")
    assert tab.evaluate(f"{last}.querySelectorAll('table').length") == 2
    tab.evaluate("document.querySelector('h2 button').click()")
    tab.listen(3)
    assert tab.evaluate(_OPEN) == [*titles[1:30], titles[-1]]
    write(tab, "redis-")
    assert len(tab.evaluate(_TITLES)) == 6
    assert tab.evaluate(_SHOWN) == "6 of 60 services"


def test_the_filter_takes_parts_of_names_and_addresses(opened: Opener) -> None:
    """It looks at services, sources, VIPs and real servers, in upper and lower case."""
    tab = opened()
    for text, count in {"REDIS-AMS": 1, "consul:redis": 6, "10.64.7.1:80": 1, "10.0.5.2": 1, "[fd00:64::8]": 1}.items():
        write(tab, text)
        assert len(tab.evaluate(_TITLES)) == count, text


@pytest.mark.parametrize("text", ["redis-fra", "<b>&amp;#50%?+ \"'א"])
def test_the_filter_is_in_the_address(opened: Opener, text: str) -> None:
    """A link has filter and checkbox, with every character, and a page without them has neither."""
    tab = opened()
    write(tab, text)
    tab.evaluate("document.querySelector('#problems').click()")
    tab.wait_for("location.search.includes('problems=1')")
    link = tab.evaluate("location.search")
    assert re.fullmatch(r"[?][\w=&%+.*-]+", link)
    other = opened(link)
    assert other.evaluate(f"{_FILTER}.value") == text
    assert other.evaluate("document.querySelector('#problems').checked")
    assert other.evaluate(_SHOWN) == "0 of 60 services"
    assert (
        other.evaluate("document.querySelector('#nothing').innerText") == f"No service with a problem matches “{text}”."
    )
    other.evaluate("document.querySelector('#all').click()")
    other.wait_for("location.search === ''")
    assert len(other.evaluate(_TITLES)) == 60
    assert other.evaluate(_FOCUSED) == "filter"
    assert other.troubles() == []


def test_nothing_matches(opened: Opener, stage: Stage) -> None:
    """The page says what does not match, and that there are no services yet."""
    tab = opened("?filter=nobody")
    assert tab.evaluate("document.querySelector('#none').innerText").startswith("Nothing matches “nobody”.")
    write(tab, "redis")
    assert tab.evaluate("document.querySelector('#none').hidden")
    stage.show(document([]))
    tab.wait_for("document.querySelector('#none').innerText.trim() === 'No services yet.'")


def test_a_slash_focuses_the_filter(opened: Opener) -> None:
    """It selects the text of the filter, except where it is typed there, or pressed with another key."""
    tab = opened("?filter=redis")
    tab.press("/", control=True)
    assert tab.evaluate("document.activeElement === document.body")
    tab.press("/")
    assert tab.evaluate(_FOCUSED) == "filter"
    assert tab.evaluate("getSelection().toString()") == "redis"
    tab.press("/")
    assert tab.evaluate(f"{_FILTER}.value") == "/"


def test_works_with_a_keyboard(opened: Opener) -> None:
    """Tab reaches the skip link, the problems, the controls, the services and the links; the focus is visible."""
    tab = opened("?filter=billing-ber")
    reached = []
    for _ in range(13):
        tab.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.getAttribute('href') || 'h2'"))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == [
        *("#services", *["#services"] * 5),
        *("filter", "problems", "pause", "h2", "status.json", "metrics", "healthz"),
    ]


def test_pause_and_resume(opened: Opener, stage: Stage) -> None:
    """The button pauses requests, says Resume and since when, and asks at once when it resumes."""
    tab = opened()
    button = "document.querySelector('#pause')"
    tab.evaluate(f"{button}.click()")
    assert tab.evaluate(f"{button}.innerText") == "Resume"
    assert re.fullmatch(r"paused at \d\d:\d\d:\d\d", tab.evaluate("document.querySelector('#since').innerText"))
    tab.listen(1)  # a request that has begun may end
    asked = stage.asked
    tab.listen(5)
    assert stage.asked == asked
    tab.evaluate(f"{button}.click()")
    tab.listen(1)
    assert stage.asked == asked + 1
    assert tab.evaluate(f"{button}.innerText") == "Pause"
    assert tab.evaluate("document.querySelector('#since').innerText") == ""


def test_rates_dim_while_no_response_comes(opened: Opener, stage: Stage) -> None:
    """Rates and totals are dim while a sidecar hangs or is gone, and the headline says since when."""
    tab = opened()
    color = "getComputedStyle(document.querySelector('td.rate')).color"
    bright = tab.evaluate(color)
    stage.hang()
    tab.wait_for(f"/^▲ no response from the sidecar since ..:..:..; the last published/.test({_HEALTH})", patient(20))
    assert tab.evaluate(color) != bright
    stage.go_on()
    tab.wait_for(f"{_HEALTH}.startsWith('▲ 1 service not published')", patient(20))
    assert tab.evaluate(color) == bright
    stage.end()
    tab.wait_for(f"{_HEALTH}.includes('no response from the sidecar since ')")
    assert tab.evaluate(color) != bright
    assert len(tab.evaluate(_TITLES)) == 60


def test_ejected_servers_are_among_those_that_are_shown(opened: Opener, stage: Stage) -> None:
    """Of a large pool only some real servers are shown, and ejected ones are among them."""
    servers = [real(f"10.1.{number // 250}.{number % 250}", ejected=number == 998) for number in range(1000)]
    stage.show(document([virtual("large", "10.64.0.1", *servers)]))
    tab = opened()
    assert "250 of 1,000 shown, ejected ones first" in tab.evaluate("document.querySelector('caption').innerText")
    assert tab.evaluate("document.querySelector('tbody tr').innerText").startswith("10.1.3.248:8080")
    assert tab.evaluate("document.querySelectorAll('tbody tr').length") == 250


def test_a_service_that_is_too_large_is_a_line(opened: Opener, stage: Stage) -> None:
    """A service with more rows than the page has is collapsed, the next one is shown, and a click expands the first."""
    vips = [virtual("large", f"10.64.0.{vip}", *(real(f"10.1.0.{host}") for host in range(250))) for vip in range(5)]
    stage.show(document([*vips, virtual("small", "10.64.1.1", real("10.0.0.1"))]))
    tab = opened()
    assert tab.evaluate(_OPEN) == ["small"]
    assert tab.evaluate(_SHOWN) == "2 of 2 services, 1 collapsed"
    tab.evaluate("document.querySelector('h2 button').click()")
    assert tab.evaluate("document.querySelectorAll('tbody tr').length") == 1250
    assert tab.evaluate(_SHOWN) == "2 of 2 services, the first 1 shown"


def test_all_that_is_wrong_with_an_instance_is_in_the_headline(opened: Opener, stage: Stage) -> None:
    """Problems of the instance come before those of its services."""
    never = source("consul:web") | {"last_success": None}
    found = document([virtual("web", "10.64.0.1", real("10.0.0.1", ejected=True))], sources=[never])
    vips = [f"10.64.0.{number}:80/tcp" for number in range(1, 6)]
    found["datapath"] |= {"effective": False, "reason": "the cgroup is gone", "load_error": "no such cgroup"}
    found["datapath"]["other_layouts"] = [2]
    found["datapath"]["overlaps"] = [{"instance": "b", "cgroup": "/", "relation": "same", "vips": vips}]
    found["sidecar"] |= {"config_error": "line 3", "last_sync": None}
    found["zone"] = {"name": None, "auto": True, "error": "the token lacks agent:read"}
    stage.show(found)
    tab = opened()
    assert tab.evaluate(_HEALTH) == (
        "▲ the programs are not in effect: connects are not balanced: the cgroup is gone; "
        "the programs of another version run first: see status; the last load failed: no such cgroup; "
        "instance b serves the same VIPs: 10.64.0.1:80/tcp, 10.64.0.2:80/tcp, 10.64.0.3:80/tcp and 2 more; "
        "configuration rejected, the previous one stays in effect: line 3; "
        "the zone of this host cannot be read, pools do not follow zones: the token lacks agent:read; "
        "1 real server ejected"
    )
    assert "no change since start" in tab.evaluate("document.querySelector('#facts').innerText")
    assert "fresh no answer yet" in tab.evaluate("document.querySelector('.source').innerText")


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Opener, stage: Stage, scheme: str, width: int) -> None:
    """axe-core finds no violation with problems and collapsed services, without a response, and without a match."""
    tab = opened()
    tab.prefer(scheme)
    tab.size(width, 1000)
    tab.evaluate((resources.files("axe_core_python") / "axe.min.js").read_text() + ";0")
    rules = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}"

    def violations() -> list[Any]:
        found: list[dict[str, Any]] = tab.evaluate(f"axe.run({rules}).then(result => result.violations)")
        return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]

    assert violations() == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    stage.end()
    tab.wait_for(f"{_HEALTH}.includes('no response')")
    assert violations() == []
    write(tab, "nobody")
    assert violations() == []


def test_pictures(opened: Opener, stage: Stage, pictures: Path) -> None:
    """Screenshots of sixty services, for people: light, dark, on a phone, collapsed services, and without a sidecar."""
    tab = opened()
    tab.listen(20)

    def take(name: str, scheme: str, width: int, height: int) -> bytes:
        tab.prefer(scheme)
        tab.size(width, height)
        taken = tab.screenshot()
        (pictures / f"{name}.png").write_bytes(taken)
        return taken

    taken = [take("sixty-light", "light", 1180, 1400), take("sixty-dark", "dark", 1180, 1400)]
    taken.append(take("sixty-phone", "light", 390, 1400))
    taken.append(take("sixty-phone-dark", "dark", 390, 1400))
    tab.evaluate("document.querySelector('#problems').click()")
    taken.append(take("problems", "light", 1180, 2400))
    tab.evaluate("document.querySelector('#problems').click()")
    tab.size(1180, 900)
    tab.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    taken.append(take("sixty-collapsed", "light", 1180, 900))
    tab.evaluate("window.scrollTo(0, 0)")
    stage.end()
    tab.wait_for(f"{_HEALTH}.includes('no response')")
    taken += [take("lost-light", "light", 1180, 900), take("lost-dark", "dark", 1180, 900)]
    write(tab, "nobody")
    taken.append(take("nothing", "light", 1180, 500))
    assert len(set(taken)) == len(taken)


def test_a_pool_that_follows_zones_has_a_column_of_them(opened: Opener, stage: Stage) -> None:
    """The caption has the zone of the host; other pools have neither."""
    web, mail = (
        virtual("web", "10.64.0.1", real("10.0.0.1"), real("10.0.0.2")),
        virtual("mail", "10.64.0.2", real("10.0.0.3")),
    )
    add_zones([web], Zones("eu-1a", {"consul:web": {"eu-1a": ["10.0.0.1:8080"], "<b>": ["10.0.0.2:8080"]}}))
    stage.show(document([web, mail]))
    tab = opened()
    tab.wait_for("document.querySelectorAll('caption').length === 2")
    assert tab.evaluate("Array.from(document.querySelectorAll('tbody .zone'), cell => cell.innerText)") == [
        "eu-1a",
        "<b>",
    ]
    assert tab.evaluate("document.querySelectorAll('thead .zone').length") == 1
    captions = tab.evaluate("Array.from(document.querySelectorAll('caption'), caption => caption.innerText)")
    assert "zone" not in captions[0]
    assert "zone eu-1a: 1 real server, target 50.0 %" in captions[1]
    assert tab.troubles() == []
