"""Reservations as CSV: one line each, the values as in JSON, blocks as ranges."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import TYPE_CHECKING

from routing.texts import block_ranges

if TYPE_CHECKING:
    from types import SimpleNamespace

    from ledger import Reservation

RESERVATION_COLUMNS = (
    "reservation_id",
    "status",
    "reserved_at",
    "miner_ss58",
    "executor_class",
    "allowance_seconds",
    "blocks",
    "job_uuid",
    "job_start_block",
    "expires_at",
    "settled_at",
    "validator_ss58",
)
"""The fields of a reservation, in the order of the columns."""


def csv_lines(
    reservations: Iterable[Reservation | SimpleNamespace], columns: Sequence[str] = RESERVATION_COLUMNS
) -> Iterator[str]:
    """Yield lines of CSV without their ends: the names of the columns, then one line for each reservation.

    Times are ISO 8601 in UTC, amounts are executor-seconds, blocks are ranges such as `1000-1004, 1007`; a missing
    value is empty. Other objects with the columns as attributes will do.
    """
    yield _line(columns)
    for reservation in reservations:
        yield _line([_text(getattr(reservation, column)) for column in columns])


def _line(cells: Sequence[str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, list):
        return block_ranges(value)
    return str(value)
