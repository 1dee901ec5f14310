"""Files and words that users hand over: opened, read and understood, or refused with what would be right."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BufferedIOBase
from typing import cast

from routing.cli.errors import UnreadableInput

LARGEST_NUMBER = 2**63 - 1
MOST_PAGE_ITEMS = 10_000
"""As the library has it; said here again, since the parser is made without importing it."""


@contextmanager
def opened_input(path: str) -> Iterator[BufferedIOBase]:
    """Opens a file for reading bytes; `-` is standard input."""
    if path == "-":
        yield cast(BufferedIOBase, sys.stdin.buffer)
        return
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; what the body raises is not about opening
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        from ledger.store.urls import redacted_url

        shown = redacted_url(path)  # A mistyped URL is taken for a file's name.
        raise UnreadableInput(f"cannot read {shown!r}: {reason}", path=shown) from error
    with stream:
        yield cast(BufferedIOBase, stream)


def words(text: str) -> str:
    """Takes any text but an empty one, which a script hands over whose variable is not set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a value, or leave it out")
    return text


def whole_number(text: str) -> int:
    """Understands a positive number below 2^63, such as a block's or a reservation's id."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not 1 <= int(text) <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 2^63 - 1")
    return int(text)


def page_items(text: str) -> int:
    """Understands how many items a page should have."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not 1 <= int(text) <= MOST_PAGE_ITEMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_PAGE_ITEMS}")
    return int(text)


def seconds(text: str) -> float:
    """Understands a number of seconds above zero."""
    try:
        amount = float(text)
    except ValueError:
        amount = float("nan")
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, such as 30 or 2.5")
    return amount


def moment(text: str) -> datetime:
    """Understands an ISO 8601 time that names its time zone."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with its time zone, such as 2024-01-01T12:00:00Z")
    return when
