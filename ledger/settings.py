"""The settings that determine what the numbers of a ledger mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from .errors import InvalidInput
from .results import Result
from .values import LARGEST_INTEGER, NANOSECONDS, billionths, executor_counts, integer, seconds

# The limits below are this project's choice.
LONGEST_BLOCK_SECONDS = 3600
LONGEST_MULTIPLIER = 100
"""In characters of a multiplier that is given as text."""
LARGEST_MULTIPLIER = 1000
"""Together with blocks of at most an hour, it keeps the sum of 512 blocks' units below 2^63 ns, an array's limit."""
UUID: Final = "uuid"
UUID_AND_HASH: Final = "uuid_and_hash"
"""The values of `tie_break`: what the seed of the tie-break is made of."""
BY_ALLOWANCE: Final = "allowance"
BY_RELIABILITY: Final = "reliability"
"""The values of `routing_order`."""
LARGEST_COLLATERAL_WEI = 2**127
HOUR_NS = 3600 * NANOSECONDS
ROUTING_DEFAULTS: Final[dict[str, Any]] = {
    "minimum_collateral_wei": 0,
    "routing_order": BY_ALLOWANCE,
    "reliability_window_ns": 24 * HOUR_NS,
    "reliability_soft_cutoff_billionths": -50 * NANOSECONDS,
    "reliability_separation_billionths": 5 * NANOSECONDS,
}
"""The fields of `RecordedSettings` that are unset at their defaults."""
_huge_exponent = re.compile(r"[eE][+-]?[\d_]{3}")
"""In the text of a multiplier; `Fraction` would expand it and fill the memory before the range is checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Result):
    """The parameters of a ledger's rules; recorded as an event, and applied to everything after that event.

    Durations are seconds, ages are blocks. Raises `InvalidInput` for a value out of its range.
    """

    # Defaults with ComputeHorde as their source must stay equal to its validator's, or the two disagree on amounts.
    block_expiry_blocks: int = 722
    """The age up to which a block's allowance is usable at the job's start. Source: ComputeHorde's validator."""
    reservation_margin_seconds: float = 100.0
    """Added to a reservation's amount to give its due time. Source: ComputeHorde's validator."""
    longest_job_seconds: float = 3600.0
    """The largest amount of one reservation. Source: ComputeHorde's validator."""
    long_block_seconds: float = 12.5
    """A longer block counts as `long_block_counts_as_seconds`. Source: ComputeHorde's validator."""
    long_block_counts_as_seconds: float = 12.0
    """The duration of such a block; a block normally lasts 12 s. Source: ComputeHorde's validator."""
    allowance_multiplier: Fraction | int | str = Fraction(1)
    """Scales what every block grants. Exact: a `Fraction`, an `int`, or a decimal string (this project's choice)."""
    executors_max_per_class: Mapping[str, int] = field(default_factory=dict)
    """The most executors counted per miner, by class; 0 switches a class off. Source: ComputeHorde's validator."""
    validation_leeway_lower_blocks: int = 15
    """How many blocks older than `block_expiry_blocks` a receipt may use. Source: ComputeHorde's validator."""
    validation_leeway_upper_blocks: int = 0
    """How many blocks newer than the job's start a receipt may use. Source: ComputeHorde's validator."""
    respect_executor_count: bool = True
    """Whether to skip miners that run as many jobs as they have executors. Source: ComputeHorde's validator."""
    newest_block_max_age_seconds: float | None = None
    """The router refuses to choose if the newest block is older; None never refuses (this project's choice)."""
    newest_manifests_max_age_blocks: int | None = None
    """The router refuses to choose if the newest sync is further behind the newest block; None never refuses (this
    project's choice)."""
    tie_break: str = UUID_AND_HASH
    """What the tie-break's seed is made of: `uuid_and_hash`, the job's uuid and the newest block's hash, or `uuid`, the
    uuid alone. Opening applies it to a new ledger only; `change_settings` changes it (this project's own rule)."""

    minimum_collateral_wei: int = 0
    """The router refuses miners whose recorded collateral is lower; 0 checks none. Source: ComputeHorde's validator."""
    routing_order: str = BY_ALLOWANCE
    """The order in which a job tries its candidates: `allowance`, or `reliability`, a draw weighted by incidents.
    Source of the second: ComputeHorde's validator."""
    reliability_window_hours: float = 24.0
    """How old an incident may be to count. Source: ComputeHorde's validator."""
    reliability_soft_cutoff: float = -50.0
    """The score, below 0, at which a miner hardly gets jobs any more. Source: ComputeHorde's validator."""
    reliability_separation: float = 5.0
    """How steeply the weight falls around half of the cutoff. Source: ComputeHorde's validator."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowance_multiplier", _multiplier(self.allowance_multiplier))
        caps = executor_counts(self.executors_max_per_class, "executors_max_per_class")
        object.__setattr__(self, "executors_max_per_class", dict(sorted(caps.items())))
        if not isinstance(self.respect_executor_count, bool):
            raise InvalidInput("respect_executor_count", self.respect_executor_count, "True or False")
        object.__setattr__(self, "tie_break", _choice(self.tie_break, "tie_break", (UUID_AND_HASH, UUID)))
        order = _choice(self.routing_order, "routing_order", (BY_ALLOWANCE, BY_RELIABILITY))
        object.__setattr__(self, "routing_order", order)
        integer(self.minimum_collateral_wei, "minimum_collateral_wei", 0, LARGEST_COLLATERAL_WEI)
        for ages in (
            "block_expiry_blocks",
            "validation_leeway_lower_blocks",
            "validation_leeway_upper_blocks",
        ):
            integer(getattr(self, ages), ages, 0, 10**9)
        if self.newest_manifests_max_age_blocks is not None:
            integer(self.newest_manifests_max_age_blocks, "newest_manifests_max_age_blocks", 0, 10**9)
        self.to_recorded()  # Checks the durations, which are converted there.

    def to_recorded(self) -> RecordedSettings:
        """Return these settings in the exact form in which events store them."""
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
            newest_manifests_max_age_blocks=self.newest_manifests_max_age_blocks,
            tie_break=UUID_AND_HASH if self.tie_break == UUID_AND_HASH else UNSET,
            **self._recorded_routing(),
        )

    def _recorded_routing(self) -> dict[str, Any]:
        """Return the settings that older logs do not have; unset if they have their defaults."""
        window, cutoff, separation = (
            billionths(self.reliability_window_hours, "reliability_window_hours", least=1, most=10**4 * NANOSECONDS),
            billionths(self.reliability_soft_cutoff, "reliability_soft_cutoff", least=-(10**6) * NANOSECONDS, most=-1),
            billionths(self.reliability_separation, "reliability_separation", least=0, most=10**3 * NANOSECONDS),
        )
        values = (self.minimum_collateral_wei, self.routing_order, window * 3600, cutoff, separation)
        return {
            field: UNSET if value == default else value
            for (field, default), value in zip(ROUTING_DEFAULTS.items(), values, strict=True)
        }


class RecordedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`Settings` as events store them: exact, in nanoseconds and billionths, every field written unless unset.

    A new field must have a default, which then is its meaning in all older logs. An unset `tie_break` stands for
    `uuid`, which is the rule of all logs that do not have the field.
    """

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
    newest_manifests_max_age_blocks: int | None = None
    tie_break: Literal["uuid_and_hash"] | UnsetType = UNSET
    # These are unset if they have their defaults: the meaning of all logs that do not have the fields.
    minimum_collateral_wei: int | UnsetType = UNSET
    routing_order: Literal["reliability"] | UnsetType = UNSET
    reliability_window_ns: int | UnsetType = UNSET
    reliability_soft_cutoff_billionths: int | UnsetType = UNSET
    reliability_separation_billionths: int | UnsetType = UNSET

    @property
    def has_routing(self) -> bool:
        """Whether a setting makes more than the allowance decide who is a candidate, and in which order."""
        return self.minimum_collateral_wei is not UNSET or self.routing_order is not UNSET

    def routing(self, field: str) -> Any:
        """Return the value of one of `ROUTING_DEFAULTS`."""
        value = getattr(self, field)
        return ROUTING_DEFAULTS[field] if value is UNSET else value

    def to_settings(self) -> Settings:
        """Return these settings in their public form."""
        return Settings(**self.to_fields())

    def changed(self, named: Mapping[str, Any]) -> RecordedSettings:
        """Return these settings with the named fields of `Settings` changed, and checked as a whole.

        Raises `InvalidInput` if a field does not exist, or if a value is out of its range.
        """
        unknown = [field for field in named if field not in FIELDS]
        if unknown:
            raise InvalidInput("settings", ", ".join(unknown), f"fields of Settings, which are {', '.join(FIELDS)}")
        checked = Settings(**{**self.to_fields(), **named}).to_recorded()
        # Only the named ones: a duration that went through float seconds may differ by a nanosecond.
        recorded = map(_recorded_name, named)
        return msgspec.structs.replace(self, **{field: getattr(checked, field) for field in recorded})

    def named_values(self, named: Iterable[str]) -> dict[str, Any]:
        """Return the recorded values of the named fields of `Settings`; None for an unset one."""
        values = {field: getattr(self, field) for field in map(_recorded_name, named)}
        return {field: None if value is UNSET else value for field, value in values.items()}

    def differences(self, later: RecordedSettings) -> dict[str, tuple[Any, Any]]:
        """Return the public values (old, new) of the fields in which later settings differ, by field."""
        old, new = self.to_fields(), later.to_fields()
        changed = (
            field for field in FIELDS if getattr(self, _recorded_name(field)) != getattr(later, _recorded_name(field))
        )
        return {field: (old[field], new[field]) for field in changed}

    def to_fields(self) -> dict[str, Any]:
        """Return the values of `Settings` by field, in public units."""
        age_ns = self.newest_block_max_age_ns
        return {
            "block_expiry_blocks": self.block_expiry_blocks,
            "reservation_margin_seconds": seconds(self.reservation_margin_ns),
            "longest_job_seconds": seconds(self.longest_job_ns),
            "long_block_seconds": seconds(self.long_block_ns),
            "long_block_counts_as_seconds": seconds(self.long_block_counts_as_ns),
            "allowance_multiplier": self.allowance_multiplier,
            "executors_max_per_class": self.executors_max_per_class,
            "validation_leeway_lower_blocks": self.validation_leeway_lower_blocks,
            "validation_leeway_upper_blocks": self.validation_leeway_upper_blocks,
            "respect_executor_count": self.respect_executor_count,
            "newest_block_max_age_seconds": None if age_ns is None else seconds(age_ns),
            "newest_manifests_max_age_blocks": self.newest_manifests_max_age_blocks,
            "tie_break": UUID if self.tie_break is UNSET else self.tie_break,
            "minimum_collateral_wei": self.routing("minimum_collateral_wei"),
            "routing_order": self.routing("routing_order"),
            "reliability_window_hours": self.routing("reliability_window_ns") / HOUR_NS,
            "reliability_soft_cutoff": self.routing("reliability_soft_cutoff_billionths") / NANOSECONDS,
            "reliability_separation": self.routing("reliability_separation_billionths") / NANOSECONDS,
        }


