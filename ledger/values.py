"""Check values at the public edge and convert them to the units that the ledger uses inside.

Inside, amounts are whole executor-nanoseconds, stakes whole billionths, and instants nanoseconds since the
epoch, all `int`, so that sums are exact and equal on every machine. Decimal input is converted here; a float counts
as the shortest decimal that `repr` prints for it. All checks raise `InvalidInput` with the given field name.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, ROUND_HALF_EVEN, Context, Decimal
from typing import TypeGuard

from .errors import InvalidInput
from .results import Result

NANOSECONDS = 1_000_000_000
PLACES = 9
LARGEST_INTEGER = 2**63 - 1
"""The largest integer that both databases store."""
LONGEST_NAME = 128
"""In characters (this project's own rule; an ss58 address has 48)."""
MOST_SECONDS = 10**9

_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
"""Used instead of the caller's decimal context, which may round or raise."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Miner(Result):
    """A registered miner and its axon, the network address that receives jobs."""

    address: str
    ip_version: int
    port: int
    hotkey_ss58: str


def name(value: object, field: str, longest: int = LONGEST_NAME) -> str:
    """Return `value` as a plain `str` of 1 to `longest` printable characters; a `str` subclass counts as its value."""
    if not isinstance(value, str):
        raise InvalidInput(field, value, f"a string of 1 to {longest} printable characters")
    # Not `str(value)`: an enum of strings overrides it and returns the member's name.
    text = str.__str__(value)
    if not 1 <= len(text) <= longest or not text.isprintable():
        raise InvalidInput(field, text, f"a string of 1 to {longest} printable characters")
    return text


def job_name(value: object, field: str = "job_uuid") -> str:
    """Return a job's uuid as text; a `uuid.UUID` is converted to its usual spelling."""
    return str(value) if isinstance(value, uuid.UUID) else name(value, field)


def integer(value: object, field: str, least: int, most: int = LARGEST_INTEGER) -> int:
    """Return `value` as an `int` in `[least, most]`; a `bool` is refused."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return int(value)
    raise InvalidInput(field, value, f"an integer from {least} to {most}")


def flag(value: object, field: str) -> bool:
    """Return `value`, which must be True or False; a text such as "no" is refused, since it would count as True."""
    if not isinstance(value, bool):
        raise InvalidInput(field, value, "True or False")
    return value


def billionths(value: object, field: str, *, least: int = 0, most: int = LARGEST_INTEGER) -> int:
    """Return an `int`, `float` or `Decimal` as whole billionths, rounded half-even.

    So seconds become nanoseconds. `least` and `most` are limits in billionths. A float counts as the shortest decimal
    that `repr` prints for it, so 0.1 is exactly one tenth.
    """
    # Compared before scaling: as an integer, a `Decimal` such as 1e999999 would fill the memory.
    if is_finite(value) and -LARGEST_INTEGER < value < LARGEST_INTEGER:
        scaled = _scaled(value)
        if least <= scaled <= most:
            return scaled
    raise InvalidInput(field, value, f"a finite number from {least / NANOSECONDS:g} to {most / NANOSECONDS:g}")


def _scaled(value: float | Decimal) -> int:
    if isinstance(value, int):
        return value * NANOSECONDS
    if not isinstance(value, float):
        return int(value.scaleb(PLACES, _EXACT).to_integral_value(ROUND_HALF_EVEN, _EXACT))
    text = float.__repr__(value)
    if "e" in text:
        return _scaled(Decimal(text))
    # Integers, because they are three times as fast as `Decimal`, and every pick converts three amounts.
    whole, _, fraction = text.partition(".")
    surplus = len(fraction) - PLACES
    if surplus <= 0:
        return int(whole + fraction + "0" * -surplus)
    unit: int = 10**surplus
    scaled, rest = divmod(int(whole + fraction), unit)
    return scaled + (2 * rest > unit or (2 * rest == unit and scaled % 2 == 1))


def is_finite(value: object) -> TypeGuard[int | float | Decimal]:
    """Return whether `value` is a finite number; a `bool` is not a number here."""
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def amount(value: object, field: str) -> int:
    """Return an amount of executor-seconds in ns; at most `MOST_SECONDS`, which exceeds every possible job."""
    # A huge amount is no malformed input: the caller must learn the limit of a job, or that no miner has so much.
    if is_finite(value) and value >= 0:
        return billionths(MOST_SECONDS if value > MOST_SECONDS else value, field)
    raise InvalidInput(field, value, "a finite number of seconds, 0 or more")


def seconds(amount_ns: int) -> float:
    """Return nanoseconds as seconds, for the public edge only: floats are inexact."""
    return amount_ns / NANOSECONDS


def instant_ns(value: object, field: str) -> int:
    """Return an aware `datetime` as nanoseconds since the epoch."""
    if not isinstance(value, datetime) or value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInput(field, value, "an aware datetime, such as datetime.now(UTC)")
    at_ns = (value - _EPOCH) // _MICROSECOND * 1000
    if not 0 <= at_ns <= LARGEST_INTEGER:
        raise InvalidInput(field, value, "a time from 1970 to 2262")
    return at_ns


def storable_ns(at_ns: int) -> int:
    """Return an instant, or the limit of the databases if it is beyond.

    Earlier releases stored due times beyond the limit, if a clock was near it, and a forged log may have any number.
    """
    # Not by `min` and `max`: each reservation of a fold comes through here, and nearly all are within the limit.
    if -LARGEST_INTEGER <= at_ns <= LARGEST_INTEGER:
        return at_ns
    return LARGEST_INTEGER if at_ns > 0 else -LARGEST_INTEGER


def instant(at_ns: int) -> datetime:
    """Return nanoseconds since the epoch as an aware UTC `datetime`, cut to the microsecond.

    An instant that no database stores is shown as the limit, in the year 2262 (or 1677).
    """
    return _EPOCH + timedelta(microseconds=storable_ns(at_ns) // 1000)


def executor_counts(value: object, field: str) -> dict[str, int]:
    """Return a checked copy of `{executor_class: count}`."""
    if not isinstance(value, Mapping):
        raise InvalidInput(field, value, "a mapping {executor_class: count}")
    return {
        name(executor_class, f"{field}: executor_class"): integer(count, f"{field}[{executor_class!r}]", 0, 10**9)
        for executor_class, count in value.items()
    }
