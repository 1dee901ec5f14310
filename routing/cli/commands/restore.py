"""`allowance restore`: a ledger made anew from an export, or from another database."""

from __future__ import annotations

import argparse

from ..command import Command
from ..output import Output
from ..progress import Progress
from ..render import counted
from ..sources import SOURCES, opened_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where; --database says where to."""
    parser.add_argument("source", metavar="SOURCE", help="an export, or another database")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Restores, and tells where the ledger stands."""
    import routing.sync

    from ...environment import from_environment
    from ..documents import as_fields

    database_url = arguments.database or from_environment().database_url
    with opened_source(arguments.source) as source, Progress("restore", "events") as progress:
        report = routing.sync.restore(
            source,
            database_url,
            validator_ss58=arguments.validator,
            progress=lambda done, total: progress.show(done, total=total),
        )
    head = f"{report.position}:{report.hash}"
    if out.json_wanted:
        out.document({**as_fields(report), "head": head})
        return 0
    done = f"restored {counted(report.added, 'event')}" if report.added else "everything was there already"
    out.line(f"{report.validator_ss58}: {done}; head {head}")
    return 0


COMMAND = Command(
    name="restore",
    summary="Make a ledger anew from an export or from another database: same positions, same hashes.",
    details=(
        f"{SOURCES}\n\n"
        "What is restored is verified first; then all is done in one transaction, or nothing. The database that\n"
        "--database names has no log of the validator yet, or the beginning of this one, which is then added to."
    ),
    examples=(
        "allowance restore backup.jsonl.gz --database sqlite:///ledger.db",
        "allowance restore sqlite:///ledger.db --database postgresql://…",
        "ssh elsewhere 'cat backup.jsonl.gz' | allowance restore - --database sqlite:///ledger.db",
    ),
    add_arguments=add_arguments,
    run=run,
)
