"""The output of a command: data on standard output, everything else on standard error."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from .render import Layout

BOLD = "1"
GREEN = "32"
RED = "31"


class Output:
    """Write a command's results as text, or as JSON if `json_wanted`.

    Characters that the terminal's encoding lacks are written as escapes.
    """

    def __init__(self, *, json_wanted: bool) -> None:
        self.json_wanted = json_wanted
        # If the shell closed a stream (`>&-`), Python has None in its place; then the text is discarded.
        self._data: TextIO = sys.stdout or io.StringIO()
        self._notes: TextIO = sys.stderr or io.StringIO()

    @property
    def colour_wanted(self) -> bool:
        """Whether standard output is a terminal that shows colours, and the user has not set NO_COLOR."""
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return not self.json_wanted and self._data.isatty()

    @property
    def shows_unicode(self) -> bool:
        """Whether the encoding of standard output has the block characters of charts."""
        try:
            "█░".encode(self._data.encoding or "ascii")
        except (LookupError, UnicodeEncodeError):
            return False
        return True

    def coloured(self, text: str, colour: str) -> str:
        """Return the text in one of this module's colours if colours are wanted, otherwise unchanged."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour_wanted and text else text

    def document(self, value: object) -> None:
        """Write one value as one line of JSON."""
        from routing.documents import as_json

        self._write(self._data, as_json(value))

    def line(self, text: str = "") -> None:
        """Write one line of text for people."""
        self._write(self._data, text)

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], most_important: Sequence[str] = ()
    ) -> None:
        """Write aligned columns under their headers, shortened to the width of the terminal if there is one.

        `most_important` are the headers to keep longest in a narrow terminal; the first of them is never left out.
        """
        self.table_of_pages(headers, [rows], most_important)

    def table_of_pages(
        self,
        headers: Sequence[str],
        pages: Iterable[Sequence[Sequence[object]]],
        most_important: Sequence[str] = (),
    ) -> None:
        """Write one table whose rows arrive page by page; without a page write nothing.

        The first page decides the layout, so that a long history is neither kept in memory nor delayed.
        """
        from .render import layout

        columns = self._terminal_columns()
        found: Layout | None = None
        for rows in pages:
            if found is None:
                found = layout(headers, rows, columns, most_important)
                self.line(found.header)
            for line in found.lines(rows):
                self.line(line)
        if found is not None and found.columns is not None:
            self.note("shortened to fit the terminal; a file, a pipe and --json get everything")

    def next_step(self, text: str) -> None:
        """Write the likely next step to standard error, if a person watches: not for a pipe, and not with JSON."""
        if not self.json_wanted and self._data.isatty() and self._notes.isatty():
            self.note(f"next: {text}")

    def note(self, text: str) -> None:
        """Write one line to standard error."""
        try:
            self._write(self._notes, text)
        except OSError:
            # Nobody reads the notes; the command itself can still succeed.
            return

    def flush(self) -> None:
        """Flush standard output, so that an error of writing is raised here and not when the process ends."""
        self._data.flush()

    def abandon(self) -> None:
        """Redirect standard output to the null device, after its reader has closed it.

        Otherwise the interpreter's own flush at the end would fail and print a traceback.
        """
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._data.fileno())
        except (OSError, ValueError):
            return

    def _terminal_columns(self) -> int | None:
        if not self._data.isatty():
            return None
        import shutil

        return shutil.get_terminal_size().columns

    def _write(self, stream: TextIO, text: str) -> None:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
