"""Faults planted in logs, for each rule that an audit checks; what they must be found as.

A plant is told on an honest `LogBuilder` log and breaks one rule there. If that breaks another
rule too, all are named, so that nothing is found beside them.
"""

from . import facts, reservations, routes, rows, settlements
from .fault_case import FaultCase

FAULT_CASES: list[FaultCase] = [
    *rows.FAULT_CASES,
    *facts.FAULT_CASES,
    *reservations.FAULT_CASES,
    *settlements.FAULT_CASES,
    *routes.FAULT_CASES,
]

__all__ = ["FAULT_CASES", "FaultCase"]
