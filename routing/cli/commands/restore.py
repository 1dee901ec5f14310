"""`allowance restore`: a ledger made anew from an export, or from another database."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.command import CliCommand
from routing.cli.errors import NoSuchLedger
from routing.cli.files.sources import SOURCES, opened_source
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import counted

if TYPE_CHECKING:
    from routing import RestoreReport
    from routing.cli.connection import NamedValue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where; --database says where to."""
    parser.add_argument("source", metavar="SOURCE", help="an export, or another database")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Restores, and tells where the ledger stands."""
    from ledger.errors import renamed_fields
    from routing.cli.connection import named_database, named_validator
    from routing.cli.io.documents import as_fields
    from routing.service.backup import check_target
    from routing.service.config import configuration_from_environment

    configuration = configuration_from_environment()
    database = named_database(arguments, configuration)
    with renamed_fields({"database_url": database.name}):
        check_target(database.value)
    with (
        renamed_fields({"source": "SOURCE", "database_url": database.name, "validator_ss58": "--validator"}),
        opened_source(arguments.source) as source,
    ):
        report = _restore(source, database.value, arguments.validator, named_validator(arguments, configuration))
    head = f"{report.position}:{report.hash}"
    if out.json_wanted:
        out.document({**as_fields(report), "head": head})
        return 0
    done = f"restored {counted(report.added, 'event')}" if report.added else "everything was there already"
    out.line(f"{report.validator_ss58}: {done}; head {head}")
    return 0


def _restore(source: str, database_url: str, validator_ss58: str | None, validator: NamedValue) -> RestoreReport:
    """Restores the ledger that is there, or of several that of the validator whom the environment names."""
    import routing.sync
    from ledger.errors import renamed_fields
    from routing import InvalidInput, LedgerNotFound

    try:
        with Progress("restore", "events") as progress:
            return routing.sync.restore(
                source,
                database_url,
                validator_ss58=validator_ss58,
                progress=lambda done, total: progress.show(done, total=total),
            )
    except InvalidInput as refused:
        if refused.field != "validator_ss58" or validator_ss58 or not validator.value:
            raise
        with renamed_fields({"validator_ss58": validator.name}):
            return _restore(source, database_url, validator.value, validator)
    except LedgerNotFound as absent:
        raise NoSuchLedger("SOURCE", validator_ss58 or "", validator.name) from absent


COMMAND = CliCommand(
    name="restore",
    summary="Make a ledger anew from an export or from another database: same positions, same hashes.",
    details=(
        f"{SOURCES}\n"
        "Of several ledgers in it, --validator or else ALLOWANCE_VALIDATOR_SS58 names the one.\n\n"
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
