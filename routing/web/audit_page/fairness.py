"""Who was favoured: how evenly the miners of each class were used, and those that chance does not explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routing.texts import flags_text, percent_text
from routing.web.parts.markup import NUMBER, Markup, element, joined, table, text

if TYPE_CHECKING:
    from routing import AuditReport, ClassFairness, MinerFairness

MOST_ROWS = 300
"""Rows of the table of miners: those with the largest differences from chance."""
CLASS_HEADERS = ("Executor class", "Miners", "Used", "Jain's index", "Gini", "Flagged")
MINER_HEADERS = (
    *("Miner", "Executor class", "Routed", "Kept", "By hand", "Imported", "Draws", "Wins", "Expected", "σ", "Given up"),
    *("Exclusions", "Incidents", "Used", "Flags"),
)
EXPLANATION = (
    "Wins are the routed jobs whose choice was repeated; expected are those that the draws among equal candidates"
    " should have given, and σ is the difference in standard deviations. A miner is flagged from 5 on, and if facts"
    " about other miners, jobs that were given up, or reservations by hand favoured it as clearly. A flag is no"
    " finding: ask who runs the ledger."
)


def fairness_section(report: AuditReport) -> Markup:
    """Return the tables of fairness and of origins; nothing if there is no account."""
    fairness = report.fairness
    if fairness is None or not fairness.miners:
        return Markup()
    flagged = [*fairness.flags, *map(flags_text, fairness.flagged)]
    notes = element("ul", *(element("li", text(each)) for each in flagged)) if flagged else ""
    numbers = [NUMBER] * 5
    classes = table(
        "Fairness by executor class",
        CLASS_HEADERS,
        (_class_row(each, fairness.miners) for each in fairness.classes),
        ("name", *numbers),
    )
    shown = sorted(fairness.miners, key=lambda each: (not each.flags, -abs(each.deviations)))[:MOST_ROWS]
    miners = table("Fairness by miner", MINER_HEADERS, map(_miner_row, shown), ("hotkey", "name", *[NUMBER] * 12))
    folded = element("details", element("summary", "Origins and chances of each miner"), miners)
    return element("section", element("h2", "Fairness"), element("p", EXPLANATION), joined((notes, classes, folded)))


def _class_row(each: ClassFairness, miners: list[MinerFairness]) -> tuple[str, ...]:
    flagged = sum(bool(one.flags) for one in miners if one.executor_class == each.executor_class)
    used = percent_text(each.used_seconds, each.granted_seconds)
    return text(each.executor_class), f"{each.miners:,}", used, f"{each.jain:.3f}", f"{each.gini:.3f}", f"{flagged:,}"


def _miner_row(each: MinerFairness) -> tuple[str, ...]:
    counts = (each.routed, each.kept, each.by_hand, each.imported, each.draws, each.wins)
    return (
        text(each.miner_ss58),
        text(each.executor_class),
        *(f"{count:,}" for count in counts),
        f"{each.expected_wins:,.1f}",
        f"{each.deviations:+.1f}",
        *(f"{count:,}" for count in (each.given_up, each.exclusions, each.incidents)),
        percent_text(each.used_seconds, each.granted_seconds),
        ", ".join(each.flags),
    )
