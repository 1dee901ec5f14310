"""Fault cases: for each rule that an audit checks, logs that break it, and the findings they must lead to.

A fault case adds one fault to an honest `LogBuilder` log. If the fault breaks other rules too, the case lists them all,
so that a test can require exactly these findings.
"""

from . import choices, clocks, corrections, facts, miner_facts, reservations, routes, rows, seals, settlements
from .fault_case import FaultCase

FAULT_CASES: list[FaultCase] = [
    *rows.FAULT_CASES,
    *facts.FAULT_CASES,
    *miner_facts.FAULT_CASES,
    *corrections.FAULT_CASES,
    *reservations.FAULT_CASES,
    *settlements.FAULT_CASES,
    *routes.FAULT_CASES,
    *choices.FAULT_CASES,
    *seals.FAULT_CASES,
    *clocks.FAULT_CASES,
]

__all__ = ["FAULT_CASES", "FaultCase"]
