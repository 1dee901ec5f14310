"""The errors of the command line, and how every error is reported: its message, its document, its exit code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routing.cli.io.output import Output

NO = 1
WRONG_INPUT = 2
STORAGE_UNAVAILABLE = 3
# A defect in this program (EX_SOFTWARE of sysexits.h). Not 1, because scripts read 1 as the answer no.
DEFECT = 70


class CommandError(Exception):
    """A command cannot continue; the message says why, in one line.

    `fields` are the facts for programs. `exit_code` and `name` say what kind of failure it is.
    """

    exit_code = WRONG_INPUT

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.fields = fields

    @property
    def name(self) -> str:
        """The class name that users see."""
        return type(self).__name__


class WrongUsage(CommandError):
    """The command line is not valid; the message says what would be."""


class UnreadableInput(CommandError):
    """An input file cannot be read."""


class UnwritableOutput(CommandError):
    """An output file cannot be written; `path` is the name that the user gave."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot write {path!r}: {reason}", path=path, reason=reason)


class NoSuchLedger(CommandError):
    """The source has no such ledger. Replaces `LedgerNotFound`, and names the options that asked for it."""

    exit_code = NO
    name = "LedgerNotFound"

    def __init__(
        self, source_option: str, validator_ss58: str, validator_option: str, found: Sequence[str] = ()
    ) -> None:
        whose = f"ledger of {validator_ss58}, whom {validator_option} names," if validator_ss58 else "ledger"
        others = f"; it has the ledger of {', '.join(found)}" if found else ""
        super().__init__(
            f"there is no {whose} in what {source_option} names{others}",
            validator_ss58=validator_ss58 or None,
            validators=list(found),
        )


class WrongInput(CommandError):
    """The content of an input file is not valid; the message says what is wrong and what would be right."""


def report(error: Exception, out: Output) -> int:
    """Write the error as one line on standard error, and with `--json` as a document; return the exit code."""
    code = exit_code(error)
    if code == DEFECT:
        import traceback

        out.note("".join(traceback.format_exception(error)).rstrip())
    name, message = error_name(error), error_message(error)
    out.note(f"allowance: {name}: {message}")
    if out.json_wanted:
        out.document({"error": {"type": name, "message": message, "fields": error_fields(error)}})
    return code


def exit_code(error: Exception) -> int:
    """Return the exit code for this kind of failure."""
    if isinstance(error, CommandError):
        return error.exit_code
    if isinstance(error, OSError):
        return STORAGE_UNAVAILABLE
    import ledger.errors as known

    unusable = (
        known.ClockUnusable,
        known.CorruptLedger,
        known.LedgerOverloaded,
        known.NewerLedger,
        known.OutcomeUnknown,
        known.ProjectionStopped,
        known.HistoryDamaged,
        known.StorageUnavailable,
    )
    if isinstance(error, unusable):
        return STORAGE_UNAVAILABLE
    if isinstance(error, (known.InvalidInput, known.DamagedExport, known.ConflictingFact, known.ImplausibleFact)):
        return WRONG_INPUT
    # Last, because the errors above derive from these two.
    if isinstance(error, (known.AllowanceException, known.JobRoutingException)):
        return NO
    return DEFECT


def error_name(error: Exception) -> str:
    """Return the class name that users know the error by."""
    return error.name if isinstance(error, CommandError) else type(error).__name__


def error_message(error: Exception) -> str:
    """Return the message as one line without control characters, so that it is safe to show in a terminal."""
    from routing.texts import printable

    return printable(re.sub(r"\s+", " ", str(error)).strip())


def error_fields(error: Exception) -> dict[str, object]:
    """Return the error's public fields by name."""
    if isinstance(error, CommandError):
        return dict(error.fields)
    # `fact_index` counts within a batch, which users do not see; the line's number is reported instead.
    return {name: value for name, value in vars(error).items() if name[0] != "_" and name != "fact_index"}
