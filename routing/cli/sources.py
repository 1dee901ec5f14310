"""What whole ledgers are read from: a database's URL, a database's file, an export, or an export on standard input."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .inputs import opened_input

HASH_BYTES = 32
MOST_DIGITS = 18
SQLITE_MAGIC = b"SQLite format 3\0"

SOURCES = """\
SOURCE is a database's URL, the file of a SQLite database, a file that `allowance export` wrote, or `-` for an
export on standard input."""


@contextmanager
def opened_source(source: str) -> Iterator[str]:
    """The source as `routing.verify` and `routing.restore` take it."""
    if source == "-":
        with opened_input(source) as stream, TemporaryDirectory(prefix="allowance-") as directory:
            spooled = Path(directory) / "standard input"
            with spooled.open("wb") as file:
                shutil.copyfileobj(stream, file)
            yield str(spooled)
    elif "://" in source:
        yield source
    else:
        with opened_input(source) as stream:
            is_database = stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
        yield f"sqlite:///{source}" if is_database else source


def noted_head(text: str) -> tuple[int, bytes]:
    """Understands a head as `health`, `export` and `verify` show it."""
    position, separator, digits = text.partition(":")
    try:
        a_hash = bytes.fromhex(digits)
    except ValueError:
        a_hash = b""
    if (
        not separator
        or not position.isascii()
        or not position.isdigit()
        or len(a_hash) != HASH_BYTES
        or len(position) > MOST_DIGITS
    ):
        message = f"{text!r} is not a head as `allowance health` shows it: a position, a colon, and 64 digits"
        raise argparse.ArgumentTypeError(message)
    return int(position), a_hash
