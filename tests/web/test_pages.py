"""The pages by HTTP, without a browser: they agree with the command line, escape the log, and refuse by name."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import httpx
import pytest

from routing import Allowance, InvalidInput
from routing.web import app
from routing.web.application import PAGES, STREAMS
from routing.web.parameters import Parameters
from routing.web.visit import MOST_PASTS, Source
from tests.support.cli import Command, command_line
from tests.support.engines import new_database
from tests.support.served import ARABIC, BLOCKS, FORMULA, HOSTILE_CLASS, HOTKEYS, IMAGE, JOB, SCRIPT, fill
from tests.support.small import GPU, VALIDATOR

Ids = dict[str, int]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Ids]:
    """The URL of a ledger with hostile names, and reservations by status."""
    url = new_database("sqlite", tmp_path_factory.mktemp("filled"))
    return url, asyncio.run(fill(url))


@asynccontextmanager
async def client_of(application: Any, base: str = "http://127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=base) as client:
        yield client


@pytest.fixture
async def client(filled: tuple[str, Ids]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the pages of the ledger."""
    async with (
        Allowance.open(filled[0], validator_ss58=VALIDATOR, read_only=True) as ledger,
        client_of(app(ledger)) as client,
    ):
        yield client


def links(ids: Ids) -> dict[str, str]:
    """Return a link to each page, by its path; the ids are those of `fill`."""
    hotkey = quote(IMAGE)
    return {
        "overview": "/",
        "miners": f"/miners?executor_class={GPU}&seconds=30",
        "miner": f"/miner?hotkey={hotkey}",
        "reservations": f"/reservations?job={quote(JOB)}1",
        "reservation": f"/reservation?id={ids['spent']}",
        "events": "/events",
        "settings": "/settings",
        "audit": "/audit",
    }


def parsed(text: str) -> ElementTree.Element:
    """Parse a page as XML, so that anything unclosed, unquoted or unescaped fails."""
    declaration, document = text.split("\n", 1)
    assert declaration == "<!doctype html>"
    return ElementTree.fromstring(document)


def words(tree: ElementTree.Element) -> str:
    return " ".join("".join(tree.itertext()).split())


def test_every_page_has_a_test_link() -> None:
    """Catches a page that the tests below forget."""
    assert set(links({"spent": 1})) == {each.path for each in PAGES}


async def test_every_page_is_well_formed_and_also_json(client: httpx.AsyncClient, filled: tuple[str, Ids]) -> None:
    """Each page is a page, and a document under `.json` and with `format=json`, now and in the past."""
    for path, link in links(filled[1]).items():
        for moment in ("", f"position={BLOCKS + 9}"):
            here = f"{link}{'&' if '?' in link else '?'}{moment}"
            answer = await client.get(here)
            assert answer.status_code == 200, (here, answer.text)
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            tree = parsed(answer.text)
            assert [each.get("lang") for each in tree.iter("html")] == ["en"]
            assert ("The past:" in words(tree)) == bool(moment)
            by_format = await client.get(f"{here}{'&' if '?' in here else '?'}format=json")
            by_suffix = await client.get(here.replace(link.partition("?")[0], f"/{path}.json", 1))
            assert by_format.headers["content-type"] == by_suffix.headers["content-type"] == "application/json"
            assert by_format.json().keys() == by_suffix.json().keys()


