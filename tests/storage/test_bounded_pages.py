"""Pages are bounded by bytes: neither a hostile export nor huge events fill the memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import ExportReader, ExportWriter, Head, Row
from ledger.errors import InvalidInput
from ledger.store import contract, export_file
from tests.support.logs import append_in, opened, rows_after

MEGABYTE = 1024 * 1024
MOST_MEGABYTES = 300
"""The largest peak of a process that reads a bomb; the interpreter and the library take about 60 of it."""
BOMB_PARTS = 40
PART_MEGABYTES = 20
"""Decompressed, the bombs have 800 MB; on disk they have less than a megabyte."""

_READ = """
import asyncio, sys
import routing

async def read(path):
    (report,) = await routing.verify(path)
    print(report.first_bad_position, report.findings[0].message[:200])
    try:
        await routing.restore(path, "sqlite:///" + path + ".db")
    except routing.DamagedExport as refused:
        print("refused at", refused.position)

asyncio.run(read(sys.argv[1]))
# The peak of this program: `ru_maxrss` would also count the process that it was forked from.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def bomb(path: Path, part: bytes) -> Path:
    """Write an export whose lines after the header are a part, repeated; gzip allows one member after the other."""
    header = b'{"type":"allowance-ledger-export","version":1,"validator_ss58":"5V"}\n'
    path.write_bytes(gzip.compress(header) + gzip.compress(part) * BOMB_PARTS)
    assert path.stat().st_size < MEGABYTE
    return path


def read_in_a_process(path: Path) -> tuple[list[str], int]:
    """Verify and restore a file in a process of its own; return its lines and its peak of memory in megabytes."""
    done = subprocess.run([sys.executable, "-c", _READ, str(path)], check=True, capture_output=True, text=True)
    *lines, peak = done.stdout.splitlines()
    return lines, int(peak)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A bomb of one endless line becomes a finding that names the line and the limit."""
    (finding, refused), peak = read_in_a_process(bomb(tmp_path / "bomb", b"0" * PART_MEGABYTES * MEGABYTE))
    assert finding.startswith("1 ")
    assert f"line 2 is longer than {export_file.LONGEST_LINE:,} bytes" in finding
    assert refused == "refused at 1"
    assert peak < MOST_MEGABYTES


def test_events_with_huge_payloads_do_not_fill_the_memory(tmp_path: Path) -> None:
    """A bomb of well-formed lines is read to its end, a few events at a time.

    Catches pages that are bounded by rows only: all of these events fit into one page.
    """
    event = {"type": "event", "position": 1, "stream": "s", "version": 1, "recorded_at_ns": 1, "hash": "00"}
    line = json.dumps(event | {"payload": "x" * PART_MEGABYTES * MEGABYTE}).encode() + b"\n"
    (finding, refused), peak = read_in_a_process(bomb(tmp_path / "bomb", line))
    assert (finding[:2], refused) == ("1 ", "refused at 1")
    assert peak < MOST_MEGABYTES


def with_payloads(rows: list[Row], sizes: list[int]) -> list[Row]:
    """Return rows with payloads of other sizes; their hashes do not fit, which no reader of pages checks."""
    return [row._replace(payload=b"x" * size) for row, size in zip(rows, sizes, strict=True)]


@pytest.mark.parametrize("most_bytes", [1, 1000, 2500])
async def test_pages_of_the_log_are_bounded_by_bytes(
    database_url: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends with the row that reaches the bound; the pages together have every row, on each engine."""
    monkeypatch.setattr(contract, "PAGE_BYTES", most_bytes)
    monkeypatch.setattr("ledger.store.postgres.reader.PAGE_BYTES", most_bytes)
    monkeypatch.setattr("ledger.store.postgres.queries.PAGE_BYTES", most_bytes)
    sizes = [10, 1000, 10, 5000, 10, 10, 999, 1, 1, 2000]
    async with opened(database_url) as store:
        rows = with_payloads(rows_after(Head(), len(sizes)), sizes)
        async with store.transaction() as transaction:
            await append_in(transaction, rows)
        stored_pages: list[list[Row]] = []
        while page := await store.read(stored_pages[-1][-1].position if stored_pages else 0):
            stored_pages.append(page)
        async with store.reader() as reader:
            (ledger,) = await reader.ledgers()
            read_pages = [page async for page in reader.pages(ledger)]
    for pages in (stored_pages, read_pages):
        assert [row for page in pages for row in page] == rows
        for page in pages:
            assert sum(len(row.payload) for row in page[:-1]) < most_bytes
        assert len(pages) == len(stored_pages) > 1


async def test_pages_of_an_export_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends with the row that reaches the bound, and no row is lost."""
    monkeypatch.setattr(export_file, "PAGE_BYTES", 1000)
    rows = with_payloads(rows_after(Head(), 4), [600, 600, 10, 10])
    with (tmp_path / "export").open("wb") as stream:
        writer = ExportWriter(stream, "5V")
        writer.write_rows(rows)
        writer.finish()
    reader = ExportReader(tmp_path / "export")
    (stored,) = await reader.ledgers()
    assert [page async for page in reader.pages(stored)] == [rows[:2], rows[2:]]


async def test_the_longest_line_that_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event is exported only if a reader accepts its line; else the export is refused, with its position."""
    monkeypatch.setattr(export_file, "LONGEST_LINE", 1000)
    (small,) = rows_after(Head(), 1)
    fitting = 1000 - len(export_file._encoder.encode(export_file.ExportedEvent.of(small._replace(payload=b"")))) - 1
    with (tmp_path / "export").open("wb") as stream:
        writer = ExportWriter(stream, "5V")
        writer.write_rows([small._replace(payload=b"x" * fitting)])
        with pytest.raises(InvalidInput, match="position 1"):
            writer.write_rows([small._replace(payload=b"x" * (fitting + 1))])
        writer.finish()
    reader = ExportReader(tmp_path / "export")
    (stored,) = await reader.ledgers()
    assert [len(page) async for page in reader.pages(stored)] == [1]
