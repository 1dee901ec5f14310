"""The `argparse` tree, built from the commands' own descriptions."""

from __future__ import annotations

import argparse
from typing import NoReturn

from routing.cli.io.inputs import words

from .command import CliCommand
from .commands import COMMANDS
from .errors import WrongUsage

ENVIRONMENT = """\
Environment:
  ALLOWANCE_DATABASE_URL      where the ledger is, if --database does not say
  ALLOWANCE_VALIDATOR_SS58    whose ledger it is, if --validator does not say
  NO_COLOR                    no colours

Exit codes:
  0 done, 1 the answer is no, 2 wrong usage or input, 3 storage unavailable, 130 interrupted

New here? `allowance demo` shows everything on made-up data in half a minute.
"""


class _VersionAction(argparse.Action):
    """Prints the installed release; its metadata is read only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{parser.prog} {version('allowance-ledger')}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that leaves reporting what is wrong to its caller."""

    def error(self, message: str) -> NoReturn:
        """Raises `WrongUsage`, with where to look."""
        said, separator, arguments = message.partition("unrecognized arguments: ")
        if separator:
            from ledger.store.urls import redacted_url

            message = f"{said}{separator}{redacted_url(arguments)}"
        raise WrongUsage(f"{message}; see `{self.prog} --help`")


def build_parser() -> Parser:
    """Makes the parser of `allowance` with every registered command."""
    parser = Parser(
        prog="allowance",
        description="Which miner runs the next job, and what its validator has left to spend on it.",
        epilog=ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_VersionAction, nargs=0, help="show the release and exit")
    parser.set_defaults(command=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        _add(subparsers, command)
    return parser


def _add(subparsers: argparse._SubParsersAction[Parser], command: CliCommand) -> None:
    parser = subparsers.add_parser(
        command.name,
        help=command.summary[0].lower() + command.summary[1:].rstrip("."),
        description=command.summary + ("\n\n" + command.details if command.details else ""),
        epilog="Examples:\n" + "".join(f"  {example}\n" for example in command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command.name, run=command.run)
    # For arguments without a type of their own: an empty one would count as left out.
    parser.register("type", None, words)
    command.add_arguments(parser)
    _add_common_arguments(parser)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--database",
        metavar="URL",
        help="sqlite:///PATH or postgresql://… (default: ALLOWANCE_DATABASE_URL, else a file of yours)",
    )
    common.add_argument(
        "--validator",
        metavar="SS58",
        help="the validator's hotkey, whose ledger it is (default: ALLOWANCE_VALIDATOR_SS58)",
    )
    common.add_argument("--json", action="store_true", help="JSON: one document, or one line per item of a list")
