"""One miner: its address, its allowance by block in each class, and its newest reservations."""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum
from typing import TYPE_CHECKING, Any

from ledger.errors import InvalidInput
from routing.documents import as_fields
from routing.texts import counted, percent_text, time_text
from routing.web.audit_page.usage import figure
from routing.web.components import amount, anchor, empty, facts, reservations_table
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text
from routing.web.visit import Answer, Crumb, Visit

if TYPE_CHECKING:
    from projections import AccountUsage, BlockUsage
    from routing import Miner, MinerRecord, Reservation

PARAMETERS = ("hotkey",)
SHOWN_RESERVATIONS = 20


async def miner(visit: Visit) -> Answer:
    """Return a miner's accounts with their allowance by block. A hotkey that the ledger has never seen has none."""
    hotkey_ss58 = visit.parameters.needed_text("hotkey")
    if len(hotkey_ss58) > LONGEST_HOTKEY:
        raise InvalidInput("hotkey", hotkey_ss58, f"at most {LONGEST_HOTKEY} characters")
    ledger = visit.ledger
    registered = next((each for each in await ledger.miners() if each.hotkey_ss58 == hotkey_ss58), None)
    executors = (await ledger.manifests()).get(hotkey_ss58, {})
    by_block = await ledger.usage_by_block(hotkey_ss58)
    accounts = [_totals(each) for each in by_block.accounts]
    record = await ledger.miner_record(hotkey_ss58)
    page = await ledger.history(miner_ss58=hotkey_ss58, limit=SHOWN_RESERVATIONS)
    document = {
        "hotkey_ss58": hotkey_ss58,
        "registered": None if registered is None else as_fields(registered),
        "executors": executors,
        "accounts": accounts,
        "usage_by_block": as_fields(by_block),
        "miner_facts": as_fields(record),
    }
    return Answer(
        hotkey_ss58,
        document,
        lambda: joined(
            (
                _about(registered, executors, record),
                *_accounts(accounts, by_block),
                *_reservations(visit, hotkey_ss58, page.items, has_more=page.next is not None),
            )
        ),
        crumbs=(Crumb("Miners", visit.link("miners")),),
    )


LONGEST_HOTKEY = 128


def _about(registered: Miner | None, executors: dict[str, int], record: MinerRecord) -> Markup:
    address = "not registered at the newest block"
    if registered is not None:
        host = f"[{registered.address}]" if ":" in registered.address else registered.address
        address = f"{host}:{registered.port}"
    offered = joined(element("div", f"{count:,} × ", text(name)) for name, count in sorted(executors.items()))
    named = [("Address", text(address)), ("Executors in the newest manifests", offered or Markup("none"))]
    return facts([*named, *_known(record)])


def _known(record: MinerRecord) -> Iterator[tuple[str, Markup]]:
    """Yield the facts about the miner that count now."""
    if record.excluded:
        until = f" until {time_text(record.excluded_until)}" if record.excluded_until else ""
        yield "Excluded", joined((text(record.reason or ""), until))
    if record.collateral_wei is not None:
        below = ", below the required collateral" if record.unfit == "collateral" else ""
        yield "Collateral", text(f"{record.collateral_wei:,} wei{below}")
    for title, counts in (
        ("Incidents that count", record.incidents),
        ("Jobs of other validators", record.running_elsewhere),
    ):
        if counts:
            yield title, joined(element("div", f"{count:,} × ", text(name)) for name, count in counts.items())


def _totals(usage: AccountUsage) -> dict[str, Any]:
    """Return the sums of an account over the blocks of the window, in executor-seconds."""
    granted, spent, held, invalidated = map(fsum, (usage.granted, usage.spent, usage.held, usage.invalidated))
    return {
        "executor_class": usage.executor_class,
        "granted_seconds": granted,
        "spent_seconds": spent,
        "held_seconds": held,
        "invalidated_seconds": invalidated,
        "free_seconds": max(0.0, granted - spent - held - invalidated),
    }


def _accounts(accounts: list[dict[str, Any]], by_block: BlockUsage) -> list[Markup]:
    heading = element("h2", "Allowance by block")
    if not accounts:
        return [
            heading,
            empty("The ledger has no account of this miner: no manifest sync has named it with executors."),
        ]
    headers = ("Executor class", "Granted, s", "Spent, s", "Held, s", "Invalidated, s", "Free, s", "Free")
    explanation = (
        "The blocks in the window of a job that starts at the newest block. Their allowance is spent; or held by a"
        " reservation that no event has settled; or invalidated, because the miner's executors became fewer; or free."
    )
    charts = (figure(by_block.starts, each.executor_class, [each]) for each in by_block.accounts if by_block.starts)
    rows = (_row(each) for each in accounts)
    return [
        heading,
        element("p", explanation),
        table("Accounts", headers, rows, ("name", *[NUMBER] * 6), of=STACKED),
        *charts,
    ]


def _row(totals: dict[str, Any]) -> tuple[str, ...]:
    return (
        text(totals["executor_class"]),
        *(amount(totals[f"{name}_seconds"]) for name in ("granted", "spent", "held", "invalidated", "free")),
        percent_text(totals["free_seconds"], totals["granted_seconds"]),
    )


def _reservations(visit: Visit, hotkey_ss58: str, reservations: list[Reservation], *, has_more: bool) -> list[Markup]:
    heading = element("h2", "Reservations")
    if not reservations:
        return [heading, empty("No reservation has taken this miner's allowance.")]
    every = anchor(visit.link("reservations", miner=hotkey_ss58), "All reservations of this miner")
    shown = f"The newest {counted(len(reservations), 'reservation')}. " if has_more else ""
    listed = reservations_table(visit, reservations, "Newest reservations", with_miner=False)
    return [heading, element("p", shown, every), listed]
