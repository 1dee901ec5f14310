"""The command: `scripts/measure --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import documents, doors, sources, starting, tracing
from .checkouts import Checkout, Figures

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print a table with a row for each figure, and a column for each checkout."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure",
        description="Measures the shipped code of this checkout: sizes of modules and functions, comments, public"
        " names, module switches of traced calls, time to start, and size of the README.",
    )
    parser.add_argument("before", nargs="?", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="starts that are timed (default: 15)")
    arguments = parser.parse_args()
    checkouts = [Checkout(ROOT)]
    if arguments.before is not None:
        checkouts.insert(0, Checkout(arguments.before))
    columns = [_static_figures(checkout) for checkout in checkouts]
    for column, figures in zip(columns, starting.figures(checkouts, arguments.runs), strict=True):
        column.update(figures)
    _print_table(["before", "after"][-len(columns) :], columns)


def _static_figures(checkout: Checkout) -> Figures:
    return {
        **sources.figures(checkout),
        **doors.figures(checkout),
        **tracing.figures(checkout),
        **documents.figures(checkout),
    }


def _print_table(titles: list[str], columns: list[Figures]) -> None:
    rows = [["figure", *titles]]
    for name in columns[-1]:
        rows.append([name, *(column.get(name, "") for column in columns)])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("| " + " | ".join(map(str.ljust, row, widths)) + " |")


if __name__ == "__main__":
    main()
