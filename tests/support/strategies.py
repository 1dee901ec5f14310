"""Hypothesis strategies and constants for small test networks: few names, close blocks, limits within reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .reference import SECOND_NS, Axon, Counts, Rules
from .reference_miner_facts import (
    Collateral,
    EndElsewhere,
    Exclusion,
    Fact,
    Incident,
    JobElsewhere,
    Readmission,
)

MakeFact = Callable[[int], Fact]
"""Makes a miner fact, given the time."""

ME = "validator-of-ours"
VALIDATORS = (ME, "validator-two", "validator-three")
MINERS = ("miner-a", "miner-b", "miner-c", "miner-d")
STRANGER = "miner-of-nobody"
CLASSES = ("always_on.gpu-24gb", "spin_up-4min.gpu-24gb")
UNKNOWN_CLASS = "always_on.abacus"

CHAIN_START_NS = 1_704_110_400 * SECOND_NS
"""The time of block 0, which does not exist: numbers start at 1."""
CLOCK_START_NS = CHAIN_START_NS + 3600 * SECOND_NS


class Clock:
    """A clock that stands still until a test sets it."""

    def __init__(self, now_ns: int = CLOCK_START_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


@dataclass(frozen=True)
class JobRequest:
    """The fields of a job that routing reads; limits are seconds."""

    uuid: str
    executor_class: str
    download_time_limit: float
    execution_time_limit: float
    upload_time_limit: float
    on_trusted_miner: bool = False

    @property
    def limits_seconds(self) -> tuple[float, float, float]:
        """The three limits; their sum is the amount of the job."""
        return (self.download_time_limit, self.execution_time_limit, self.upload_time_limit)


@dataclass(frozen=True)
class Metagraph:
    """The registered miners with their addresses, and the validators' stakes."""

    axons: tuple[Axon, ...]
    stakes: tuple[tuple[str, float], ...]


def nominal_ns(number: int) -> int:
    """Return the time of a block that is neither early nor late."""
    return CHAIN_START_NS + 12 * SECOND_NS * number


SMALL_RULES = Rules(block_expiry_blocks=10, reservation_margin_seconds=20.0, longest_job_seconds=200.0)

WHOLE_NETWORK = Metagraph(
    axons=tuple(Axon(miner, f"192.0.2.{at}", 4, 8000 + at) for at, miner in enumerate(MINERS)),
    stakes=((ME, 2.0), (VALIDATORS[1], 1.0), (VALIDATORS[2], 1.0)),
)

LATENESS_S = (0.0, 0.25, 0.5, 0.500001, 0.75, -0.333333, -2.5, 12.0, -12.0, 24.0)
"""By how much a block is late. At 0.5 it lasts 12.5 s, which is not yet long; at 0.500001 it is a long block. ±12 is
the time of a neighbour, and 24 is later than the neighbour."""

AMOUNTS_S = (1e-9, 0.1, 1.5, 3.0, 6.0, 6.000000001, 11.999999999, 12.0, 18.0, 30.0)
MALFORMED_AMOUNTS_S = (0.0, -0.0, -1.0, float("nan"), float("inf"), float("-inf"), 3600.000000001, 1e18)

TEN_TAO = 10**19
"""In wei; more than 64 bits."""
KINDS = ("rejected", "failed", "horde_failed")

CLOCK_STEPS_S = (0.000000001, 1.0, 19.5, 26.0, 130.0, 500.0, -0.000000001, -1.0, -50.0, -600.0)


def rules() -> SearchStrategy[Rules]:
    """Return settings with values that change results within few blocks."""
    return st.builds(
        replace,
        st.just(SMALL_RULES),
        block_expiry_blocks=st.sampled_from([10, 4, 1, 25]),
        reservation_margin_seconds=st.sampled_from([20.0, 0.5, 100.0]),
        longest_job_seconds=st.sampled_from([200.0, 200.0, 20.0, 3600.0]),
        long_block_seconds=st.sampled_from([12.5, 11.9]),
        long_block_counts_as_seconds=st.sampled_from([12.0, 7.3]),
        allowance_multiplier=st.sampled_from([Fraction(1), Fraction(1, 3), Fraction(7, 2), Fraction(2), Fraction(0)]),
        executors_max_per_class=st.sampled_from(
            [{}, {CLASSES[0]: 1}, {CLASSES[0]: 2, CLASSES[1]: 1}, {CLASSES[1]: 0}, {CLASSES[0]: 0}]
        ),
        respect_executor_count=st.sampled_from([True, True, False]),
        newest_block_max_age_seconds=st.sampled_from([None, None, None, 3600.0]),
        newest_manifests_max_age_blocks=st.sampled_from([None, None, None, 12, 0]),
        tie_break=st.sampled_from(["uuid_and_hash", "uuid_and_hash", "uuid"]),
        minimum_collateral_wei=st.sampled_from([0, 0, 0, 1, TEN_TAO]),
        routing_order=st.sampled_from(["allowance", "reliability"]),
        reliability_window_hours=st.sampled_from([24.0, 0.01]),
        reliability_soft_cutoff=st.sampled_from([-50.0, -2.0, -0.5]),
        reliability_separation=st.sampled_from([5.0, 5.0, 0.0, 100.0]),
    )


