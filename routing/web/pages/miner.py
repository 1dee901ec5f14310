"""One miner: its address, its allowance by block in each class, and its newest reservations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger.errors import InvalidInput
from routing.texts import counted, percent_text
from routing.web.audit_page.usage import figure
from routing.web.components import amount, anchor, empty, facts, reservations_table
from routing.web.documents import fields
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text
from routing.web.visit import Answer, Crumb, Visit

if TYPE_CHECKING:
    from projections import BlockUsage
    from routing import Miner, Reservation, Usage

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
    accounts = [await ledger.why(hotkey_ss58, each.executor_class) for each in by_block.accounts]
    page = await ledger.history(miner_ss58=hotkey_ss58, limit=SHOWN_RESERVATIONS)
    document = {
        "hotkey_ss58": hotkey_ss58,
        "registered": None if registered is None else fields(registered),
        "executors": executors,
        "accounts": [fields(each) for each in accounts],
        "usage_by_block": fields(by_block),
    }
    return Answer(
        hotkey_ss58,
        document,
        lambda: joined(
            (
                _about(registered, executors),
                *_accounts(visit, accounts, by_block),
                *_reservations(visit, hotkey_ss58, page.items, has_more=page.next is not None),
            )
        ),
        crumbs=(Crumb("Miners", visit.link("miners")),),
    )


LONGEST_HOTKEY = 128


def _about(registered: Miner | None, executors: dict[str, int]) -> Markup:
    address = "not registered at the newest block"
    if registered is not None:
        host = f"[{registered.address}]" if ":" in registered.address else registered.address
        address = f"{host}:{registered.port}"
    offered = joined(element("div", f"{count:,} × ", text(name)) for name, count in sorted(executors.items()))
    return facts([("Address", text(address)), ("Executors in the newest manifests", offered or Markup("none"))])


def _accounts(visit: Visit, accounts: list[Usage], by_block: BlockUsage) -> list[Markup]:
    heading = element("h2", "Allowance by block")
    if not accounts:
        return [
            heading,
            empty("The ledger has no account of this miner: no manifest sync has named it with executors."),
        ]
    headers = ("Executor class", "Blocks from", "Granted, s", "Spent, s", "Held, s", "Free, s", "Free")
    rows = (_row(each) for each in accounts)
    explanation = (
        "The usable blocks for a job that starts at the newest block. Invalidated blocks in the charts are those that a"
        " drop of executors has taken away."
    )
    charts = (figure(by_block.starts, each.executor_class, [each]) for each in by_block.accounts if by_block.starts)
    return [
        heading,
        element("p", explanation),
        table("Accounts", headers, rows, ("name", *[NUMBER] * 6), of=STACKED),
        *charts,
    ]


def _row(usage: Usage) -> tuple[str, ...]:
    return (
        text(usage.executor_class),
        f"{usage.first_block:,}",
        amount(usage.total_seconds),
        amount(usage.total_seconds - usage.unspent_seconds),
        amount(max(0.0, usage.unspent_seconds - usage.available_seconds)),
        amount(usage.available_seconds),
        percent_text(usage.available_seconds, usage.total_seconds),
    )


def _reservations(visit: Visit, hotkey_ss58: str, reservations: list[Reservation], *, has_more: bool) -> list[Markup]:
    heading = element("h2", "Reservations")
    if not reservations:
        return [heading, empty("No reservation has taken this miner's allowance.")]
    every = anchor(visit.link("reservations", miner=hotkey_ss58), "All reservations of this miner")
    shown = f"The newest {counted(len(reservations), 'reservation')}. " if has_more else ""
    listed = reservations_table(visit, reservations, "Newest reservations", with_miner=False)
    return [heading, element("p", shown, every), listed]
