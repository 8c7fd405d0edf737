"""The page of `--metrics` in a real browser, over a real sidecar and the real kernel."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest

from tests.page.scene import HOSTILE, NEW, REDIS, SERVERS, Scene
from tests.support.chromium import Tab
from tests.support.png import smaller

pytestmark = pytest.mark.page

_ROWS: Final = """
Array.from(document.querySelectorAll('section.service'), section => [
  section.querySelector('h2').textContent,
  Array.from(section.querySelectorAll('tbody tr'), row => Array.from(row.children, cell => cell.innerText.trim())),
])
"""
_UNSETTLED: Final = "Array.from(document.querySelectorAll('.share')).every(cell => !/^[0-9]/.test(cell.innerText))"


_HEALTH: Final = "document.querySelector('#health').innerText"


def rows(tab: Tab, service: str) -> dict[str, list[str]]:
    """Return the cells of a service's rows behind each real server's name."""
    return {cells[0]: cells[1:] for cells in dict(tab.evaluate(_ROWS))[service]}


def filter_by(tab: Tab, text: str) -> None:
    """Write into the filter."""
    tab.evaluate(
        f"{{ const box = document.querySelector('#filter'); box.value = '{text}';"
        "box.dispatchEvent(new Event('input')); }"
    )


def test_shows_what_the_kernel_holds(tab: Tab, scene: Scene) -> None:
    """Real servers have their state, priority and weight, and shares come near to their targets."""
    tab.wait_for(f"!({_UNSETTLED})")
    tab.listen(6)
    found = rows(tab, "redis")
    (virtual,) = [one for one in scene.status()["virtual_servers"] if one["service"] == "redis"]
    assert virtual["address"] == REDIS
    named = {f"{server['address']}:{server['port']}": server for server in virtual["real_servers"]}
    assert found.keys() == named.keys()
    taking = sum(server["weight"] for server in named.values() if server["state"] == "active")
    for name, (state, priority, weight, share, *_) in found.items():
        server = named[name]
        assert state.split() == (["▲", "ejected"] if server["state"] == "ejected" else ["●", "active"])
        assert [priority, weight] == [str(server["priority"]), str(server["weight"])]
        part, _, rest = share.partition(" %")
        target = server["weight"] / taking if server["state"] == "active" else 0
        assert rest.strip() == (f"(target {100 * target:.1f} %)" if target else "")
        assert float(part) == pytest.approx(100 * target, abs=12)
    assert [cells[0].split()[1] for cells in rows(tab, "postgresql").values() if len(cells) > 1] == [
        "active",
        "standby",
    ]
    assert "no IPv6 servers" in tab.evaluate("document.querySelector('.empty').innerText")


def test_follows_connects_and_discovery(tab: Tab, scene: Scene) -> None:
    """Counters grow, new servers appear, a source that fails is reported, and the page is not loaded again."""
    name = f"{SERVERS['redis'][0][0]}:{SERVERS['redis'][0][1]}"
    tab.evaluate("window.same = true")
    before = int(rows(tab, "redis")[name][5].replace(",", ""))
    tab.listen(5)
    assert int(rows(tab, "redis")[name][5].replace(",", "")) > before
    scene.add_server()
    tab.wait_for(f"document.body.innerText.includes('{NEW[0]}:{NEW[1]}')")
    scene.lose_a_zone()
    tab.wait_for("document.querySelector('#health').innerText.includes('1 source not fresh')")
    assert "SERVFAIL" in tab.evaluate("document.querySelector('.reason:not([hidden])').innerText")
    assert tab.evaluate("window.same")


def test_nothing_is_amiss_and_nothing_leaves_the_origin(tab: Tab, scene: Scene) -> None:
    """The console, policies and exceptions are empty, and only the page and its document are requested."""
    tab.listen(5)
    assert tab.troubles() == []
    assert set(tab.requests()) == {f"{scene.origin}/", f"{scene.origin}/status.json"}


def test_names_are_only_text(tab: Tab) -> None:
    """A service whose name is markup is shown with that name, and none of it becomes an element."""
    titles = tab.evaluate("Array.from(document.querySelectorAll('h2'), title => title.textContent)")
    assert HOSTILE in titles
    assert tab.evaluate("document.querySelectorAll('img, iframe, object, embed, base').length") == 0
    assert tab.evaluate("document.scripts.length") == 1


def test_policy_forbids_markup_from_text_and_foreign_code(tab: Tab) -> None:
    """If a fault of ours let text become markup or code, the browser would stop and report it."""
    assert tab.evaluate(
        "(() => { try { document.body.innerHTML = '<b>'; } catch (error) { return error.name; } })()"
    ) == ("TypeError")
    tab.evaluate(
        "(() => { const one = document.createElement('style'); one.append('*{}'); document.head.append(one); })()"
    )
    assert tab.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'not sent')") == "not sent"
    tab.listen(1)
    assert len(tab.troubles()) >= 3


def test_tells_assistive_technology_what_it_shows(tab: Tab) -> None:
    """There are landmarks, a status region, tables with captions, headers and cells, and no images without text."""
    tree = tab.tree()
    roles = [role for role, _ in tree]
    for role in ("banner", "main", "contentinfo", "search", "status", "heading"):
        assert role in roles, role
    assert ("searchbox", "Filter") in tree
    assert ("region", "redis") in tree
    assert any(role == "table" and name.startswith(f"{REDIS}:6379/tcp") for role, name in tree)
    assert ("columnheader", "Share") in tree
    assert ("rowheader", f"{SERVERS['redis'][0][0]}:{SERVERS['redis'][0][1]}") in tree
    assert not {"image", "img", "graphics-document"} & set(roles)


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(tab: Tab, scheme: str, width: int) -> None:
    """axe-core finds no violation of WCAG 2.1 A and AA, and the page is not wider than the screen."""
    tab.prefer(scheme)
    tab.size(width, 1000)
    tab.evaluate((resources.files("axe_core_python") / "axe.min.js").read_text() + ";0")
    rules = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}"
    found: list[dict[str, Any]] = tab.evaluate(f"axe.run({rules}).then(result => result.violations)")
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_looks_right(tab: Tab, pictures: Path) -> None:
    """The light and dark pages differ, and a phone gets another layout. The screenshots are for people."""
    filter_by(tab, "tcp")
    tab.listen(60)
    taken: dict[str, bytes] = {}
    for name, scheme, (width, height, scale) in (
        ("light", "light", (1180, 756, 1)),
        ("dark", "dark", (1180, 756, 1)),
        ("phone", "dark", (390, 1400, 2)),
    ):
        tab.prefer(scheme)
        tab.size(width, height, scale)
        taken[name] = tab.screenshot()
        (pictures / f"{name}.png").write_bytes(smaller(taken[name]))
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(250, 250, 248)" if scheme == "light" else "rgb(18, 20, 23)")
    assert len(set(taken.values())) == 3
    assert tab.evaluate("getComputedStyle(document.querySelector('tbody tr')).display") == "grid"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "new Response('the data plane is not loaded\\n', {status: 503})",
            "returned 503: the data plane is not loaded",
        ),
        ("new Response('<b>'.repeat(1000), {status: 502})", "returned 502: <b><b>"),
        ("new Response('{}')", "error in this page: TypeError"),
    ],
)
def test_says_what_is_wrong_with_an_answer(tab: Tab, answer: str, said: str) -> None:
    """The text of an error response is shown, with a limited length, and a fault of the page is named as one."""
    before = rows(tab, "redis").keys()
    tab.evaluate(f"{{ window.fetch = async () => {answer}; }}0")
    tab.wait_for(f"{_HEALTH}.includes('{said}')")
    shown = tab.evaluate(_HEALTH)
    assert len(shown) < 400
    assert "no response" not in shown
    assert rows(tab, "redis").keys() == before


def test_says_when_the_sidecar_is_gone(tab: Tab, scene: Scene) -> None:
    """The last values stay, and the page reports that the sidecar does not respond. This ends the scene."""
    assert scene.sidecar.stop() == 0
    tab.wait_for("document.querySelector('#health').innerText.includes('no response from the sidecar since ')")
    assert rows(tab, "redis")
