"""The list of several ledgers, and the prefix of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ledger.values import instant
from routing.texts import counted, time_text

from .components import anchor
from .layout import document
from .parts.markup import NUMBER, STACKED, element, table, text

if TYPE_CHECKING:
    from .visit import Source


def prefixes(sources: Sequence[Source]) -> dict[str, Source]:
    """Return the sources by the prefix of their pages: the validator's hotkey, if it can be a part of a path."""
    return {_prefix(source.ledger.validator_ss58, number): source for number, source in enumerate(sources, start=1)}


def _prefix(validator_ss58: str, number: int) -> str:
    return validator_ss58 if re.fullmatch(r"\w+", validator_ss58, re.ASCII) else f"ledger-{number}"


async def index_page(named: Mapping[str, Source]) -> str:
    """Return the page that links to the pages of every ledger."""
    rows = []
    for prefix, source in named.items():
        head = await source.ledger.head()
        link = anchor(f"{prefix}/", text(source.ledger.validator_ss58))
        rows.append((link, f"{head.position:,}", time_text(instant(head.recorded_at_ns))))
    headers = ("Validator", "Events", "Last event at, UTC")
    listed = table("Ledgers", headers, rows, ("", NUMBER, "fixed"), of=STACKED)
    sentence = element("p", f"{counted(len(named), 'ledger')}, one of each validator.")
    main = element("main", element("h1", "Ledgers"), sentence, listed, id="main", tabindex="-1")
    top = element("div", element("a", "Allowance ledger", href="./", class_="brand"))
    return document("Ledgers", element("header", top, class_="top"), main)
