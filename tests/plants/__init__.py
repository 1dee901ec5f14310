"""Faults planted in logs, for each rule that an audit checks; what they must be found as.

A plant is told on an honest `Forged` log and breaks one rule there. Where breaking one breaks another with it, all are
named, so that nothing is found beside them.
"""

from . import endings, facts, reservations, routes, rows
from .plant import Plant

PLANTS: list[Plant] = [*rows.PLANTS, *facts.PLANTS, *reservations.PLANTS, *endings.PLANTS, *routes.PLANTS]

__all__ = ["PLANTS", "Plant"]
