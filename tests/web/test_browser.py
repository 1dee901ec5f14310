"""The pages in a real browser: light and dark, wide and narrow, by keyboard alone, with hostile names in the log.

Chromium comes from the system's packages. Set SCREENSHOTS to a directory to get a picture of every page.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

import pytest

from routing.sync import Allowance
from tests.support.served import BLOCKS, HOSTILE_CLASS, HOTKEYS, JOB, SCRIPT, fill, served
from tests.support.small import GPU, VALIDATOR

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDE, NARROW = 1280, 390
Scheme = Literal["light", "dark"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in /usr/bin (apt-get install chromium)"),
]


@dataclass
class Site:
    """The served ledger."""

    address: str
    url: str
    reservations: dict[str, int]

    @property
    def pages(self) -> dict[str, str]:
        """The links to all pages, by name; pages that answer with an error last."""
        hotkey = quote(SCRIPT)
        return {
            "overview": "",
            "miners": "miners",
            "ranking": f"miners?executor_class={GPU}&seconds=30",
            "refusal": f"miners?executor_class={quote(HOSTILE_CLASS)}&seconds=3000",
            "miner": f"miner?hotkey={hotkey}",
            "reservations": "reservations",
            "filtered": f"reservations?miner={hotkey}&status=reserved&reserved_from=2024-01-01T00:00:00Z",
            "reservation": f"reservation?id={self.reservations['spent']}",
            "events": "events?limit=30",
            "settings": "settings",
            "audit": "audit",
            "past": f"?block={BLOCKS - 5}",
            "empty": "reservations?miner=nobody",
            "error": "miners?unknown=1",
        }


@dataclass
class Observed:
    """What a browser window did while a test ran."""

    console: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    dialogs: list[str] = field(default_factory=list)

    def dismiss(self, dialog: Dialog) -> None:
        """Note a dialog, and close it, since it would stop the page."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A ledger with hostile names and an ended audit, served by `allowance serve`."""
    url = f"sqlite:///{tmp_path_factory.mktemp('pages')}/ledger.db"
    reservations = asyncio.run(fill(url))
    with served(url) as (address, _):
        yield Site(address, url, reservations)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests. It ends with this module: Playwright's event loop would be in the way of others."""
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield running
        running.close()


