"""Where a command's words go: data to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from .render import Layout, layout


class Output:
    """Writes what a command has to say, as text or as JSON.

    `json_wanted` decides between the two. Characters that the terminal's encoding lacks are written as
    escapes.
    """

    def __init__(self, *, json_wanted: bool) -> None:
        self.json_wanted = json_wanted
        # Python has none where the shell closed it (`>&-`): then nobody wants to know.
        self._data: TextIO = sys.stdout or io.StringIO()
        self._notes: TextIO = sys.stderr or io.StringIO()

    @property
    def colour_wanted(self) -> bool:
        """Whether a person sees the output in a terminal that shows colours."""
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return not self.json_wanted and self._data.isatty()

    @property
    def shows_unicode(self) -> bool:
        """Whether block characters can be written."""
        try:
            "█░".encode(self._data.encoding or "ascii")
        except (LookupError, UnicodeEncodeError):
            return False
        return True

    def document(self, value: object) -> None:
        """Writes one value as one line of JSON."""
        from .documents import as_json

        self._write(self._data, as_json(value))

    def line(self, text: str = "") -> None:
        """Writes one line of text for people."""
        self._write(self._data, text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Writes aligned columns under their headers; a terminal gets them shortened to its width."""
        self.table_of_pages(headers, [rows])

    def table_of_pages(self, headers: Sequence[str], pages: Iterable[Sequence[Sequence[object]]]) -> None:
        """Writes one table of pages that come one by one, aligned as the first of them; nothing where there is none."""
        columns = shutil.get_terminal_size().columns if self._data.isatty() else None
        found: Layout | None = None
        for rows in pages:
            if found is None:
                found = layout(headers, rows, columns)
                self.line(found.header)
            for line in found.lines(rows):
                self.line(line)
        if found is not None and found.columns is not None:
            self.note("shortened to fit the terminal; whole in a file, in a pipe, and with --json")

    def note(self, text: str) -> None:
        """Writes one line to standard error."""
        try:
            self._write(self._notes, text)
        except OSError:
            # Nobody reads our notes: that is no reason to fail.
            return

    def flush(self) -> None:
        """Hands everything written to the reader."""
        self._data.flush()

    def abandon(self) -> None:
        """Makes sure that the interpreter's last flush does not complain about a reader that has gone."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._data.fileno())
        except (OSError, ValueError):
            return

    def _write(self, stream: TextIO, text: str) -> None:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