FIELDS = tuple(each.name for each in fields(Settings))
"""The names of the settings, in the order of their definition."""


_RECORDED_NAMES = {
    "reliability_window_hours": "reliability_window_ns",
    "reliability_soft_cutoff": "reliability_soft_cutoff_billionths",
    "reliability_separation": "reliability_separation_billionths",
}


def _recorded_name(field: str) -> str:
    """Return the name of a setting in `RecordedSettings`, which has whole numbers."""
    if field in _RECORDED_NAMES:
        return _RECORDED_NAMES[field]
    return f"{field.removesuffix('_seconds')}_ns" if field.endswith("_seconds") else field


def _duration(value: object, field_name: str, most_seconds: int = 100 * 86_400) -> int:
    """Return seconds as nanoseconds, by default a hundred days at most (this project's choice)."""
    return billionths(value, field_name, most=most_seconds * NANOSECONDS)


def _choice(value: object, field_name: str, choices: tuple[str, str]) -> str:
    """Return one of the values of a setting as a plain `str`; an enum of strings counts as its value."""
    text = str.__str__(value) if isinstance(value, str) else value
    if text in choices:
        return str(text)
    raise InvalidInput(field_name, value, " or ".join(map(repr, choices)))


def _multiplier(value: object) -> Fraction:
    """Return the multiplier as an exact fraction; floats are refused because they only look exact."""
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
