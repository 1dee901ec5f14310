"""How many modules a call of the library passes through, and how often it goes from one to another."""

from __future__ import annotations

import json
from pathlib import Path

from .checkouts import Checkout, Figures

TRACED = Path(__file__).with_name("traced.py")


def figures(checkout: Checkout) -> Figures:
    """Trace a pick, a block and a page of history on a small SQLite ledger."""
    counts: dict[str, list[int]] = json.loads(checkout.run(str(TRACED)))
    return {f"{name}: modules, switches": f"{modules}, {switches}" for name, (modules, switches) in counts.items()}
