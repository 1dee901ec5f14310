"""The `argparse` tree, built from the table of commands and from the implementation of the chosen command."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from routing.cli.io.errors import WrongUsage

from .commands import COMMANDS, CommandEntry

ENVIRONMENT = """\
Environment:
  ALLOWANCE_DATABASE_URL      the database, if --database is not given
  ALLOWANCE_VALIDATOR_SS58    the validator's hotkey, if --validator is not given
  NO_COLOR                    any value turns colours off

Exit codes:
  0 done, 1 the answer is no, 2 wrong usage or input, 3 storage unavailable, 130 interrupted

New here? `allowance demo` shows everything on made-up data in half a minute; `allowance guide` lists the guide.
"""


class _VersionAction(argparse.Action):
    """Print the release and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from routing.version import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `WrongUsage` instead of printing the error and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `WrongUsage` with a pointer to the right `--help`."""
        problem, separator, arguments = message.partition("unrecognized arguments: ")
        if separator:
            # A database URL in the wrong place must not bring its password into logs.
            from ledger.store.urls import redacted_url

            message = f"{problem}{separator}{redacted_url(arguments)}"
            if os.path.exists(arguments):
                message += "; name a database or an export with --database"
        raise WrongUsage(f"{message}; see `{self.prog} --help`")


def build_parser(argv: Sequence[str]) -> Parser:
    """Return the parser of `allowance` for this command line, given without the program's name.

    The parser lists every command, but only the chosen command has its arguments, because they are in a module
    that takes time to import.
    """
    parser = Parser(
        prog="allowance",
        description="Pick the miner that runs the next job, and keep account of the allowance that jobs use.",
        epilog=ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_VersionAction, nargs=0, help="show the release and exit")
    parser.set_defaults(command=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    # No option before the command has a value, so the first word that is no option names the command.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    if chosen is not None and chosen not in [entry.name for entry in COMMANDS]:
        raise WrongUsage(_unknown_command(chosen))
    for entry in COMMANDS:
        if entry.name == chosen:
            _add_chosen_command(subparsers, entry)
        else:
            subparsers.add_parser(entry.name, help=_short_summary(entry), add_help=False)
    return parser


def _unknown_command(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, [entry.name for entry in COMMANDS], 1)
    hint = f"did you mean `allowance {close[0]}`?" if close else "`allowance --help` lists all"
    return f"there is no command {word!r}; {hint}"


def _short_summary(entry: CommandEntry) -> str:
    return entry.summary[0].lower() + entry.summary[1:].rstrip(".")


def _add_chosen_command(subparsers: argparse._SubParsersAction[Parser], entry: CommandEntry) -> None:
    from routing.cli.io.inputs import non_empty_text

    command = entry.load()
    parser = subparsers.add_parser(
        entry.name,
        help=_short_summary(entry),
        description=entry.summary + ("\n\n" + command.details if command.details else ""),
        epilog="Examples:\n" + "".join(f"  {example}\n" for example in command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=entry.name, run=command.run)
    # The type of arguments that name no type. An empty one must not count as left out: `--database "$URL"` with
    # an unset variable would otherwise silently use the default database.
    parser.register("type", None, non_empty_text)
    command.add_arguments(parser)
    _add_common_arguments(parser)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--database",
        metavar="URL",
        help="sqlite:///PATH, postgresql://… or the path of a SQLite file; to read, also an export"
        " (default: ALLOWANCE_DATABASE_URL, else a file in your data directory)",
    )
    common.add_argument(
        "--validator",
        metavar="SS58",
        help="the hotkey of the validator that owns the ledger (default: ALLOWANCE_VALIDATOR_SS58)",
    )
    common.add_argument("--json", action="store_true", help="write JSON: one document, or one line per item of a list")
