"""The pages in a real Chromium: what a person with a phone, a screen reader or a mouse gets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pages.browser import Browser, Page
from pages.conftest import Nights
from pages.support import make_key
from serving.support import Server, serving

from kserve.notices.incidents import Report, open_incident, resolve_incident
from kserve.notices.pages import diff_html
from kserve.notices.store import Store
from kserve.serving.keys import Keys
from kserve.settings import Settings
from kserve.snapshots import report as reports
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.compare import compare
from kserve.snapshots.orders import Orders

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

WIDTHS = (320, 1280)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def rules() -> str:
    """The script of axe-core, which knows what screen readers and weak eyes need."""
    pytest.importorskip("axe_core_python")
    return resources.files("axe_core_python").joinpath("axe.min.js").read_text()


@pytest.fixture
def troubled(nights: Nights) -> Nights:
    """A data directory with incidents to tell of."""
    words = "Scores of some profiles are wrong: a word that does not break " + "x" * 200
    with Store(nights.data) as store:
        past = open_incident(store, Report(title="Late", text="It takes longer.", components=("publishing",)), by="joe")
        resolve_incident(store, past.id, "Here it is.", by="joe")
        report = Report(title="Wrong <b>scores</b>", text=words, components=("scores",), impact="critical")
        open_incident(store, report, by="joe")
    return nights


def origin(server: Server) -> str:
    return f"http://127.0.0.1:{server.office_port}"


def sound(page: Page, server: Server) -> None:
    """Nothing was asked of anyone else, and the browser has nothing to complain of."""
    assert page.complaints() == []
    assert {urlsplit(url).netloc for url in page.requested()} == {f"127.0.0.1:{server.office_port}"}


def accessible(page: Page, rules: str) -> None:
    """axe-core finds nothing, contrast included."""
    page.evaluate(f"{{{rules}}}; null")
    found = page.evaluate(
        "axe.run().then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"
    )
    assert json.loads(found) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_status_page(browser: Browser, troubled: Nights, rules: str, tmp_path: Path, width: int, dark: bool) -> None:
    with serving(troubled.data) as server:
        page = browser.page(width, dark=dark)
        page.goto(f"{origin(server)}/status")
        assert page.overflow() <= 0
        assert "Major Service Outage" in page.text()
        assert "Wrong <b>scores</b>" in page.text()
        accessible(page, rules)
        page.screenshot(tmp_path / "status.png")
        sound(page, server)


def test_what_a_screen_reader_finds(browser: Browser, troubled: Nights) -> None:
    with serving(troubled.data) as server:
        page = browser.page()
        page.goto(f"{origin(server)}/status")
        nodes = page.nodes()
    roles = {role for role, _ in nodes}
    assert {"banner", "main", "contentinfo", "status", "list", "listitem", "article"} <= roles
    headings = [name for role, name in nodes if role == "heading"]
    assert {"kserve status", "Incidents now", "Components", "Scores API", "Publishing", "Webhooks"} <= set(headings)
    regions = {name for role, name in nodes if role == "region"}
    assert {"Components", "Incidents now", "Scores in force"} <= regions
    bars = [name for role, name in nodes if role == "image"]
    assert len(bars) == 3
    assert all(re.search(r"the last 90 days: \d+ of \d+ recorded days with an incident", name) for name in bars)
    assert any("major outage" in name for name in bars)


def test_status_page_without_scripts_and_alone(browser: Browser, tmp_path: Path) -> None:
    """`kserve status-page` on an empty directory."""
    from cli.support import started

    (tmp_path / "data").mkdir()
    with started("status-page", "--port", 0, "--json", "--data", tmp_path / "data") as popen:
        assert popen.stdout is not None
        address = json.loads(popen.stdout.readline())["address"]
        page = browser.page(320)
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.goto(f"{address}/status")
        assert ("heading", "kserve status") in page.nodes()
        assert ("StaticText", "No scores are published yet.") in page.nodes()
        assert page.complaints() == []


def signed_in(browser: Browser, server: Server, key: str, width: int = 1280) -> Page:
    page = browser.page(width)
    page.goto(f"{origin(server)}/console")
    assert urlsplit(page.evaluate("location.href")).path == "/console/sign-in"
    page.fill("#key", key)
    page.click("main button")
    return page


def test_wrong_and_right_keys(browser: Browser, server: Server, nights: Nights) -> None:
    _, text = make_key(nights.data)
    page = signed_in(browser, server, text[:-1] + "x")
    assert "This is no key for the console." in page.text()
    assert ("alert", "") in page.nodes()
    page.fill("#key", text)
    page.click("main button")
    assert page.text("h1") == "Versions"
    assert [entry for entry in page.complaints() if "401" not in entry.get("text", "")] == []
    assert page.evaluate("document.cookie") == ""  # HttpOnly
    page.click("nav button")
    assert page.text("h1") == "Sign in"


def test_every_page_of_the_console(
    browser: Browser, server: Server, nights: Nights, rules: str, tmp_path: Path
) -> None:
    _, text = make_key(nights.data)
    oldest, _, live = nights.versions
    Orders(Catalog(nights.data), Settings(data=nights.data)).pin(why="w" * 300, by="joe")
    for width in WIDTHS:
        page = signed_in(browser, server, text, width)
        paths = ["", "/log", "/processes", "/acts/rollback", "/acts/pin", "/acts/unpin", f"/versions/{live}"]
        for path in [*paths, f"/diff?old={oldest}&new={live}&movers=1"]:
            page.goto(f"{origin(server)}/console{path}")
            if path.startswith("/diff"):
                page.wait_for("Biggest movers")
            assert page.overflow() <= 0, path
            accessible(page, rules)
            page.screenshot(tmp_path / f"{width}{path.partition('?')[0].replace('/', '-')}.png")
        page.goto(f"{origin(server)}/status")
        sound(page, server)


def test_rollback_by_hand(browser: Browser, server: Server, nights: Nights) -> None:
    good, live = nights.versions[1:]
    page = signed_in(browser, server, make_key(nights.data)[1])
    page.click('a[href="/console/acts/rollback"]')
    page.fill("#reason", "Scores of New York are wrong")
    page.fill("#confirm", live)
    page.click("main button")
    assert f"Nothing was done: to confirm, type {good} exactly" in page.text()
    assert page.evaluate("document.querySelector('#reason').value") == "Scores of New York are wrong"
    assert Catalog(nights.data).live() == live
    page.fill("#confirm", good)
    page.click("main button")
    assert "The rollback is done, and the version pinned." in page.text()
    assert Catalog(nights.data).live() == good
    assert server.get("/v3/snapshot").json()["version"] in nights.versions
    page.goto(f"{origin(server)}/console/log")
    assert "maria (key" in page.text("tbody tr")
    assert "Scores of New York are wrong" in page.text("tbody tr")


def test_a_form_of_another_site_is_refused(browser: Browser, server: Server, nights: Nights) -> None:
    """Even one that knows everything but the token, in a browser that is signed in, from the same host."""
    page = signed_in(browser, server, make_key(nights.data)[1])
    live = nights.versions[-1]
    fields = {"live": live, "confirm": live, "reason": "evil", "token": "0" * 64}
    inputs = "".join(f'<input name="{name}" value="{value}">' for name, value in fields.items())
    form = f'<form method="post" action="{origin(server)}/console/acts/pin">{inputs}<button>send</button></form>'
    page.goto(f"data:text/html,{form.replace('#', '%23')}")
    page.click("button")
    page.wait_for("Sign in")  # the session's cookie is not sent along
    assert Orders(Catalog(nights.data), Settings(data=nights.data)).state().pin is None


def test_a_revoked_key_is_signed_out(browser: Browser, server: Server, nights: Nights) -> None:
    key, text = make_key(nights.data)
    make_key(nights.data)
    page = signed_in(browser, server, text)
    assert page.text("h1") == "Versions"
    Keys(nights.data).revoke(key.id)
    page.click('nav a[href="/console/log"]')
    assert page.text("h1") == "Sign in"


@pytest.mark.parametrize("width", WIDTHS)
def test_diff_as_one_file(browser: Browser, nights: Nights, rules: str, tmp_path: Path, width: int) -> None:
    catalog = Catalog(nights.data)
    with catalog.open(nights.versions[0]) as old, catalog.open(nights.versions[2]) as new:
        text = diff_html(compare(old, new), reports.load(nights.data, nights.versions[2]))
    file = tmp_path / "diff.html"
    file.write_text(text)
    page = browser.page(width)
    page.goto(file.as_uri())
    assert page.overflow() <= 0
    assert page.complaints() == []
    assert page.requested() == [file.as_uri()]
    assert "Biggest movers" in page.text()
    assert any(role == "image" and "Distribution of scores" in name for role, name in page.nodes())
    accessible(page, rules)
    page.screenshot(tmp_path / "diff.png")
