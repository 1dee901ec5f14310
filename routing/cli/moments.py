"""Which past a command asks about: the options that name a moment, and the view of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.io.inputs import moment, whole_number

if TYPE_CHECKING:
    from routing import Allowance, Past


def add_moment(parser: argparse.ArgumentParser, *, prefix: str = "") -> None:
    """Adds `--position`, `--block` and `--time`, of which one may be given, under names that begin with a prefix."""
    group = parser.add_argument_group("the past", "as it was at that moment; one of these, or none for now")
    options = group.add_mutually_exclusive_group()
    options.add_argument(
        f"--{prefix}position", dest="at_position", type=whole_number, metavar="P", help="right after this log position"
    )
    options.add_argument(
        f"--{prefix}block",
        dest="at_block",
        type=whole_number,
        metavar="B",
        help="just before the first event about a higher block",
    )
    options.add_argument(
        f"--{prefix}time", dest="at_time", type=moment, metavar="TIME", help="at this time, by what was recorded then"
    )


def is_past(arguments: argparse.Namespace) -> bool:
    """Whether a moment was named."""
    return any(each is not None for each in (arguments.at_position, arguments.at_block, arguments.at_time))


def at_moment(ledger: Allowance, arguments: argparse.Namespace) -> Allowance | Past:
    """The ledger as of the moment that was named, or as it is."""
    if not is_past(arguments):
        return ledger
    return ledger.at(position=arguments.at_position, block=arguments.at_block, time=arguments.at_time)
