"""The sources of whole ledgers: a database's URL, a database file, an export, or an export on standard input."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from routing.cli.io.inputs import opened_input

HASH_DIGITS = 64
MOST_POSITION_DIGITS = 18
"""So that every accepted position is below 2^63, the limit of the databases."""
STANDARD_INPUT = "standard input"
SQLITE_MAGIC = b"SQLite format 3\0"

SOURCES = """\
SOURCE is the URL of a database, the file of a SQLite database, a file that `allowance export` wrote, or `-` for an
export on standard input."""


@contextmanager
def opened_source(source: str) -> Iterator[str]:
    """Yield the source in the form that `routing.verify` and `routing.restore` expect: a URL or a file's path.

    An export on standard input is first written to a temporary file: the library opens a source more than once.
    """
    if source == "-":
        with opened_input(source) as stream, TemporaryDirectory(prefix="allowance-") as directory:
            spooled = Path(directory) / "export"
            with spooled.open("wb") as file:
                shutil.copyfileobj(stream, file)
            with _naming_standard_input():
                yield str(spooled)
    elif "://" in source:
        yield source
    else:
        with opened_input(source) as stream:
            is_database = stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
        yield f"sqlite:///{source}" if is_database else source


@contextmanager
def _naming_standard_input() -> Iterator[None]:
    """Let errors name standard input instead of the temporary file, which the user does not know."""
    from routing import InvalidInput

    try:
        yield
    except InvalidInput as refused:
        if refused.field != "source":
            raise
        raise InvalidInput("source", STANDARD_INPUT, refused.expected) from refused


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
