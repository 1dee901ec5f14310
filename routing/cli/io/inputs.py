"""Argument values, the options that name a moment of the past, and input files.

The argument types raise `ArgumentTypeError`, whose message says what would be right.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BufferedIOBase
from typing import TYPE_CHECKING, cast

from routing.cli.io.errors import UnreadableInput

if TYPE_CHECKING:
    from routing import Allowance, Past

LARGEST_NUMBER = 2**63 - 1
"""The largest integer that both databases can store."""
MOST_PAGE_ITEMS = 10_000
"""The library's limit, repeated here because the parser must not wait for the library's import."""
HASH_DIGITS = 64
MOST_POSITION_DIGITS = 18
"""So that every accepted position is below 2^63, the limit of the databases."""


def non_empty_text(text: str) -> str:
    """Return the text; refuse an empty one, which a script passes if its variable is not set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a value, or leave the argument out")
    return text


def whole_number(text: str) -> int:
    """Return a number from 1 to 2^63 - 1, such as a block's number or a reservation's id."""
    return _number_up_to(LARGEST_NUMBER, "2^63 - 1", text)


def stream_version(text: str) -> int:
    """Return the version of a stream, from 0 to 2^63 - 1; 0 is that of a stream without events."""
    return _number_up_to(LARGEST_NUMBER, "2^63 - 1", text, least=0)


def whole_number_or_zero(text: str) -> int:
    """Return a number from 0 to 2^63 - 1."""
    return _number_up_to(LARGEST_NUMBER, "2^63 - 1", text, least=0)


def page_items(text: str) -> int:
    """Return how many items a page may have."""
    return _number_up_to(MOST_PAGE_ITEMS, str(MOST_PAGE_ITEMS), text)


def _number_up_to(largest: int, largest_text: str, text: str, least: int = 1) -> int:
    # `int` alone would also accept signs, spaces, underscores and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not least <= int(text) <= largest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {largest_text}")
    return int(text)


def seconds(text: str) -> float:
    """Return a finite number of seconds above 0."""
    try:
        amount = float(text)
    except ValueError:
        amount = float("nan")
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, such as 30 or 2.5")
    return amount


def moment(text: str) -> datetime:
    """Return the aware datetime of an ISO 8601 time with a time zone."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with its time zone, such as 2024-01-01T12:00:00Z")
    return parsed


def noted_head(text: str) -> tuple[int, bytes]:
    """Return the position and the hash of a head in the form that `health`, `export` and `verify` show."""
    pattern = rf"([0-9]{{1,{MOST_POSITION_DIGITS}}}):([0-9a-f]{{{HASH_DIGITS}}})"
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if found is None:
        message = (
            f"{text!r} is no head as `allowance health` shows it: a position, a colon, {HASH_DIGITS} hexadecimal digits"
        )
        raise argparse.ArgumentTypeError(message)
    return int(found[1]), bytes.fromhex(found[2])


def add_moment(parser: argparse.ArgumentParser) -> None:
    """Add `--at-position`, `--at-block` and `--at-time`; a command takes at most one."""
    group = parser.add_argument_group("the past", "show the state at a moment; give one of these, or none for now")
    options = group.add_mutually_exclusive_group()
    options.add_argument(
        "--at-position",
        dest="at_position",
        type=whole_number,
        metavar="P",
        help="directly after the event at this log position",
    )
    options.add_argument(
        "--at-block",
        dest="at_block",
        type=whole_number,
        metavar="B",
        help="directly before the first event about a higher block",
    )
    options.add_argument(
        "--at-time",
        dest="at_time",
        type=moment,
        metavar="TIME",
        help="at this time, with the events recorded by then (ISO 8601 with a time zone)",
    )


def is_past(arguments: argparse.Namespace) -> bool:
    """Return whether the command line names a moment."""
    return any(each is not None for each in (arguments.at_position, arguments.at_block, arguments.at_time))


def at_moment(ledger: Allowance, arguments: argparse.Namespace) -> Allowance | Past:
    """Return the view of the moment that the command line names, or the ledger itself if it names none."""
    if not is_past(arguments):
        return ledger
    return ledger.at(position=arguments.at_position, block=arguments.at_block, time=arguments.at_time)


@contextmanager
def opened_input(path: str) -> Iterator[BufferedIOBase]:
    """Open a file for reading bytes; `-` is standard input. Raise `UnreadableInput` if it cannot be opened."""
    if path == "-":
        yield cast(BufferedIOBase, sys.stdin.buffer)
        return
    try:
        # Not in a `with` statement yet: an error in the caller's body is not about opening.
        stream = open(path, "rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        from ledger.store.urls import redacted_url

        # A mistyped database URL arrives here as a file's name, and may contain a password.
        shown = redacted_url(path)
        raise UnreadableInput(f"cannot read {shown!r}: {reason}", path=shown) from error
    with stream:
        yield cast(BufferedIOBase, stream)
