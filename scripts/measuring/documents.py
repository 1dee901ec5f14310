"""The size of the README."""

from __future__ import annotations

from .checkouts import Checkout, Figures


def figures(checkout: Checkout) -> Figures:
    """Count the README's lines, and its words as spaces separate them."""
    text = (checkout.directory / "README.md").read_text(encoding="utf-8")
    return {"README: lines, words": f"{len(text.splitlines())}, {len(text.split()):,}"}
