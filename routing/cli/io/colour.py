"""A few colours for people at a terminal, and none for anybody else."""

from __future__ import annotations

BOLD = "1"
DIM = "2"
GREEN = "32"
RED = "31"


def painted(text: str, colour: str, *, wanted: bool) -> str:
    """Puts a text into a colour where colours are wanted."""
    return f"\x1b[{colour}m{text}\x1b[0m" if wanted and text else text
