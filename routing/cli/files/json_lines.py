"""Files with one JSON object per line: reading lines as they arrive, and describing a bad one.

`FACTS.jsonl` and `RECEIPTS.jsonl` share this.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any, NamedTuple

from routing.cli.io.errors import WrongInput
from routing.cli.sources import SQLITE_MAGIC
from routing.texts import printable

CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 16 << 20
"""Room for the metagraph of a very large network; a file without line ends must not fill the memory."""
LONGEST_PROBLEM = 300
"""How many characters of a decoder's message are shown: it may quote a long line."""


class BadLine(WrongInput):
    """A line is not valid: `problem` says what is wrong, `expected` what would be right."""

    def __init__(self, line: int, problem: str, expected: str) -> None:
        super().__init__(
            f"line {line}: {problem}; right would be {expected}",
            line=line,
            problem=problem,
            expected=expected,
        )


class FileSignature(NamedTuple):
    """The first bytes of another kind of file, what is wrong with it, and what would be right."""

    first_bytes: bytes
    problem: str
    expected: str


SIGNATURES = (
    FileSignature(b"\xef\xbb\xbf", "the file begins with a byte order mark", "the same lines in UTF-8 without one"),
    FileSignature(b"\xff\xfe", "the file is in UTF-16", "the same lines in UTF-8"),
    FileSignature(b"\xfe\xff", "the file is in UTF-16", "the same lines in UTF-8"),
    FileSignature(
        b"\x1f\x8b",
        "the file is compressed by gzip",
        "the lines that `gunzip` extracts from it; `allowance restore` reads a file of `allowance export`",
    ),
    FileSignature(
        SQLITE_MAGIC,
        "the file is a SQLite database",
        "lines of JSON; `allowance restore` copies a ledger from a database",
    ),
)


def lines_as_they_arrive(stream: BufferedIOBase) -> Iterator[list[bytes]]:
    """Yield the lines that each read completes, without their line ends.

    `read1` returns what a pipe has, so a line of a live feed does not wait until a chunk is full. Reading ends at a
    line longer than `LONGEST_LINE_BYTES`, which is yielded incomplete: it is bad in any case.
    """
    chunks: list[bytes] = []
    waiting_bytes = 0
    while chunk := stream.read1(CHUNK_BYTES):
        complete, line_end, rest = chunk.rpartition(b"\n")
        if not line_end:
            chunks.append(chunk)
            waiting_bytes += len(chunk)
            if waiting_bytes > LONGEST_LINE_BYTES:
                break
            continue
        yield (b"".join(chunks) + complete).split(b"\n")
        chunks, waiting_bytes = [rest], len(rest)
    last = b"".join(chunks)
    if last:
        yield [last]


def signature_of(line: int, text: bytes) -> FileSignature | None:
    """Return the kind of file that begins like this; None if it may be lines of JSON.

    Only the first line can tell: `line` counts from 1.
    """
    if line > 1:
        return None
    return next((each for each in SIGNATURES if text.startswith(each.first_bytes)), None)


def check_length(text: bytes) -> None:
    """Raise `ValueError` for a line that is too long, before it is decoded; `problem_of` describes it."""
    if len(text) > LONGEST_LINE_BYTES:
        raise ValueError("too long")


def problem_of(text: bytes, error: Exception) -> str:
    """Return what is wrong with a line, given the error of decoding it; printable and without line ends."""
    if len(text) > LONGEST_LINE_BYTES:
        return f"longer than {LONGEST_LINE_BYTES:,} bytes"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start}): {error.reason}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return printable(str(error)[:LONGEST_PROBLEM])


def refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs, as an `object_pairs_hook` of `json`; raise `ValueError` if a name repeats.

    JSON decoders silently use the last value of a repeated name, which would lose the others.
    """
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {name!r} is there twice in one object")
            seen.add(name)
    return names
