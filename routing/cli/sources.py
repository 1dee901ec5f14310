"""The sources of whole ledgers: a database's URL, a database file, an export, or an export on standard input."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from routing.cli.io.inputs import opened_input
from routing.cli.io.progress import Progress

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
        with opened_input(source):
            yield url_of_file(source)


@asynccontextmanager
async def opened_database(source: str) -> AsyncIterator[str]:
    """Yield the URL of a database to read the source's ledgers from.

    An export is restored to a temporary database, which is deleted at the end. Raises `DamagedExport`, and the errors
    of `opened_source`.
    """
    from routing.service.backup import project_history, restore

    with opened_source(source) as opened:
        if "://" in opened:
            yield opened
            return
        with TemporaryDirectory(prefix="allowance-") as directory:
            database_url = f"sqlite:///{directory}/restored.db"
            with Progress("restore", "events") as progress:
                restored = await restore(
                    opened, database_url, progress=lambda done, total: progress.show(done, total=total)
                )
            with Progress("history", "events") as progress:
                await project_history(
                    database_url, restored.validator_ss58, lambda done, total: progress.show(done, total=total)
                )
            yield database_url


def url_of_file(text: str) -> str:
    """Return the URL of a SQLite database if the text is the path of one; return any other text unchanged."""
    try:
        with open(text, "rb") as file:
            is_database = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except (OSError, ValueError):
        return text
    return f"sqlite:///{text}" if is_database else text


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
