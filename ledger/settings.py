"""The settings that decide what the numbers of a ledger mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import msgspec

from .errors import InvalidInput
from .values import LARGEST_INTEGER, NANOSECONDS, billionths, executor_counts, integer, seconds

LONGEST_BLOCK_SECONDS = 3600
LONGEST_MULTIPLIER = 100
LARGEST_MULTIPLIER = 1000
"""With a block of an hour at the most, the units of 512 blocks add up to less than 2^63 ns."""
_huge_exponent = re.compile(r"[eE][+-]?[\d_]{3}")
"""In a multiplier's text: as a fraction it would fill the memory before it could be refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a ledger's numbers depend on; recorded in the ledger, applied from there on.

    Durations are seconds, ages are blocks. `allowance_multiplier` is exact: a `Fraction`, an `int`, or a
    decimal string. `executors_max_per_class` caps the executors counted per miner and class; 0 switches a
    class off. Raises `InvalidInput` for what cannot be meant.
    """

    block_expiry_blocks: int = 722
    reservation_margin_seconds: float = 100.0
    longest_job_seconds: float = 3600.0
    long_block_seconds: float = 12.5
    long_block_counts_as_seconds: float = 12.0
    allowance_multiplier: Fraction | int | str = Fraction(1)
    executors_max_per_class: Mapping[str, int] = field(default_factory=dict)
    validation_leeway_lower_blocks: int = 15
    validation_leeway_upper_blocks: int = 0
    respect_executor_count: bool = True
    newest_block_max_age_seconds: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowance_multiplier", _multiplier(self.allowance_multiplier))
        caps = executor_counts(self.executors_max_per_class, "executors_max_per_class")
        object.__setattr__(self, "executors_max_per_class", dict(sorted(caps.items())))
        if not isinstance(self.respect_executor_count, bool):
            raise InvalidInput("respect_executor_count", self.respect_executor_count, "True or False")
        for ages in (
            "block_expiry_blocks",
            "validation_leeway_lower_blocks",
            "validation_leeway_upper_blocks",
        ):
            integer(getattr(self, ages), ages, 0, 10**9)
        self.to_recorded()

    def to_recorded(self) -> RecordedSettings:
        """The exact form in which these settings are recorded."""
        age = self.newest_block_max_age_seconds
        return RecordedSettings(
            block_expiry_blocks=self.block_expiry_blocks,
            reservation_margin_ns=_duration(self.reservation_margin_seconds, "reservation_margin_seconds"),
            longest_job_ns=_duration(self.longest_job_seconds, "longest_job_seconds"),
            long_block_ns=_duration(self.long_block_seconds, "long_block_seconds", LONGEST_BLOCK_SECONDS),
            long_block_counts_as_ns=_duration(
                self.long_block_counts_as_seconds, "long_block_counts_as_seconds", LONGEST_BLOCK_SECONDS
            ),
            allowance_multiplier=str(self.allowance_multiplier),
            executors_max_per_class=dict(self.executors_max_per_class),
            validation_leeway_lower_blocks=self.validation_leeway_lower_blocks,
            validation_leeway_upper_blocks=self.validation_leeway_upper_blocks,
            respect_executor_count=self.respect_executor_count,
            newest_block_max_age_ns=None if age is None else _duration(age, "newest_block_max_age_seconds"),
        )


class RecordedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`Settings` as they stand in an event: exact, in nanoseconds, all of them; a new field must have a default."""

    block_expiry_blocks: int = 722
    reservation_margin_ns: int = 100_000_000_000
    longest_job_ns: int = 3_600_000_000_000
    long_block_ns: int = 12_500_000_000
    long_block_counts_as_ns: int = 12_000_000_000
    allowance_multiplier: str = "1"
    executors_max_per_class: dict[str, int] = {}
    validation_leeway_lower_blocks: int = 15
    validation_leeway_upper_blocks: int = 0
    respect_executor_count: bool = True
    newest_block_max_age_ns: int | None = None

    def to_settings(self) -> Settings:
        """The public form of these settings."""
        age_ns = self.newest_block_max_age_ns
        return Settings(
            block_expiry_blocks=self.block_expiry_blocks,
            reservation_margin_seconds=seconds(self.reservation_margin_ns),
            longest_job_seconds=seconds(self.longest_job_ns),
            long_block_seconds=seconds(self.long_block_ns),
            long_block_counts_as_seconds=seconds(self.long_block_counts_as_ns),
            allowance_multiplier=self.allowance_multiplier,
            executors_max_per_class=self.executors_max_per_class,
            validation_leeway_lower_blocks=self.validation_leeway_lower_blocks,
            validation_leeway_upper_blocks=self.validation_leeway_upper_blocks,
            respect_executor_count=self.respect_executor_count,
            newest_block_max_age_seconds=None if age_ns is None else seconds(age_ns),
        )


def _duration(value: object, field_name: str, most_seconds: int = 100 * 86_400) -> int:
    """Seconds as nanoseconds, a hundred days at the most."""
    return billionths(value, field_name, most=most_seconds * NANOSECONDS)


def _multiplier(value: object) -> Fraction:
    """The multiplier as an exact fraction; floats are refused because they only look exact."""
    expected = f"a Fraction, an int, or a decimal string from 0 to {LARGEST_MULTIPLIER}"
    if isinstance(value, bool) or not isinstance(value, (Fraction, int, str)):
        raise InvalidInput("allowance_multiplier", value, expected)
    if isinstance(value, str) and (len(value) > LONGEST_MULTIPLIER or _huge_exponent.search(value)):
        raise InvalidInput("allowance_multiplier", value, expected)
    try:
        fraction = Fraction(value)
    except (ValueError, ZeroDivisionError) as cause:
        raise InvalidInput("allowance_multiplier", value, expected) from cause
    if not 0 <= fraction <= LARGEST_MULTIPLIER or fraction.denominator > LARGEST_INTEGER:
        raise InvalidInput("allowance_multiplier", value, expected)
    return fraction
