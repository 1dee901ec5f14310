"""A whole ledger in a file: gzipped lines of JSON, each with a `type`.

The first line names the format and the validator. Then follows one line per event, with every column as it is stored.
The last line holds the number of events and the head; a file without it is incomplete. Equal logs give equal files.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec

from ledger.codec import Row
from ledger.domain.lookup import Head
from ledger.errors import CorruptLedger, InvalidInput, NewerLedger, StorageUnavailable

from .contract import PAGE_BYTES, PAGE_ROWS, payload_bytes
from .reader import StoredLedger

EXPORT_VERSION = 1
# In bytes, far longer than any event. Without a limit a small file of zeros, compressed, could fill the memory.
LONGEST_LINE = 32 * 1024 * 1024
LONGEST_HEADER = 64 * 1024
# In characters, far longer than any name. A reader remembers every stream, so these must be bounded too.
LONGEST_TEXT = 1024
# zlib's own default. Explicit, because Python's gzip would use 9, which takes longer for hardly smaller files.
COMPRESSION = 6
EXPECTED = "a file that `allowance export` wrote"

# Errors of a file that was truncated, damaged, or never compressed.
_TRUNCATED = (EOFError, zlib.error, gzip.BadGzipFile)


_Text = Annotated[str, msgspec.Meta(max_length=LONGEST_TEXT)]


class ExportHeader(msgspec.Struct, frozen=True, tag="allowance-ledger-export", forbid_unknown_fields=True):
    """The first line."""

    version: int
    validator_ss58: str


class ExportedEvent(msgspec.Struct, frozen=True, tag="event", omit_defaults=True, forbid_unknown_fields=True):
    """An event's line: `hash` in hexadecimal digits, the payload as text, or in base64 if it is not valid UTF-8."""

    position: int
    stream: _Text
    version: int
    recorded_at_ns: int
    hash: _Text
    key: _Text | None = None
    job_uuid: _Text | None = None
    attempt: int | None = None
    settles: int | None = None
    payload: str | None = None
    payload_base64: bytes | None = None

    @classmethod
    def of(cls, row: Row) -> ExportedEvent:
        """Convert a row to its line."""
        position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, a_hash = row
        columns = (position, stream, version, recorded_at_ns, a_hash.hex(), key, job_uuid, attempt, settles)
        try:
            return cls(*columns, payload.decode())
        except UnicodeDecodeError:
            return cls(*columns, None, payload)

    def row(self) -> Row:
        """Convert the line to its row. Raises `ValueError` if it describes none."""
        if (self.payload is None) == (self.payload_base64 is None):
            raise ValueError("an event must have exactly one of payload and payload_base64")
        payload = self.payload_base64 if self.payload is None else self.payload.encode()
        assert payload is not None
        columns = (self.position, self.stream, self.version, self.recorded_at_ns)
        optional = (self.key, self.job_uuid, self.attempt, self.settles)
        return Row(*columns, *optional, payload, bytes.fromhex(self.hash))


class ExportEnd(msgspec.Struct, frozen=True, tag="end", forbid_unknown_fields=True):
    """The last line: the number of events before it, and the head after them."""

    events: int
    position: int
    hash: str
    recorded_at_ns: int


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[ExportedEvent | ExportEnd] = msgspec.json.Decoder(ExportedEvent | ExportEnd)


class ExportWriter:
    """Writes a ledger to a stream of bytes: `write_rows` for each page, then `finish`; `close` in any case."""

    def __init__(self, stream: IO[bytes], validator_ss58: str) -> None:
        self._sink = _Sink(stream)
        # Neither a file name nor a time in gzip's header: equal ledgers then give equal bytes.
        self._file = gzip.GzipFile("", "wb", COMPRESSION, self._sink, mtime=0)
        self._head = Head()
        self._write([ExportHeader(EXPORT_VERSION, validator_ss58)])

    def write_rows(self, rows: list[Row]) -> None:
        """Write the rows that follow those already written."""
        for row in rows:
            _check_fits(row)
        self._write([ExportedEvent.of(row) for row in rows])
        self._head = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)

    def finish(self) -> None:
        """Write the last line, by which a reader recognises a complete file."""
        position, a_hash, recorded_at_ns = self._head
        self._write([ExportEnd(position, position, a_hash.hex(), recorded_at_ns)])
        self._file.close()

    def close(self) -> None:
        """Write nothing more. Without `finish` before it, the stream holds a recognizably incomplete file."""
        self._sink.discards = True
        self._file.close()

    def _write(self, lines: Iterable[msgspec.Struct]) -> None:
        self._file.write(_encoder.encode_lines(lines))