@contextmanager
def window(
    browser: Browser, width: int, scheme: Scheme = "light", *, scripts: bool = True
) -> Iterator[tuple[Page, Observed]]:
    """Open a window, and observe everything that a page must not do."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    page, observed = context.new_page(), Observed()
    page.on("console", lambda message: observed.console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: observed.console.append(str(error)))
    page.on("request", lambda request: observed.hosts.add(urlsplit(request.url).netloc))
    page.on("dialog", observed.dismiss)
    try:
        yield page, observed
    finally:
        context.close()


def ended_audit(page: Page, site: Site) -> None:
    """Start an audit as a visitor does, and wait until the page shows its report."""
    page.goto(f"{site.address}/audit")
    if page.locator("text=No finding in").count() == 0:
        page.get_by_role("button", name="Audit the log").click()
        page.wait_for_selector("text=No finding in")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_page_is_sound(site: Site, browser: Browser, width: int, scheme: Scheme) -> None:
    """Every page passes axe-core, does not scroll sideways, logs nothing, and asks no other host.

    Catches an unlabelled field, a contrast that is too low in one of the two schemes, a table that is wider than a
    phone, a script or a style that the policy blocks (the console says so), and a font or picture from elsewhere.
    """
    with window(browser, width, scheme) as (page, observed):
        ended_audit(page, site)
        for name, link in site.pages.items():
            if name == "error":
                assert observed.console == []
            page.goto(f"{site.address}/{link}")
            if shots := os.environ.get("SCREENSHOTS"):
                page.screenshot(path=f"{shots}/{name}-{width}-{scheme}.png", full_page=True)
            found = axe.Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], name
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow == 0, name
        assert observed.hosts == {urlsplit(site.address).netloc}
        assert observed.dialogs == []


def test_hostile_names_are_shown_as_text(site: Site, browser: Browser) -> None:
    """Names from the log are visible as they are, make no element, and their links lead to their own page.

    Catches a name that is not escaped in a text, an attribute, a link or a live row.
    """
    with window(browser, WIDE) as (page, observed):
        page.goto(f"{site.address}/miners")
        for hotkey in HOTKEYS:
            link = page.get_by_role("link", name=hotkey, exact=True)
            assert link.inner_text() == hotkey
            link.click()
            assert page.locator("h1").inner_text() == hotkey
            page.go_back()
        for name, address in site.pages.items():
            page.goto(f"{site.address}/{address}")
            assert page.locator("main script, main img, main b b, main i i, td > b").count() == 0, name
        assert observed.dialogs == []


def test_the_keyboard_alone_is_enough(site: Site, browser: Browser) -> None:
    """Tab visits everything in order, shows where it is, and is never trapped; Enter sends a form."""
    with window(browser, WIDE) as (page, _):
        page.goto(f"{site.address}/reservations")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == "miner"
        page.keyboard.type(SCRIPT)
        page.keyboard.press("Enter")
        page.wait_for_url("**/reservations?miner=*")
        shown = page.locator("tbody tr").count()
        assert 0 < shown < 6
        visited = visit_all_by_tab(page)
        assert visited[-1] == visited[0] or "body" in visited, "the focus leaves the page at its end"
        assert any("Download as CSV" in each for each in visited)


def visit_all_by_tab(page: Page) -> list[str]:
    """Press Tab until the focus is back at the beginning; every stop must be visibly focused."""
    visited: list[str] = []
    page.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)")
    page.locator("body").press("Tab")
    while len(visited) < 300 and (not visited or visited[-1] != "body"):
        visited.append(
            page.evaluate(
                "(() => { const e = document.activeElement; if (e === document.body) return 'body';"
                " const s = getComputedStyle(e);"
                " return (s.outlineStyle === 'none' ? 'NO OUTLINE ' : '') + (e.textContent || e.name); })()"
            )
        )
        if len(visited) > 1 and visited[-1] == visited[0]:
            break
        page.keyboard.press("Tab")
    assert not [each for each in visited if each.startswith("NO OUTLINE")]
    assert len(visited) < 300
    return visited


def test_pages_work_without_scripts(site: Site, browser: Browser) -> None:
    """Without JavaScript every page shows its content, and the form for another moment works."""
    with window(browser, NARROW, scripts=False) as (page, observed):
        for name, link in site.pages.items():
            page.goto(f"{site.address}/{link}")
            assert page.locator("main h1").count() == 1, name
        page.goto(f"{site.address}/")
        page.get_by_text("Show this page at another moment").click()
        page.get_by_label("Log position").fill("20")
        page.get_by_role("button", name="Show that moment").click()
        assert "after event 20" in page.locator(".past").inner_text()
        assert observed.hosts == {urlsplit(site.address).netloc}


def test_live_pages_follow_the_ledger(site: Site, browser: Browser) -> None:
    """The events and the overview show a new event without a reload, each event once, also with a hostile name.

    Catches a stream that ends, repeats or skips an event, and a layout that jumps when the state changes.
    """
    with window(browser, WIDE) as (page, observed), window(browser, WIDE) as (other, _):
        page.goto(f"{site.address}/events?limit=10")
        other.goto(f"{site.address}/")
        page.wait_for_selector("text=Live: this page follows the ledger.")
        other.wait_for_selector("text=Live: this page follows the ledger.")
        top = other.locator("h2").bounding_box()
        with ThreadPoolExecutor(1) as thread:  # Playwright's own event loop runs on this one.
            newest_id, position = thread.submit(three_reservations, site.url).result()
        page.wait_for_selector(f"#rows tr:first-child >> text={position:,}")
        positions = page.locator("#rows td.number:first-child").all_inner_texts()
        assert positions == [f"{each:,}" for each in range(position, position - 13, -1)]
        first = page.locator("#rows tr").first.inner_text()
        assert str(newest_id) in first
        assert f"{JOB}-live-2" in first
        other.wait_for_selector(f"#tiles >> text={position:,}")
        assert other.locator("h2").bounding_box() == top
        assert observed.console == []


def three_reservations(url: str) -> tuple[int, int]:
    """Make three reservations; return the id of the last one, and the head's position."""
    with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        made = [ledger.reserve(SCRIPT, GPU, 1.0, BLOCKS, job_uuid=f"{JOB}-live-{n}") for n in range(3)]
        return made[-1].reservation_id, ledger.head().position
