"""`allowance restore`: restore a ledger from an export or from another database."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NoSuchLedger
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.sources import SOURCES, opened_source
from routing.texts import counted

if TYPE_CHECKING:
    from routing import RestoreReport
    from routing.cli.named_ledger import NamedValue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source; `--database` is the target."""
    parser.add_argument("source", metavar="SOURCE", help="an export or another database; see above")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Restore, and report the head of the restored ledger."""
    from ledger.errors import renamed_fields
    from routing.cli.named_ledger import named_database, named_validator
    from routing.documents import as_fields
    from routing.service.backup import check_target
    from routing.service.config import configuration_from_environment

    configuration = configuration_from_environment()
    database = named_database(arguments, configuration)
    # Before the source is read, which may take long.
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
    result = f"restored {counted(report.added, 'event')}" if report.added else "the database has every event already"
    out.line(f"{report.validator_ss58}: {result}; head {head}")
    out.next_step(f"{next_command(arguments, 'health')} shows the restored ledger")
    return 0


def _restore(source: str, database_url: str, validator_ss58: str | None, validator: NamedValue) -> RestoreReport:
    """Restore the one ledger of the source; if it has several, the one of `--validator` or of the environment.

    A single ledger needs no name, so the validator of the environment counts only if the source is ambiguous.
    """
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
    details=(
        f"{SOURCES}\n"
        "If it has several ledgers, --validator or else ALLOWANCE_VALIDATOR_SS58 selects one.\n\n"
        "--database is the target. It must have no log of the validator, or a beginning of this log, which is then\n"
        "completed. The source is verified first. The events are appended in one transaction, all or none, and keep\n"
        "their positions and hashes."
    ),
    examples=(
        "allowance restore backup.jsonl.gz --database sqlite:///ledger.db",
        "allowance restore sqlite:///ledger.db --database postgresql://…",
        "ssh elsewhere 'cat backup.jsonl.gz' | allowance restore - --database sqlite:///ledger.db",
    ),
    add_arguments=add_arguments,
    run=run,
)
