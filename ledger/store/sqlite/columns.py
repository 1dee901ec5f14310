"""How columns are stored: stream names as numbers, UUIDs as 16 bytes.

Hashes cover the text that a column stands for, so it may be stored in fewer bytes if they restore the text exactly.
The storage class tells both forms apart, so rows that hold the text itself (of older tables, or typed by hand) are
read too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ledger.codec import Row, row_from_columns

COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"

_UUID_CHARACTERS, _UUID_BYTES = 36, 16
_is_uuid = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class StreamNames(dict[Any, Any]):
    """The names of streams by number, looked up once. What is no number is returned as it is: a name, or damage."""

    def __init__(self, look_up: Callable[[int], Any]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, stream: Any) -> Any:
        if type(stream) is not int:
            return stream
        name = self[stream] = self._look_up(stream)
        return name


def narrow(text: str | None) -> str | bytes | None:
    """Return a key or a job's uuid as it is stored: the canonical lower-case text of a UUID as its 16 bytes."""
    if text is None or len(text) != _UUID_CHARACTERS or not _is_uuid(text):
        return text
    return bytes.fromhex(text.replace("-", ""))


def restored(stored: Any) -> Any:
    """Return the text that a stored key or job's uuid stands for; other values are returned as they are."""
    if type(stored) is not bytes or len(stored) != _UUID_BYTES:
        return stored
    digits = stored.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def rows_from(stored: Iterable[tuple[Any, ...]], names: StreamNames) -> Iterator[Row]:
    """Make rows of the columns in `COLUMNS`. The values of a damaged row may have any type."""
    for position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, a_hash in stored:
        yield row_from_columns(
            (
                position,
                names[stream],
                version,
                recorded_at_ns,
                # Most rows have no key, and a call costs more than the comparison.
                None if key is None else restored(key),
                None if job_uuid is None else restored(job_uuid),
                attempt,
                settles,
                payload,
                a_hash,
            )
        )