def named_rules() -> SearchStrategy[dict[str, object]]:
    """Return values of one to three settings, by field."""
    names = sorted(each.name for each in fields(Rules))
    chosen = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
    return st.builds(lambda some, by_name: {name: getattr(some, name) for name in by_name}, rules(), chosen)


def axons() -> SearchStrategy[tuple[Axon, ...]]:
    """Return mostly all miners; sometimes some are absent or have another address."""
    moved = st.sampled_from([("192.0.2.1", 4, 8000), ("192.0.2.9", 4, 8001), ("2001:db8::7", 6, 65535)])
    one = st.builds(lambda hotkey, address: Axon(hotkey, *address), st.sampled_from(MINERS), moved)
    several = st.lists(one, max_size=4, unique_by=lambda axon: axon.hotkey).map(tuple)
    return st.just(WHOLE_NETWORK.axons) | several


def metagraphs() -> SearchStrategy[Metagraph]:
    """Return miners with stakes, including zero stakes and no stake at all."""
    stake = st.sampled_from([1.0, 1.0, 2.0, 6.0, 0.0, 0.1, 1234567.890123456])
    stakes = st.dictionaries(st.sampled_from(VALIDATORS), stake, max_size=3).map(
        lambda each: tuple(sorted(each.items()))
    )
    other = st.builds(Metagraph, axons(), st.just(WHOLE_NETWORK.stakes) | stakes)
    return st.just(WHOLE_NETWORK) | st.just(WHOLE_NETWORK) | other


def full_counts() -> SearchStrategy[Counts]:
    """Return a sync in which every miner offers one to three executors of every class."""
    offered = st.fixed_dictionaries({name: st.integers(1, 3) for name in CLASSES})
    return st.fixed_dictionaries(dict.fromkeys(MINERS, offered))


def counts() -> SearchStrategy[Counts]:
    """Return a sync with small counts, and sometimes a large one, so that a later sync is implausible."""
    count = st.sampled_from([1, 2, 1, 3, 0, 12, 30])
    offered = st.dictionaries(st.sampled_from(CLASSES), count, min_size=1, max_size=2)
    return st.dictionaries(st.sampled_from(MINERS), offered, max_size=4)


def limits_s() -> SearchStrategy[tuple[float, float, float]]:
    """Return download, execution and upload limits, all at least 0."""
    limit = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5e-10, 1.5, 4.000000001])
    return st.tuples(limit, st.sampled_from([0.5, 1.0, 3.0, 9.0, 13.0, 190.0]), limit)


def miner_facts() -> SearchStrategy[MakeFact]:
    """Return facts about few miners and jobs, so that they repeat and contradict each other."""
    miner, name = st.sampled_from(MINERS), st.sampled_from(CLASSES)
    reason = st.sampled_from(["slow", "no answers"])
    uuid = st.sampled_from([f"theirs-{number}" for number in range(6)] + ["job-0", "job-1"])
    after_s = st.sampled_from([-1.0, 0.0, 30.0, 500.0])
    ttl_ns = st.sampled_from([1, 30 * SECOND_NS, 300 * SECOND_NS])
    amount = st.sampled_from([0, 1, TEN_TAO - 1, TEN_TAO, TEN_TAO])
    begin_s = st.sampled_from([0.0, 0.0, -20.0, 20.0])
    return st.one_of(
        st.builds(lambda who, why, s: lambda now_ns: Exclusion(who, why, _at(now_ns, s)), miner, reason, after_s),
        st.builds(lambda who, why: lambda now_ns: Exclusion(who, why, None), miner, reason),
        st.builds(lambda who, why: lambda now_ns: Readmission(who, why), miner, reason),
        st.builds(lambda wei: lambda now_ns: Collateral(wei), st.dictionaries(miner, amount, min_size=1)),
        st.builds(
            lambda who, which, job, s, ttl: lambda now_ns: JobElsewhere(who, which, job, _at(now_ns, s), ttl),
            *(miner, name, uuid, begin_s, ttl_ns),
        ),
        st.builds(lambda job: lambda now_ns: EndElsewhere(job), uuid),
        st.builds(lambda *said: lambda now_ns: Incident(*said), miner, name, st.sampled_from(KINDS), uuid),
    )


def _at(now_ns: int, after_s: float) -> int:
    """Return a time near now, in whole microseconds, as a `datetime` has it."""
    return (now_ns + int(after_s * SECOND_NS)) // 1000 * 1000
