"""`allowance receipts`: check receipts of other validators against the recorded chain."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO, error_fields, error_message, error_name
from routing.cli.io.inputs import opened_input
from routing.cli.io.output import Output
from routing.texts import block_ranges, counted, seconds_text

if TYPE_CHECKING:
    from routing import Bookkeeper, NotSpendable, Receipt, ReceiptOutcome
    from routing.cli.files.receipts import NumberedReceipt

_NOT_CHECKED: dict[str, object] = {
    "receipt": None,
    "spent": False,
    "blocks": [],
    "job_start_block": None,
    "spendable_seconds": None,
    "outside_range": [],
    "double_spent": [],
    "invalidated": [],
    "without_grant": [],
    "spendable": [],
    "not_spendable": [],
}
"""The fields of a `ReceiptOutcome` for a receipt that has none, because its blocks were not checked.

All documents of one list have the same keys.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the file of the receipts."""
    parser.add_argument("file", metavar="RECEIPTS.jsonl", help="one receipt per line; `-` reads standard input")
    parser.add_argument("--signed", action="store_true", help="check signatures: a line has both receipts of a job")
    parser.add_argument("--first-block", type=int, metavar="BLOCK", help="refuse jobs that start before it")
    parser.add_argument("--end-block", type=int, metavar="BLOCK", help="refuse jobs that start at it or later")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Check the receipts in order, and report the outcome of each."""
    from ledger.errors import renamed_fields
    from routing.cli.connection import ledger_connection
    from routing.cli.files.receipts import numbered_receipts

    checked = refused = 0
    with opened_input(arguments.file) as stream, ledger_connection(arguments, read_only=True) as connection:
        bounds = {"first_block": arguments.first_block, "end_block": arguments.end_block}
        with renamed_fields({"first_block": "--first-block", "end_block": "--end-block"}):
            bookkeeper = connection.run(connection.ledger.receipts(**bounds))
        for numbered in numbered_receipts(stream, signed=arguments.signed):
            checked += 1
            refused += not _check(bookkeeper, numbered, out)
    out.note(f"{counted(checked, 'receipt')}, {refused:,} of them refused")
    out.next_step("`allowance guide auditing` says why a block can be refused")
    return NO if refused else 0


def _check(bookkeeper: Bookkeeper, numbered: NumberedReceipt, out: Output) -> bool:
    """Report the outcome of one receipt, and return whether it was spent."""
    from routing import AllowanceException, InvalidInput, JobOutOfBounds, TimeOutOfRange
    from routing.cli.files.json_lines import BadLine
    from routing.cli.files.receipts import EXAMPLE

    if isinstance(numbered.receipt, AllowanceException):
        _write_refusal(numbered.line, None, numbered.receipt, out)
        return False
    try:
        outcome = bookkeeper.take(numbered.receipt)
    except InvalidInput as error:
        raise BadLine(numbered.line, error_message(error), EXAMPLE) from error
    except (TimeOutOfRange, JobOutOfBounds) as error:
        _write_refusal(numbered.line, numbered.receipt, error, out)
        return False
    _write_outcome(numbered, outcome, out)
    return outcome.spent


def _write_outcome(numbered: NumberedReceipt, outcome: ReceiptOutcome, out: Output) -> None:
    from routing.documents import as_fields

    if out.json_wanted:
        out.document({"line": numbered.line, **as_fields(outcome), "error": None})
        return
    required = seconds_text(outcome.receipt.allowance_seconds)
    reasons = "".join(f"; {not_spendable_text(each)}" for each in outcome.not_spendable)
    if outcome.spent:
        out.line(
            f"line {numbered.line}: spent {block_ranges(outcome.blocks)},"
            f" {seconds_text(outcome.spendable_seconds)} for {required}{reasons}"
        )
    else:
        spendable = seconds_text(outcome.spendable_seconds)
        out.line(f"line {numbered.line}: refused, {spendable} for {required}{reasons}")


def not_spendable_text(refused: NotSpendable) -> str:
    """Return why a run of blocks cannot be spent, with the distance to what refuses it."""
    distance = counted(abs(refused.distance), "block")
    why = {
        "outside_range": f"{distance} too {'old' if refused.distance < 0 else 'new'}",
        "double_spent": "spent by an earlier receipt",
        "invalidated": f"invalidated by a drop {distance} later",
        "without_grant": "without a grant",
    }
    return f"{block_ranges(range(refused.first_block, refused.last_block + 1))}: {why[refused.reason]}"


def _write_refusal(line: int, receipt: Receipt | None, error: Exception, out: Output) -> None:
    from routing.documents import as_fields

    name, message = error_name(error), error_message(error)
    if out.json_wanted:
        error_document = {"type": name, "message": message, "fields": error_fields(error)}
        refused = {**_NOT_CHECKED, "receipt": None if receipt is None else as_fields(receipt)}
        out.document({"line": line, **refused, "error": error_document})
        return
    out.line(f"line {line}: refused, {name}: {message}")


COMMAND = CliCommand(
    details=(
        "The file has one JSON object per line:\n"
        '  {"validator_ss58":"5G…","miner_ss58":"5F…","executor_class":"always_on.gpu-24gb",\n'
        '   "started_at":"2024-01-01T12:00:00Z","blocks":[1000,1001],"allowance_seconds":15.5}\n'
        "A receipt whose spendable blocks are worth its amount spends exactly those blocks, as later receipts of\n"
        "the same run see; otherwise it is refused and spends nothing. Nothing is recorded in the ledger. At a bad\n"
        "line the command stops and names the line's number. An amount of 0 is accepted and spends nothing.\n"
        "With --signed, a line has the two receipts of a job as ComputeHorde's validators and miners sign them:\n"
        '  {"started":{"payload":{…},"validator_signature":"0x…","miner_signature":"0x…"},"finished":{…}}\n'
        "A job without all four signatures is refused. This needs the extra `signatures`.\n"
        "With --first-block and --end-block, jobs that start elsewhere are refused.\n"
        "Exit code 1: at least one receipt was refused."
    ),
    examples=(
        "allowance receipts receipts.jsonl",
        "allowance receipts receipts.jsonl --json | jq 'select(.spent | not)'",
        "allowance receipts receipts.jsonl --first-block 5000 --end-block 5722",
        "collect-receipts | allowance receipts -",
    ),
    add_arguments=add_arguments,
    run=run,
)
