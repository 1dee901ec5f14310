"""One reservation: its life, its blocks, and why the router chose its miner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ledger.codec import reservation_position
from ledger.errors import InvalidInput
from routing.documents import as_fields
from routing.texts import block_ranges, counted, percent_text, seconds_text, time_text
from routing.web.components import amount, anchor, badge, empty, facts, miner_link
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text
from routing.web.visit import Answer, Crumb, Visit

if TYPE_CHECKING:
    from routing import Considered, Explanation, Reservation

PARAMETERS = ("id", "job", "candidates")
SHOWN_CANDIDATES = 25
MOST_CANDIDATES = 1_000_000


async def reservation(visit: Visit) -> Answer:
    """Return the reservation with an id, or the newest one of a job, with the choice that made it."""
    found = await _find(visit)
    explanation = await visit.ledger.explain_reservation(found.reservation_id)
    document = {"reservation": as_fields(found), "explanation": as_fields(explanation)}
    return Answer(
        f"Reservation {found.reservation_id}",
        document,
        lambda: joined((_life(visit, found), _blocks(found), *_choice(visit, explanation))),
        crumbs=(Crumb("Reservations", visit.link("reservations")),),
    )


async def _find(visit: Visit) -> Reservation:
    reservation_id, job = visit.parameters.whole("id"), visit.parameters.text("job")
    if (reservation_id is None) == (job is None):
        raise InvalidInput("id", reservation_id, "given, or job instead of it")
    if job is not None:
        return await visit.ledger.reservation_for_job(job)
    return await visit.ledger.reservation(reservation_id or 0)


def _life(visit: Visit, found: Reservation) -> Markup:
    position = reservation_position(found.reservation_id)
    return facts(
        [
            ("Status", badge(found.status)),
            ("Job", text(found.job_uuid) if found.job_uuid else "none"),
            ("Miner", miner_link(visit, found.miner_ss58)),
            ("Executor class", text(found.executor_class)),
            ("Amount", seconds_text(found.allowance_seconds)),
            ("Reserved at", _with_position(visit, time_text(found.reserved_at), position)),
            ("Due at", time_text(found.expires_at)),
            _settlement(found),
        ]
    )


def _settlement(found: Reservation) -> tuple[str, str]:
    if found.settled_at is None:
        return "Settled at", "not yet"
    return f"{found.status.capitalize()} at", time_text(found.settled_at)


def _with_position(visit: Visit, shown: str, position: int) -> Markup:
    event = anchor(visit.link("events", before=position + 1), f"event {position:,}")
    before = anchor(visit.parameters.link("./", position=position - 1, block=None, time=None), "the ledger just before")
    return joined((shown, ": ", event, ", ", before)) if position > 1 else joined((shown, ": ", event))


def _blocks(found: Reservation) -> Markup:
    explanation = f"{counted(len(found.blocks), 'block')}, for a job that starts at block {found.job_start_block:,}."
    return joined((element("h2", "Blocks"), element("p", explanation), element("p", block_ranges(found.blocks))))


def _choice(visit: Visit, explanation: Explanation) -> Iterator[Markup]:
    yield element("h2", "Why this miner")
    if not explanation.routed:
        yield empty("The allowance was reserved without a router, so there was no choice to explain.")
        return
    candidates = explanation.candidates
    most = visit.parameters.whole("candidates", 1, MOST_CANDIDATES) or SHOWN_CANDIDATES
    yield element(
        "p",
        f"{counted(len(candidates), 'candidate')} in the order in which the job tried them, computed again from the log"
        f" up to position {explanation.position:,}, at {time_text(explanation.decided_at)}.",
    )
    yield from _notes(explanation)
    headers = ("Tried", "Miner", "Verdict", "Earliest block", "Free, s", "Granted, s", "Free", "Running", "Executors")
    rows = (_row(visit, rank, each) for rank, each in enumerate(candidates[:most], start=1))
    yield table("Candidates", headers, rows, (NUMBER, "", "", *[NUMBER] * 6), of=STACKED)
    if len(candidates) > most:
        every = visit.parameters.same("reservation", candidates=len(candidates))
        yield element("p", anchor(every, f"Show all {len(candidates):,} candidates"))


def _notes(explanation: Explanation) -> Iterator[Markup]:
    if explanation.chosen_at is not None:
        yield empty(
            f"The miner was chosen at position {explanation.chosen_at:,}, as shown, before others appended to the log."
            " It still qualified at the claim, so the job stayed with it."
        )
    if explanation.kept:
        yield empty(
            "The miner was chosen at a position that an earlier release did not record. The candidates are those"
            " directly before the claim, and the choice is not proved."
        )


def _row(visit: Visit, rank: int, candidate: Considered) -> tuple[str, ...]:
    verdict = element("strong", candidate.verdict) if candidate.verdict == "claimed" else Markup(candidate.verdict)
    return (
        f"{rank:,}",
        miner_link(visit, candidate.hotkey_ss58),
        verdict,
        f"{candidate.earliest_block:,}",
        amount(candidate.available_seconds),
        amount(candidate.total_seconds),
        percent_text(candidate.share, 1.0),
        f"{candidate.running:,}",
        f"{candidate.executors:,}",
    )
