"""Bugs planted on purpose: each breaks one thing, and the simulator must find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class PlantedBug(NamedTuple):
    """What it breaks, and the function that breaks it in this process."""

    what: str
    plant: Callable[[], None]


PLANTED: dict[str, PlantedBug] = {}
