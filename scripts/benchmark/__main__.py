"""The command: `scripts/bench --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib import import_module

from . import table
from .figures import Report
from .sizes import QUICK, Sizes
from .workspace import Workspace

Case = Callable[[Workspace, Report], Awaitable[None]]

CASES = {
    "start": "starting:starting",
    "rebuild": "replaying:rebuilding",
    "audit": "replaying:auditing",
    "explain": "replaying:explaining",
    "open": "replaying:opening",
    "open-miners": "networks:opening",
    "pages": "replaying:paging",
    "log": "picking:longer_log",
    "memory": "replaying:memory",
    "rows": "constrained:rows",
    "bytes": "constrained:stored",
    "import": "feeding:importing",
    "import-miners": "networks:importing",
    "changes": "feeding:changed_block",
    "sync": "feeding:manifest_sync",
    "pick": "picking:one_caller",
    "reader": "picking:beside_a_reader",
    "serving": "serving:pages",
    "callers": "picking:many_callers",
    "metrics": "metered:with_metrics",
    "facts": "with_facts:in_use",
    "library": "library:on_sqlite",
    "callers-postgres": "sharing:one_process",
    "processes": "sharing:processes",
    "contention": "contending:both_engines",
    "ledgers": "many_ledgers:layouts",
    "bytes-postgres": "replicated:stored",
    "standbys": "replicated:picks_by_standbys",
    "library-postgres": "library:on_postgres",
    "miners": "picking:more_miners",
    "first-picks": "networks:after_a_block",
    "block": "feeding:unchanged_block",
    "row-per-grant": "row_per_grant:against_row_per_grant",
}
"""The cases in the order of a run. Cases that only read a ledger come before those that change it."""

INTERRUPTED = 130
"""The exit code after ^C: 128 and the number of SIGINT, as shells expect."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected cases and print them; return 1 if a case failed."""
    options = _parser().parse_args(arguments)
    sizes = _sizes(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.perf_counter()
    try:
        report, failed = asyncio.run(_measure(options.only or list(CASES), sizes))
    except KeyboardInterrupt:
        return INTERRUPTED
    seconds = time.perf_counter() - started
    if options.json:
        print(json.dumps(table.document(report, sizes, seconds), ensure_ascii=False, indent=1))
    else:
        print(table.text(report, sizes, seconds))
    return int(failed)


async def _measure(names: Sequence[str], sizes: Sizes) -> tuple[Report, bool]:
    report, failed = Report(), False
    workspace = Workspace(sizes, _show_progress)
    try:
        for name in CASES:
            if name in names:
                started = time.perf_counter()
                failed |= not await _measure_case(name, workspace, report)
                report.seconds[name] = round(time.perf_counter() - started, 1)
    finally:
        _show_progress("cleaning up")
        workspace.close()
        _show_progress("")
    return report, failed


async def _measure_case(name: str, workspace: Workspace, report: Report) -> bool:
    """Measure one case; return False if it failed. The report then says why, and the other cases continue."""
    _show_progress(f"measuring: {name}")
    module, _, function = CASES[name].partition(":")
    try:
        case: Case = getattr(import_module(f"{__package__}.{module}"), function)
        await case(workspace, report)
    except ImportError as missing:
        report.skip(name, f"{missing.name or missing} is not installed")
    except Exception as failure:
        report.skip(name, f"{type(failure).__name__}: {failure}")
        return False
    return True


def _show_progress(text: str) -> None:
    """Show the current step on a terminal; write nothing into a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _sizes(options: argparse.Namespace) -> Sizes:
    names = ("miners", "blocks", "repeat", "log", "events", "contended_seconds")
    chosen = {name: value for name in names if (value := getattr(options, name))}
    sizes = replace(QUICK if options.quick else Sizes(), **chosen)
    # A smaller network has executors for fewer callers: with more of them, all miners would be busy.
    return replace(
        sizes, callers=max(sizes.processes, min(sizes.callers, Sizes.callers * sizes.miners // Sizes.miners))
    )


def _parser() -> argparse.ArgumentParser:
    sizes = Sizes()
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures how fast the ledger is, compared with bare rows of the same size, with the design of a"
        " row per grant, and with the library eventsourcing. Works in a temporary directory of the checkout, and needs"
        " no server. Run it on a machine that does nothing else: a full run takes 10 to 20 minutes on two processors,"
        " --quick about one.",
    )
    for name, what in (
        ("miners", "in the network"),
        ("blocks", "of the chain"),
        ("repeat", "rounds in which every figure is measured"),
        ("log", "events of the log of most figures"),
        ("events", "in the longest log"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default: {getattr(sizes, name):,})")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        dest="contended_seconds",
        help=f"for which sixteen processes contend on each engine (default: {sizes.contended_seconds:g})",
    )
    parser.add_argument("--only", action="append", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: the run only shows that everything works")
    parser.add_argument("--json", action="store_true", help="one document, with all samples")
    return parser


if __name__ == "__main__":
    sys.exit(main())