async def test_documents_have_the_keys_of_the_command_line(
    client: httpx.AsyncClient, filled: tuple[str, Ids], capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON of each page has the same keys as `--json`: who knows one knows the other."""
    url, ids = filled
    command = command_line(capsys)

    async def cli(*arguments: object) -> list[dict[str, Any]]:
        return await asyncio.to_thread(_documents, command, *arguments, "--json", "--database", url)

    async def page(link: str) -> Any:
        return (await client.get(link)).json()

    (overview,) = await cli("replay")
    assert overview.keys() == (await page("/overview.json")).keys() - {"health"}
    (health,) = await cli("health")
    assert health.keys() - {"failures"} == (await page("/overview.json"))["health"].keys()
    assert health.keys() == (await page("/healthz"))["ledgers"][0].keys()
    ranked = await cli("miners", "--executor-class", GPU, "--seconds", 30)
    assert ranked == (await page(f"/miners.json?executor_class={GPU}&seconds=30"))["items"]
    assert await cli("miners", "--executor-class", GPU) == (await page(f"/miners.json?executor_class={GPU}"))["items"]
    assert await cli("miners") == (await page("/miners.json"))["items"]
    history = await cli("history", "--miner", SCRIPT)
    shown = await page(f"/reservations.json?miner={quote(SCRIPT)}")
    assert history == [{**each, "checked": shown["checked"]} for each in shown["items"]]
    lines = (await client.get(f"/reservations.jsonl?miner={quote(SCRIPT)}")).text.splitlines()
    assert history == [json.loads(line) for line in lines]
    reservation = await page(f"/reservation.json?id={ids['spent']}")
    assert await cli("show", ids["spent"]) == [reservation["reservation"]]
    assert await cli("explain", f"{JOB}0") == [reservation["explanation"]]
    (why,) = await cli("why", SCRIPT, HOSTILE_CLASS)
    (account,) = (await page(f"/miner.json?hotkey={quote(SCRIPT)}"))["accounts"][:1]
    assert account["executor_class"] == HOSTILE_CLASS
    assert account["free_seconds"] == pytest.approx(why["available_seconds"])
    assert account["granted_seconds"] == pytest.approx(why["total_seconds"])
    events = await cli("events")
    assert events[::-1] == (await page("/events.json?limit=1000"))["items"]


def _documents(command: Command, *arguments: object) -> list[dict[str, Any]]:
    return command(*arguments).documents


async def test_hostile_names_stay_text(client: httpx.AsyncClient, filled: tuple[str, Ids]) -> None:
    """Names from the log appear as text on every page that shows them, and only as text.

    Catches a name that is not escaped in a text, an attribute or a link.
    """
    for link in links(filled[1]).values():
        page = (await client.get(link)).text
        tree = parsed(page)
        assert not list(tree.iter("img"))
        assert SCRIPT not in page
        assert [each.get("src") for each in tree.iter("script")] == ["static/live.js"]
    for hotkey in HOTKEYS:
        tree = parsed((await client.get("/miners")).text)
        (target,) = [each.get("href", "") for each in tree.iter("a") if "".join(each.itertext()) == hotkey]
        miner = parsed((await client.get(f"/{target}")).text)
        assert ["".join(each.itertext()) for each in miner.iter("h1")] == [hotkey]


async def test_every_link_leads_somewhere(client: httpx.AsyncClient, filled: tuple[str, Ids]) -> None:
    """Every link and form of every page, followed from where it stands, is answered; all are relative."""
    seen: set[str] = set()
    for link in [*links(filled[1]).values(), f"/?block={BLOCKS - 5}", f"/miner?hotkey={quote(ARABIC)}&position=60"]:
        tree = parsed((await client.get(link)).text)
        for name in ("href", "src", "action"):
            for target in {each.get(name) for each in tree.iter()} - {None, "#main"}:
                assert not re.match(r"/|\w+:", str(target)), target
                # A form adds its fields to its action.
                seen.update({str(target)} if name != "action" else ())
    for target in seen - {"metrics", "audit.html", "audit-start"}:
        answer = await client.get(f"/{target.removeprefix('./')}")
        assert answer.status_code == 200, target


@pytest.mark.parametrize(
    ("link", "status", "error"),
    [
        ("/miners?unknown=1", 400, "InvalidInput"),
        ("/miners?seconds=-1", 400, "InvalidInput"),
        ("/miners?seconds=nan", 400, "InvalidInput"),
        ("/miners?seconds=30", 400, "InvalidInput"),
        ("/miners?executor_class=a&executor_class=b", 400, "InvalidInput"),
        (f"/miners?executor_class={GPU}&seconds=9999", 400, "InvalidInput"),
        ("/miner", 400, "InvalidInput"),
        (f"/miner?hotkey={'5' * 300}", 400, "InvalidInput"),
        ("/reservations?status=lost", 400, "InvalidInput"),
        ("/reservations?limit=1001", 400, "InvalidInput"),
        ("/reservations?limit=%D9%A1", 400, "InvalidInput"),
        ("/reservations?after=x", 400, "InvalidInput"),
        ("/reservations?reserved_from=2024-01-01", 400, "InvalidInput"),
        ("/reservations.csv?status=lost", 400, "InvalidInput"),
        ("/reservation?id=1", 404, "ReservationNotFound"),
        ("/reservation?job=nobody", 404, "ReservationNotFound"),
        ("/reservation", 400, "InvalidInput"),
        ("/events?before=0", 400, "InvalidInput"),
        ("/events-live?after=999999", 400, "PositionOutOfRange"),
        ("/?position=999999", 400, "PositionOutOfRange"),
        ("/?position=1&block=2", 400, "InvalidInput"),
        ("/?time=2023-01-01T00:00:00Z", 400, "PositionOutOfRange"),
        ("/?format=xml", 400, "InvalidInput"),
        ("/nothing", 404, "HTTPException"),
        ("/audit.html", 404, "HTTPException"),
    ],
)
async def test_errors_are_pages_with_their_name(client: httpx.AsyncClient, link: str, status: int, error: str) -> None:
    """A wrong request gets a page with the product's error name; as JSON, the document that `--json` writes."""
    answer = await client.get(link)
    assert answer.status_code == status, answer.text
    assert error in words(parsed(answer.text))
    if "format=" not in link:
        document = (await client.get(f"{link}{'&' if '?' in link else '?'}format=json")).json()
        assert document["error"]["type"] == error
        assert document["error"].keys() == {"type", "message", "fields"}


async def test_only_reading_is_possible(client: httpx.AsyncClient, filled: tuple[str, Ids]) -> None:
    """Every path refuses every method but GET and HEAD, and a HEAD has no body and ends."""
    paths = [*links(filled[1]).values(), *(f"/{each.path}" for each in STREAMS), "/healthz", "/nothing"]
    for path in paths:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        async with asyncio.timeout(10):
            assert (await client.head(path)).content == b""


async def test_headers_restrict_the_browser(client: httpx.AsyncClient, filled: tuple[str, Ids]) -> None:
    """Every answer, errors and downloads included, has the policy: nothing inline, no other host, no frame."""
    for path in [*links(filled[1]).values(), "/reservations.csv", "/static/live.js", "/nothing", "/miners?x=1"]:
        headers = (await client.get(path)).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert {"default-src 'none'", "frame-ancestors 'none'"} <= {each.strip() for each in policy.split(";")}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    page = (await client.get("/")).text
    assert not re.search(r'style="|<style|\son\w+="', page)


async def test_a_name_of_another_site_is_refused(filled: tuple[str, Ids]) -> None:
    """On loopback a request must ask for this host, whatever its port.

    Catches DNS rebinding: the page of another site reads the ledger through its own name, which it points to 127.0.0.1.
    """
    ledger = Allowance.open(filled[0], validator_ss58=VALIDATOR, read_only=True)
    async with ledger, client_of(app(ledger, allowed_hosts=["127.0.0.1", "localhost", "::1"])) as client:
        for host in ("127.0.0.1:8377", "LOCALHOST", "[::1]:8377"):
            assert (await client.get("/", headers={"Host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80@localhost.evil", "[::1", ""):
            answer = await client.get("/events.json", headers={"Host": host})
            assert (answer.status_code, answer.headers["content-type"]) == (421, "text/plain; charset=utf-8")


async def test_passwords_are_never_shown(postgres_url: str) -> None:
    """No page shows the password of the database, also if the database is gone."""
    url = postgres_url.replace("@", ":pass-word@", 1)  # The server trusts everybody, and ignores it.
    await fill(postgres_url)
    async with (
        Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger,
        client_of(app(ledger)) as client,
    ):
        for path in ("/", "/overview.json", "/healthz", "/settings", "/nothing"):
            assert "pass-word" not in (await client.get(path)).text
    gone = Allowance.open("postgresql://somebody:pass-word@127.0.0.1:1/none", validator_ss58=VALIDATOR, read_only=True)
    async with client_of(app(gone)) as client:
        for path in ("/", "/overview.json", "/healthz"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "StorageUnavailable" in answer.text
            assert "pass-word" not in answer.text


async def test_the_pages_can_be_mounted_under_any_prefix(filled: tuple[str, Ids]) -> None:
    """In somebody's FastAPI application every link, form, style and script stays below the prefix."""
    host = pytest.importorskip("fastapi").FastAPI()
    async with Allowance.open(filled[0], validator_ss58=VALIDATOR) as ledger:
        host.mount("/internal/ledger", app(ledger))
        async with client_of(host) as client:
            first = await client.get("/internal/ledger", follow_redirects=True)
            assert first.url.path == "/internal/ledger/"
            for target in ("miners", "static/style.css", "overview.json", "healthz"):
                assert (await client.get(first.url.join(target))).status_code == 200
            for each in parsed(first.text).iter("a"):
                assert first.url.join(each.get("href", "")).path.startswith("/internal/ledger/")
            started = await client.get(first.url.join("audit-start"))
            assert first.url.join(started.headers["location"]).path == "/internal/ledger/audit"


async def test_several_ledgers_have_a_prefix_each(tmp_path: Path, filled: tuple[str, Ids]) -> None:
    """Several ledgers have a list, and pages of their own that cannot be confused, whatever the validators' names."""
    strange = "../5Strange?"
    other_url = new_database("sqlite", tmp_path)
    async with (
        Allowance.open(filled[0], validator_ss58=VALIDATOR, read_only=True) as ours,
        Allowance.open(other_url, validator_ss58=strange) as other,
        client_of(app(ours, other)) as client,
    ):
        await other.head()
        index = parsed((await client.get("/")).text)
        targets = {"".join(each.itertext()): each.get("href") for each in index.iter("a")}
        assert targets[VALIDATOR] == f"{VALIDATOR}/"
        for validator in (VALIDATOR, strange):
            page = await client.get(f"/{targets[validator]}settings")
            assert validator in words(parsed(page.text))
        assert len((await client.get("/healthz")).json()["ledgers"]) == 2
        assert len((await client.get(f"/{VALIDATOR}/healthz")).json()["ledgers"]) == 1
    with pytest.raises(InvalidInput, match="at least one Allowance"):
        app()


async def test_reservations_can_be_downloaded_whole(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads have every matching reservation, page after page, in order, with all columns.

    Catches a download of the first page only, and a hotkey that a spreadsheet would run as a formula.
    """
    monkeypatch.setattr("routing.web.pages.reservations.DOWNLOADED_AT_ONCE", 2)
    shown = (await client.get("/reservations.json?limit=1000")).json()["items"]
    answer = await client.get("/reservations.csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="reservations.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [int(row["reservation_id"]) for row in rows] == [each["reservation_id"] for each in shown]
    assert [row["blocks"].split() for row in rows] == [list(map(str, each["blocks"])) for each in shown]
    assert set(rows[0]) == set(shown[0])
    jobs = [row["job_uuid"] for row in rows]
    assert f"'{FORMULA}" in jobs
    assert FORMULA not in jobs
    oldest = (await client.get("/reservations.jsonl?order=oldest")).text.splitlines()
    assert [json.loads(line)["reservation_id"] for line in oldest] == [each["reservation_id"] for each in shown][::-1]


async def test_long_lists_go_on_with_a_link(client: httpx.AsyncClient) -> None:
    """The links to the next page lead through all reservations and all events, each once."""
    for first, key in (("/reservations.json?limit=2", "after"), ("/events.json?limit=7", "before")):
        link, found = first, []
        while True:
            page = (await client.get(link)).json()
            found += [each.get("reservation_id") if key == "after" else each["position"] for each in page["items"]]
            if page["next"] is None or len(page["items"]) < 2:
                break
            link = f"{first}&{key}={quote(str(page['next']))}"
        assert len(found) == len(set(found))
        assert sorted(found, reverse=True) == found
        assert len(found) >= (6 if key == "after" else 50)


async def test_health_is_200_or_503(client: httpx.AsyncClient, filled: tuple[str, Ids]) -> None:
    """`/healthz` fails by the ledger's own problems and by the given limits; it names what is exceeded."""
    well = await client.get("/healthz?max_block_age=3600&max_lag=1000000&max_overdue=0")
    assert (well.status_code, well.json()["status"]) == (200, "ok")
    for limit in ("max_block_age=0", "max_lag=0", "max_unverified=10"):
        failing = await client.get(f"/healthz?{limit}")
        assert (failing.status_code, failing.json()["status"]) == (503, "failing")
        assert len(failing.json()["ledgers"][0]["failures"]) == 1
    assert (await client.get("/healthz?max_lag=many")).status_code == 400


async def test_metrics_are_served(client: httpx.AsyncClient) -> None:
    """`/metrics` is in the text format of Prometheus, and has the ledger's gauges."""
    parser = pytest.importorskip("prometheus_client.parser")
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    names = {family.name for family in parser.text_string_to_metric_families(answer.text)}
    assert "allowance_projection_lag_events" in names


@pytest.mark.slow
async def test_the_audit_runs_in_another_process(client: httpx.AsyncClient) -> None:
    """An audit is started by a link, runs beside the pages, and its report is a page, a document and a file."""
    assert (await client.get("/audit.json")).json() == {"progress": None, "failure": None, "report": None}
    started = await client.get("/audit-start")
    assert (started.status_code, started.headers["location"]) == (303, "audit")
    assert (await client.get("/audit.json")).json()["progress"] is not None
    messages = (await client.get("/audit-live")).text  # It ends with the audit.
    assert messages.endswith("event: end\ndata: {}\n\n")
    document = (await client.get("/audit.json")).json()
    assert (document["progress"], document["failure"]) == (None, None)
    assert document["report"]["findings_count"] == 0
    assert document["report"]["first_recorded_at"] < document["report"]["last_recorded_at"]
    assert "No finding in" in words(parsed((await client.get("/audit")).text))
    file = await client.get("/audit.html")
    assert "style-src 'sha256-" in file.headers["content-security-policy"]
    assert parsed(file.text).find("head/title") is not None


async def test_a_ledger_in_memory_is_audited_too() -> None:
    """No other process can read a database in memory, so its audit runs in this one."""
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger, client_of(app(ledger)) as client:
        await ledger.head()
        await client.get("/audit-start")
        await client.get("/audit-live")
        assert (await client.get("/audit.json")).json()["report"]["findings_count"] == 0


async def test_an_audit_that_fails_says_why(filled: tuple[str, Ids], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot audit ends with the error, which the page shows; another audit can be started."""
    async with Allowance.open(filled[0], validator_ss58=VALIDATOR, read_only=True) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(type(ledger), "database_url", "sqlite:////no/such/ledger.db")
            async with client_of(app(ledger)) as client:
                await client.get("/audit-start")
                await client.get("/audit-live")
                failure = (await client.get("/audit.json")).json()["failure"]
                assert failure["type"] == "StorageUnavailable"
                assert "the process of the audit ended" not in failure["message"]
                assert "The audit failed" in words(parsed((await client.get("/audit")).text))


async def test_views_of_the_past_are_kept_but_few(filled: tuple[str, Ids]) -> None:
    """The next page at a moment uses the state that the page before it folded; only the last moments are kept.

    Catches a fold for every page, and a visitor who fills the memory with states.
    """
    async with Allowance.open(filled[0], validator_ss58=VALIDATOR, read_only=True) as ledger:
        source = Source(ledger)
        views = [source.at({"position": position}) for position in range(1, 10)]
        assert source.at({"position": 9}) is views[8]
        assert source.at({"position": 6}) is views[5]
        assert source.at({"position": 1}) is not views[0]
        assert len(source._pasts) == MOST_PASTS
        assert source.at({}) is ledger


@pytest.mark.parametrize("text", ["2024-01-01T12:00:00Z", "2024-01-01T13:00:00+01:00", "2024-01-01T13:00:00 01:00"])
def test_a_time_may_have_any_zone(text: str) -> None:
    """A `+` that nobody escaped arrives as a space, and means the same."""
    assert Parameters([("time", text)], ()).moment() == {"time": datetime(2024, 1, 1, 12, tzinfo=UTC)}


async def test_pages_show_what_is_known_of_miners(tmp_path: Path) -> None:
    """A miner's page has its exclusion, collateral, incidents and jobs elsewhere; the ranking marks who is not chosen.

    Catches a page that shows the ranking as if every miner in it could be chosen, and one that counts a job of another
    validator as none.
    """
    from tests.support.small import small_ledger

    async with small_ledger() as ledger, client_of(app(ledger)) as client:
        await ledger.exclude_miner("5Anna", SCRIPT)
        await ledger.change_settings(minimum_collateral_wei=10**18)
        await ledger.record_collateral({"5Anna": 10**18, "5Bert": 7, "5Carl": 10**19})
        await ledger.report_incident("5Carl", GPU, "failed", "theirs")
        now = (await ledger.overview()).at
        await ledger.record_job_elsewhere("5Carl", GPU, "another", now, 3600)
        ranking = words(parsed((await client.get(f"/miners?executor_class={GPU}")).text))
        assert "5Anna (excluded)" in ranking
        assert "5Bert (below the collateral)" in ranking
        assert "5Carl (" not in ranking
        anna, carl = [words(parsed((await client.get(f"/miner?hotkey={each}")).text)) for each in ("5Anna", "5Carl")]
        assert f"Excluded{SCRIPT}" in anna
        assert "10,000,000,000,000,000,000 wei" in carl
        assert f"Incidents that count1 × {GPU}" in carl
        assert f"Jobs of other validators1 × {GPU}" in carl
        document = (await client.get("/miner?hotkey=5Bert&format=json")).json()["miner_facts"]
        assert (document["unfit"], document["collateral_wei"]) == ("collateral", 7)
