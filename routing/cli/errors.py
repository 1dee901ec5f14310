"""What a command says and which exit code it gives when it cannot do what it was asked."""

from __future__ import annotations

import re
import traceback

from routing.cli.io.output import Output
from routing.cli.io.render import printable

NO = 1
WRONG_INPUT = 2
STORAGE_UNAVAILABLE = 3
# A defect of ours (EX_SOFTWARE): not 1, which scripts read as an answer.
DEFECT = 70


class CommandError(Exception):
    """A command cannot go on; the message says why, in one line.

    `fields` are the facts of the matter, for programs. `exit_code` and `name` tell what kind of failure it
    is.
    """

    exit_code = WRONG_INPUT

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.fields = fields

    @property
    def name(self) -> str:
        """The class name that people see."""
        return type(self).__name__


class WrongUsage(CommandError):
    """The command line does not make sense; the message says what would."""


class UnreadableInput(CommandError):
    """A file that was named cannot be read."""


class UnwritableOutput(CommandError):
    """A file cannot be written where it was asked for; `path` is the name that was given."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot write {path!r}: {reason}", path=path, reason=reason)


class NoSuchLedger(CommandError):
    """What was to be read has no such ledger; stands for the library's error, and says who asked for what."""

    exit_code = NO
    name = "LedgerNotFound"

    def __init__(self, where: str, validator_ss58: str, named_by: str) -> None:
        whose = f"ledger of {validator_ss58}, whom {named_by} names," if validator_ss58 else "ledger"
        super().__init__(f"there is no {whose} in what {where} names", validator_ss58=validator_ss58 or None)


class WrongInput(CommandError):
    """What a file says cannot be understood; the message says what is wrong and what would be right."""


def report(error: Exception, out: Output) -> int:
    """Tells the failure in a line on standard error, with `--json` as a document too; gives the exit code."""
    code = exit_code(error)
    if code == DEFECT:
        out.note("".join(traceback.format_exception(error)).rstrip())
    name, message = error_name(error), error_message(error)
    out.note(f"allowance: {name}: {message}")
    if out.json_wanted:
        out.document({"error": {"type": name, "message": message, "fields": error_fields(error)}})
    return code


def exit_code(error: Exception) -> int:
    """Which kind of failure an exception is, as the number that the shell sees."""
    if isinstance(error, CommandError):
        return error.exit_code
    if isinstance(error, OSError):
        return STORAGE_UNAVAILABLE
    import ledger.errors as known

    unusable = (
        known.CorruptLedger,
        known.LedgerOverloaded,
        known.NewerLedger,
        known.OutcomeUnknown,
        known.ProjectionStopped,
        known.StorageUnavailable,
    )
    if isinstance(error, unusable):
        return STORAGE_UNAVAILABLE
    if isinstance(error, (known.InvalidInput, known.DamagedExport, known.ConflictingFact, known.ImplausibleFact)):
        return WRONG_INPUT
    if isinstance(error, (known.AllowanceException, known.JobRoutingException)):
        return NO
    return DEFECT


def error_name(error: Exception) -> str:
    """The class name of an error, as its users know it."""
    return error.name if isinstance(error, CommandError) else type(error).__name__


def error_message(error: Exception) -> str:
    """An error's message, in one line that is safe to show in a terminal."""
    return printable(re.sub(r"\s+", " ", str(error)).strip())


def error_fields(error: Exception) -> dict[str, object]:
    """What an error knows beside its message."""
    if isinstance(error, CommandError):
        return dict(error.fields)
    # Where a fact stands in its batch is our own business: the line's number says it better.
    return {name: value for name, value in vars(error).items() if name[0] != "_" and name != "fact_index"}
