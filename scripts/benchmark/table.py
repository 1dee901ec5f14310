"""Output of a run's figures: a table for people, which is Markdown too, and a JSON document for programs."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .figures import Figure, Report, Samples, Target
from .sizes import Sizes

HEADINGS = ("figure", "ours", "beside it", "ratio", "target", "met")
THOUSAND, HUNDRED, TEN = 1000, 100, 10


def text(report: Report, sizes: Sizes, seconds: float) -> str:
    """Return the table, with notes, skipped cases and the conditions of the run below it."""
    lines = [_row(figure) for figure in report.figures]
    widths = [max(len(line[column]) for line in (HEADINGS, *lines)) for column in range(len(HEADINGS))]
    rule = tuple("-" * width for width in widths)
    table = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in (HEADINGS, rule, *lines)]
    notes = [f"{figure.name}: {figure.note}." for figure in report.figures if figure.note]
    skipped = [f"Not measured: {each}." for each in report.skipped]
    about = (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} in {seconds:.0f} s with {_machine_text(report)}. Medians and ranges"
        f" of {sizes.repeat} interleaved rounds; {sizes.miners} miners, {sizes.validators} validators,"
        f" {sizes.classes} executor classes, {sizes.blocks:,} blocks."
    )
    return "\n".join([*table, "", *notes, *skipped, about])


def document(report: Report, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Return the figures with all samples."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "seconds_by_part": report.seconds,
        "machine": machine(),
        "versions": _versions(report),
        "sizes": asdict(sizes),
        "figures": [_fields(figure) for figure in report.figures],
        "skipped": report.skipped,
    }


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def _versions(report: Report) -> dict[str, str]:
    """Return the versions of the libraries and, if a case used it, of the PostgreSQL server."""
    versions = {name: version(name) for name in ("msgspec", "asyncpg")}
    with suppress(PackageNotFoundError):
        versions["eventsourcing"] = version("eventsourcing")
    return versions | report.versions


def _machine_text(report: Report) -> str:
    about = machine()
    versions = "".join(f", {name} {number}" for name, number in _versions(report).items())
    return (
        f"{about['cores']} × {about['cpu']}, {about['system']}, Python {about['python']},"
        f" SQLite {about['sqlite']}{versions}"
    )


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _fields(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "ours": _sample_fields(figure.ours),
        "beside": None if figure.beside is None else {"name": figure.beside.name, **_sample_fields(figure.beside)},
        "ratio": figure.ratio,
        "target": None if figure.target is None else asdict(figure.target),
        "met": figure.met,
        "note": figure.note,
    }


def _sample_fields(samples: Samples) -> dict[str, Any]:
    return {"median": samples.median, "low": samples.low, "high": samples.high, "samples": list(samples.values)}


def _row(figure: Figure) -> tuple[str, ...]:
    beside = "" if figure.beside is None else f"{figure.beside.name}: {_measured(figure.beside, figure.unit)}"
    return (
        figure.name,
        _measured(figure.ours, figure.unit),
        beside,
        "" if figure.ratio is None else _number(figure.ratio),
        "" if figure.target is None else _target(figure.target, figure.unit),
        {True: "yes", False: "no", None: ""}[figure.met],
    )


def _measured(samples: Samples, unit: str) -> str:
    middle = f"{_number(samples.median)} {unit}"
    if len(samples.values) == 1:
        return middle
    return f"{middle} ({_number(samples.low)}–{_number(samples.high)})"


def _target(target: Target, unit: str) -> str:
    sign = "≤" if target.most else "≥"
    return f"ratio {sign} {target.bound:g}" if target.of == "ratio" else f"{sign} {target.bound:,g} {unit}"


def _number(value: float) -> str:
    """Format three digits, or all digits before the point."""
    size = abs(value)
    if size >= HUNDRED:
        return f"{value:,.0f}"
    if size >= TEN:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"
