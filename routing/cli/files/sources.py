"""What whole ledgers are read from: a database's URL, a database's file, an export, or an export on standard input."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from routing.cli.io.inputs import opened_input

DIGITS = 64
MOST_DIGITS = 18
STANDARD_INPUT = "standard input"
SQLITE_MAGIC = b"SQLite format 3\0"

SOURCES = """\
SOURCE is a database's URL, the file of a SQLite database, a file that `allowance export` wrote, or `-` for an
export on standard input."""


@contextmanager
def opened_source(source: str) -> Iterator[str]:
    """The source as `routing.verify` and `routing.restore` take it."""
    if source == "-":
        with opened_input(source) as stream, TemporaryDirectory(prefix="allowance-") as directory:
            spooled = Path(directory) / "export"
            with spooled.open("wb") as file:
                shutil.copyfileobj(stream, file)
            with _told_as_standard_input():
                yield str(spooled)
    elif "://" in source:
        yield source
    else:
        with opened_input(source) as stream:
            is_database = stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
        yield f"sqlite:///{source}" if is_database else source


@contextmanager
def _told_as_standard_input() -> Iterator[None]:
    """Inside, what is no export is told as what it came from, not as the file that it was written to."""
    from routing import InvalidInput

    try:
        yield
    except InvalidInput as refused:
        if refused.field != "source":
            raise
        raise InvalidInput("source", STANDARD_INPUT, refused.expected) from refused


def noted_head(text: str) -> tuple[int, bytes]:
    """Understands a head as `health`, `export` and `verify` show it."""
    found = re.fullmatch(rf"([0-9]{{1,{MOST_DIGITS}}}):([0-9a-f]{{{DIGITS}}})", text, re.ASCII | re.IGNORECASE)
    if found is None:
        message = f"{text!r} is no head as `allowance health` shows it: a position, a colon, and {DIGITS} digits"
        raise argparse.ArgumentTypeError(message)
    return int(found[1]), bytes.fromhex(found[2])
