"""How long the command line and the import take, compared with an empty program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from .checkouts import Checkout, Figures

PROGRAMS = {
    "python -c pass": ("-c", "pass"),
    "import routing": ("-c", "import routing"),
    "allowance --help": ("-m", "routing.cli", "--help"),
}


def figures(checkouts: Sequence[Checkout], runs: int) -> list[Figures]:
    """Time each program on each checkout; return the medians in ms.

    The runs are interleaved, so that a change of the machine's load hits all programs alike.
    """
    times_ms: list[dict[str, list[float]]] = [{name: [] for name in PROGRAMS} for _ in checkouts]
    for run in range(runs + 1):
        for checkout, samples in zip(checkouts, times_ms, strict=True):
            for name, arguments in PROGRAMS.items():
                elapsed_ms = _run_ms(checkout, arguments)
                if run > 0:  # The first run compiles the modules.
                    samples[name].append(elapsed_ms)
    return [{f"{name}, ms": f"{median(values):.0f}" for name, values in samples.items()} for samples in times_ms]


def _run_ms(checkout: Checkout, arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    checkout.run(*arguments)
    return (time.perf_counter() - started) * 1000
