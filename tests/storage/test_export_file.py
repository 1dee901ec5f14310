"""An export that fails leaves nothing open and writes nothing more."""

from __future__ import annotations

import gc
import io
from typing import Any

import pytest

from ledger import ExportWriter, Head
from tests.support.logs import rows_after

pytestmark = pytest.mark.compatibility


class FullDisk(io.BytesIO):
    """A stream that has room for some bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError("no space left")
        return super().write(data)


@pytest.mark.parametrize("room", [0, 5, 12, 100])
def test_a_failed_write_is_raised_once(room: int) -> None:
    """Neither closing nor collecting the writer repeats the error.

    Catches a gzip file that writes its trailer when it is collected: Python 3.13 reports that it failed.
    """
    with pytest.raises(OSError, match="no space left"):
        write_until_full(room)

    gc.collect()


def write_until_full(room: int) -> None:
    writer = ExportWriter(FullDisk(room), "5Validator")
    try:
        writer.write_rows(rows_after(Head(), 3000))
        writer.finish()
    finally:
        writer.close()


def test_an_abandoned_export_writes_nothing_more() -> None:
    """Closed without an end, the file is a part of one, and stays so."""
    stream = io.BytesIO()
    writer = ExportWriter(stream, "5Validator")
    writer.write_rows(rows_after(Head(), 3000))
    written = stream.getvalue()

    writer.close()
    gc.collect()

    assert stream.getvalue() == written
