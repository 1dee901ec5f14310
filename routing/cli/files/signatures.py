"""What a file is that should hold lines of JSON and begins otherwise."""

from __future__ import annotations

from typing import NamedTuple

from .sources import SQLITE_MAGIC


class FileSignature(NamedTuple):
    """The first bytes of a kind of file, what it is, and what would be right."""

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
        "its lines, as `gunzip` gives them; for a file of `allowance export`, `allowance restore`",
    ),
    FileSignature(
        SQLITE_MAGIC,
        "the file is a SQLite database",
        "lines of JSON; to take over a ledger's database, `allowance restore`",
    ),
)


def signature_of(line: int, text: bytes) -> FileSignature | None:
    """What the file is, where a line is its first and tells; None where it may be lines of JSON."""
    if line > 1:
        return None
    return next((each for each in SIGNATURES if text.startswith(each.first_bytes)), None)
