"""The miners: all that are registered, or the ranking for a job as the router sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ledger.errors import InvalidInput, NotEnoughAllowanceException
from routing.documents import as_fields, candidate_document, miner_document
from routing.texts import counted, percent_text, seconds_text
from routing.web.components import amount, anchor, empty, field, form, hidden, miner_link
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text, void
from routing.web.visit import Answer, Visit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routing import Candidate, Miner, Workload

PARAMETERS = ("executor_class", "seconds", "job_start_block", "page")
PAGE_MINERS = 250
MOST_PAGES = 1_000_000
T = TypeVar("T")

UNFIT = {"excluded": " (excluded)", "collateral": " (below the collateral)"}
LEAST_SECONDS = 1e-9
"""The amount without which no miner is a candidate; it stands for one that was not given."""


async def miners(visit: Visit) -> Answer:
    """Return the ranking of a class, for an amount if one is given; without a class, the registered miners."""
    executor_class, seconds = visit.parameters.text("executor_class"), visit.parameters.seconds("seconds")
    if executor_class is not None:
        return await _ranking(visit, executor_class, seconds)
    if seconds is not None:
        raise InvalidInput("executor_class", None, "given if seconds are given")
    return await _registered(visit)


async def _ranking(visit: Visit, executor_class: str, seconds: float | None) -> Answer:
    newest = await visit.ledger.current_block()
    start = visit.parameters.whole("job_start_block") or newest or 1
    refusal: NotEnoughAllowanceException | None = None
    candidates: list[Candidate] = []
    try:
        candidates = await visit.ledger.find_miners(seconds or LEAST_SECONDS, executor_class, start)
    except NotEnoughAllowanceException as refused:
        refusal = refused
    workload = await visit.ledger.workload(executor_class)
    unfit = {each.miner_ss58: each.unfit for each in await visit.ledger.miner_records() if each.unfit}
    classes = await visit.ledger.executor_classes()
    ranked = list(enumerate(candidates, start=1))
    shown, number = _page_of(visit, ranked)
    document = {
        "items": [{**candidate_document(*each), "executor_class": executor_class} for each in ranked],
        "job_start_block": start,
        "workload": as_fields(workload),
        "unfit": unfit,
        "refusal": None if refusal is None else {"message": str(refusal), **refusal.to_dict()},
    }

    def body() -> Markup:
        if refusal is not None:
            return joined((_form(visit, classes), _refusal(visit, refusal)))
        amount_text = "allowance" if seconds is None else f"at least {seconds_text(seconds)}"
        explanation = (
            f"{counted(len(ranked), 'miner')} of {executor_class} with {amount_text} free for a job that starts at"
            f" block {start:,}, best first. The router skips busy miners, and tries miners with equal earliest block"
            " and share in an order that it draws for each job. If the setting routing_order is reliability, it draws"
            " all miners in another order."
        )
        if unfit:
            explanation += " It never chooses a miner that is excluded, or below the required collateral."
        rows = [_candidate_row(visit, rank, each, workload, unfit) for rank, each in shown]
        headers = (
            "Rank",
            "Miner",
            "Earliest block",
            "Free, s",
            "Granted, s",
            "Free",
            "Running",
            "Executors",
            "Version",
        )
        ranking = table("Ranking", headers, rows, (NUMBER, "", *[NUMBER] * 7), of=STACKED)
        return joined((_form(visit, classes), element("p", explanation), ranking, _pages(visit, number, len(ranked))))

    return Answer("Miners", document, body)


async def _registered(visit: Visit) -> Answer:
    manifests = await visit.ledger.manifests()
    registered = await visit.ledger.miners()
    classes = await visit.ledger.executor_classes()
    shown, number = _page_of(visit, registered)
    document = {
        "items": [{**miner_document(each), "executors": manifests.get(each.hotkey_ss58, {})} for each in registered]
    }

    def body() -> Markup:
        if not registered:
            return joined((_form(visit, classes), _nobody()))
        rows = (
            (miner_link(visit, each.hotkey_ss58), *_axon(each), _executors(manifests.get(each.hotkey_ss58, {})))
            for each in shown
        )
        listed = table("Miners", ("Miner", "Address", "Port", "Executors"), rows, ("", "", NUMBER), of=STACKED)
        sentence = (
            f"{counted(len(registered), 'miner')} registered at the newest block. Give a class, and the amount that a"
            " job needs, for the ranking."
        )
        return joined((_form(visit, classes), element("p", sentence), listed, _pages(visit, number, len(registered))))

    return Answer("Miners", document, body)


def _form(visit: Visit, classes: list[str]) -> Markup:
    value = visit.parameters.text
    moment = {name: value for name, value in visit.parameters.given().items() if name not in PARAMETERS}
    return form(
        "miners",
        hidden(moment),
        field("Executor class", "executor_class", value("executor_class"), list="classes"),
        field(
            "Amount, executor-seconds", "seconds", value("seconds"), half=True, inputmode="decimal", placeholder="30"
        ),
        field("Job starts at block", "job_start_block", value("job_start_block"), half=True, inputmode="numeric"),
        element("datalist", *(void("option", value=name) for name in classes), id="classes"),
        element("button", "Rank"),
        label="Ranking for a job",
    )


def _refusal(visit: Visit, refusal: NotEnoughAllowanceException) -> Markup:
    sentences = [element("p", element("strong", "No miner qualifies: "), text(str(refusal)))]
    if best := refusal.highest_available_allowance_ss58:
        sentences.append(empty("Most is free on ", anchor(visit.link("miner", hotkey=best), text(best)), "."))
    return joined(sentences)


def _nobody() -> Markup:
    return empty(
        "No miner is registered. Record blocks with their miners: ",
        element("code", "allowance import FACTS.jsonl"),
        ".",
    )


def _candidate_row(
    visit: Visit, rank: int, candidate: Candidate, workload: dict[str, Workload], unfit: Mapping[str, str]
) -> tuple[str, ...]:
    work = workload.get(candidate.hotkey_ss58)
    busy = work is not None and work.running >= work.executors
    reason = UNFIT.get(unfit.get(candidate.hotkey_ss58, ""), "")
    return (
        f"{rank:,}",
        joined((miner_link(visit, candidate.hotkey_ss58), reason)),
        f"{candidate.earliest_block:,}",
        amount(candidate.available_seconds),
        amount(candidate.total_seconds),
        percent_text(candidate.available_seconds, candidate.total_seconds),
        "-" if work is None else f"{work.running:,}{' (busy)' if busy else ''}",
        "-" if work is None else f"{work.executors:,}",
        f"{candidate.stream_version:,}",
    )


def _axon(miner: Miner) -> tuple[str, str]:
    return text(miner.address), str(miner.port)


def _executors(counts: dict[str, int]) -> Markup:
    return text(", ".join(f"{count:,} × {name}" for name, count in sorted(counts.items())) or "-")


def _page_of(visit: Visit, items: list[T]) -> tuple[list[T], int]:
    """Return the items of the page that the visit asks for, and the page's number."""
    number = visit.parameters.whole("page", 1, MOST_PAGES) or 1
    return items[(number - 1) * PAGE_MINERS : number * PAGE_MINERS], number


def _pages(visit: Visit, number: int, count: int) -> Markup:
    last = max(1, -(-count // PAGE_MINERS))
    if last == 1:
        return Markup()
    links = []
    if number > 1:
        links.append(element("li", anchor(visit.parameters.same("miners", page=number - 1), "Previous page")))
    if number < last:
        links.append(element("li", anchor(visit.parameters.same("miners", page=number + 1), "Next page")))
    here = element("li", f"Page {number:,} of {last:,}")
    return element("nav", element("ul", here, *links, class_="links"), aria_label="Pages of the list")
