"""`allowance settings`: show and change the recorded settings of a ledger."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import labelled

if TYPE_CHECKING:
    from routing import Settings, SettingsRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to do, the fields to change, and the list of changes."""
    parser.add_argument("action", metavar="show|set", choices=("show", "set"), help="what to do")
    parser.add_argument("assignments", nargs="*", metavar="FIELD=VALUE", help="with set: a setting and its new value")
    parser.add_argument("--changes", action="store_true", help="with show: list every change, with its position")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Show the settings, list their changes, or change the named fields."""
    if arguments.action == "set":
        return _set(arguments, out)
    if arguments.assignments:
        raise WrongUsage("`settings show` takes no FIELD=VALUE; use `settings set` to change settings")
    return _list_changes(arguments, out) if arguments.changes else _show(arguments, out)


def _show(arguments: argparse.Namespace, out: Output) -> int:
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection:
        _write(connection.run(connection.ledger.settings()), out)
    out.next_step(f"{next_command(arguments, 'settings', 'show', '--changes')} lists every change")
    return 0


def _set(arguments: argparse.Namespace, out: Output) -> int:
    from routing.cli.connection import ledger_connection

    if arguments.changes or not arguments.assignments:
        raise WrongUsage("`settings set` needs at least one FIELD=VALUE, and no --changes")
    named = named_fields(arguments.assignments)
    with ledger_connection(arguments) as connection:
        _write(connection.run(connection.ledger.change_settings(**named)), out)
    out.next_step(f"{next_command(arguments, 'settings', 'show', '--changes')} lists every change")
    return 0


def _list_changes(arguments: argparse.Namespace, out: Output) -> int:
    from routing.cli.connection import ledger_connection
    from routing.documents import as_fields

    with ledger_connection(arguments, read_only=True) as connection:
        records = connection.run(connection.ledger.settings_changes())
    for record in records:
        if out.json_wanted:
            out.document(as_fields(record))
        else:
            _write_record(record, out)
    return 0


def _write(settings: Settings, out: Output) -> None:
    from routing.documents import as_fields

    fields = as_fields(settings)
    if out.json_wanted:
        out.document(fields)
        return
    for line in labelled((field, _text(value)) for field, value in fields.items()):
        out.line(line)


def _write_record(record: SettingsRecord, out: Output) -> None:
    is_first = record.position == 1
    out.line(f"position {record.position:,}, {record.recorded_at}{', the ledger was founded' if is_first else ''}")
    for field, (old, new) in record.changes.items():
        out.line(f"  {field}: {_text(new)}" if is_first else f"  {field}: {_text(old)} → {_text(new)}")


def _text(value: object) -> str:
    return "none" if value is None or value == {} else str(value)


def named_fields(assignments: list[str]) -> dict[str, Any]:
    """Return the values by field. Raises `WrongUsage`, and `InvalidInput` for a value that is not right."""
    from ledger.settings import FIELDS
    from routing.service.config import setting_from_text

    named: dict[str, Any] = {}
    for assignment in assignments:
        field, separator, text = assignment.partition("=")
        if not separator or field not in FIELDS:
            raise WrongUsage(f"{assignment!r} is no FIELD=VALUE; the fields are {', '.join(FIELDS)}")
        if field in named:
            raise WrongUsage(f"{field} is given twice")
        named[field] = setting_from_text(field, field, text)
    return named


COMMAND = CliCommand(
    details=(
        "`set` changes the named fields and leaves the others as they are. It writes the settings as they are then.\n"
        "They apply to what is finalized and claimed later. A limit is switched off with `none`. `allowance guide\n"
        "settings` explains each field. No other command changes settings; settings in the environment are ignored."
    ),
    examples=(
        "allowance settings show",
        "allowance settings show --changes --json",
        "allowance settings set block_expiry_blocks=500 newest_block_max_age_seconds=none",
        "allowance settings set 'executors_max_per_class={\"always_on.gpu-24gb\": 8}'",
    ),
    add_arguments=add_arguments,
    run=run,
)