class _Sink:
    """Passes bytes on to a stream, until one write fails or the export is abandoned.

    A `GzipFile` writes buffered bytes and a trailer when it is closed or collected. After a failure that would fail
    again, and Python reports an exception that it can raise to nobody.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.discards = False

    def write(self, data: bytes) -> int:
        if self.discards:
            return len(data)
        try:
            return self._stream.write(data)
        except BaseException:
            self.discards = True
            raise

    def flush(self) -> None:
        """Do nothing: the caller who passed the stream flushes it."""


class ExportReader:
    """A `LogReader` of a file that `ExportWriter` wrote and that may be damaged since; it holds one ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end: ExportEnd | None = None

    async def ledgers(self) -> list[StoredLedger]:
        """Return the file's ledger. Raises `InvalidInput` if it is not an export, and `NewerLedger`."""
        with self._opened() as file:
            return [StoredLedger(1, self._header(file).validator_ss58)]

    async def pages(self, stored: StoredLedger, after: int | None = None) -> AsyncIterator[list[Row]]:
        with self._opened() as file:
            self._header(file)
            page: list[Row] = []
            size = last = 0
            self._end = None
            try:
                for row in self._rows(file):
                    page.append(row)
                    size += payload_bytes(row)
                    last = row.position
                    if len(page) == PAGE_ROWS or size >= PAGE_BYTES:
                        yield page
                        page, size = [], 0
            except (ValueError, *_TRUNCATED) as cause:
                # The rows before the damage are good. A check needs them to name the position of the first bad one.
                if page:
                    yield page
                reason = f"the file is damaged or truncated after the event at {last}: {cause}"
                raise CorruptLedger(last + 1, reason) from cause
            if page:
                yield page

    async def head(self, stored: StoredLedger) -> StoredLedger:
        """Return the head from the last line, once all pages are read; `has_head` is False if the line is missing."""
        end = self._end
        if end is None:
            return stored._replace(has_head=False)
        try:
            a_hash = bytes.fromhex(end.hash)
        except ValueError:
            a_hash = b""
        return stored._replace(position=end.position, hash=a_hash, recorded_at_ns=end.recorded_at_ns)

    async def versions(self, stored: StoredLedger) -> dict[Any, Any]:
        return {}

    def check_unchanged(self) -> None:
        """Do nothing: an export is written under another name and renamed when complete, so it never changes."""

    def _rows(self, file: gzip.GzipFile) -> Iterator[Row]:
        count = 0
        while True:
            # The header is line 1.
            line = _line(file, count + 2)
            if not line:
                raise EOFError("the last line, of type end, is missing")
            decoded = _decoder.decode(line)
            if isinstance(decoded, ExportEnd):
                break
            count += 1
            yield decoded.row()
        if decoded.events != count:
            raise ValueError(f"the last line counts {decoded.events} events, but the file has {count}")
        if _line(file, count + 3):
            raise ValueError("the file goes on after the last line")
        self._end = decoded

    def _header(self, file: gzip.GzipFile) -> ExportHeader:
        try:
            line = _line(file, 1, LONGEST_HEADER)
            # Only the version first: a newer release's header may have fields that this release would refuse.
            version = msgspec.json.decode(line, type=_ExportVersion).version
            if version > EXPORT_VERSION:
                raise NewerLedger("the export's format version", version, EXPORT_VERSION)
            return msgspec.json.decode(line, type=ExportHeader)
        except (ValueError, *_TRUNCATED):
            raise InvalidInput("source", str(self._path), EXPECTED) from None

    @contextmanager
    def _opened(self) -> Iterator[gzip.GzipFile]:
        try:
            stream = gzip.open(self._path, "rb")  # noqa: SIM115 - closed below; an error of the body is not about opening
        except (OSError, ValueError) as cause:
            reason = getattr(cause, "strerror", None) or str(cause)
            raise InvalidInput("source", str(self._path), f"a file that can be read ({reason})") from cause
        with stream:
            try:
                yield stream
            except OSError as cause:
                raise StorageUnavailable(f"{self._path} cannot be read: {cause}") from cause


class _ExportVersion(msgspec.Struct, tag="allowance-ledger-export"):
    version: int


def _check_fits(row: Row) -> None:
    """Raise `InvalidInput` for an event whose line no reader would accept; a backup must be restorable."""
    # JSON may write a byte as six characters, so only the lines of very long events need to be measured.
    if 8 * payload_bytes(row) > LONGEST_LINE and len(_encoder.encode(ExportedEvent.of(row))) >= LONGEST_LINE:
        message = f"the event at position {row.position} is too long for a line of an export, {LONGEST_LINE:,} bytes"
        raise InvalidInput("payload", row.position, "shorter", message)


def _line(file: gzip.GzipFile, number: int, longest: int = LONGEST_LINE) -> bytes:
    line = file.readline(longest + 1)
    if len(line) > longest:
        raise ValueError(f"line {number:,} is longer than {longest:,} bytes")
    return line
