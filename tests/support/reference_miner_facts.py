"""The part of the reference model about miner facts: exclusions, collateral, jobs elsewhere, incidents.

One list of facts in the order of recording; every question loops over all of it. A fact's number is its place in the
list, from 1; recording a repeat returns the number of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .refusal import Refused

FORGOTTEN_AFTER_NS = 24 * 3600 * 10**9
"""A job elsewhere is forgotten by the next one of its account that is recorded so long after its end."""


@dataclass(frozen=True)
class Exclusion:
    """A miner is excluded before `until_ns`, or for good if that is None."""

    miner: str
    reason: str
    until_ns: int | None


@dataclass(frozen=True)
class Readmission:
    """A miner's exclusion has ended."""

    miner: str
    reason: str


@dataclass(frozen=True)
class Collateral:
    """Amounts in wei of the miners that a call named."""

    wei: dict[str, int]


@dataclass(frozen=True)
class JobElsewhere:
    """A job of another validator, as a receipt says."""

    miner: str
    executor_class: str
    job_uuid: str
    started_at_ns: int
    ttl_ns: int


@dataclass(frozen=True)
class EndElsewhere:
    """The end of a job of another validator."""

    job_uuid: str


@dataclass(frozen=True)
class Incident:
    """A job went wrong on a miner."""

    miner: str
    executor_class: str
    kind: str
    job_uuid: str


Fact = Exclusion | Readmission | Collateral | JobElsewhere | EndElsewhere | Incident


@dataclass
class MinerFacts:
    """All miner facts, each with the reading of the clock that decided it."""

    facts: list[tuple[Fact, int]] = field(default_factory=list)

    def copy(self) -> MinerFacts:
        """Return a copy that later facts do not affect."""
        return MinerFacts(list(self.facts))

    def record(self, fact: Fact, now_ns: int) -> int:
        """Record a fact and return its number, or that of the one that it repeats."""
        number = self._repeated(fact, now_ns)
        if number is None:
            self.facts.append((fact, now_ns))
            return len(self.facts)
        return number

    def _repeated(self, fact: Fact, now_ns: int) -> int | None:
        match fact:
            case Exclusion():
                return self._repeated_exclusion(fact, now_ns)
            case Readmission():
                last = self._last_about(fact.miner)
                if last is None:
                    raise Refused("FactNotRecorded")
                number, said = last
                return number if isinstance(said, Readmission) else None
            case Collateral():
                told = [self._collateral(miner) for miner in fact.wei]
                same = [number for number, wei in told if number] if self._same_amounts(fact) else []
                return max(same, default=None)
            case JobElsewhere() | Incident():
                return self._repeated_report(fact)
            case EndElsewhere():
                return next((number for number, said in self._numbered() if said == fact), None)

    def _repeated_exclusion(self, fact: Exclusion, now_ns: int) -> int | None:
        last = self._last_about(fact.miner)
        if last is not None and last[1] == fact:
            return last[0]
        if fact.until_ns is not None and fact.until_ns <= now_ns:
            raise Refused("InvalidInput")
        return None

    def _repeated_report(self, fact: JobElsewhere | Incident) -> int | None:
        for number, said in self._numbered():
            same_name = type(said) is type(fact) and getattr(said, "job_uuid", None) == fact.job_uuid
            if same_name and isinstance(fact, Incident):
                same_name = isinstance(said, Incident) and said.miner == fact.miner
            if same_name:
                if said != fact:
                    raise Refused("ConflictingFact")
                return number
        return None

    # Questions.

    def is_excluded(self, miner: str, now_ns: int) -> bool:
        """Whether the last word about the miner is an exclusion that has not ended by now."""
        last = self._last_about(miner)
        if last is None or not isinstance(last[1], Exclusion):
            return False
        return last[1].until_ns is None or now_ns < last[1].until_ns

    def collateral(self, miner: str) -> int:
        """Return the amount recorded last; 0 if there is none."""
        return self._collateral(miner)[1]

    def running_elsewhere(self, miner: str, executor_class: str, now_ns: int) -> set[str]:
        """Return the jobs of others that run on an account now."""
        ended = {said.job_uuid for _, said in self._numbered() if isinstance(said, EndElsewhere)}
        return {
            said.job_uuid
            for number, said in self._numbered()
            if isinstance(said, JobElsewhere)
            and (said.miner, said.executor_class) == (miner, executor_class)
            and said.started_at_ns <= now_ns < said.started_at_ns + said.ttl_ns
            and said.job_uuid not in ended
            and not self._is_forgotten(number, said)
        }

    def incidents(self, miner: str, executor_class: str, window_ns: int, now_ns: int) -> int:
        """Return how many incidents of an account were reported in the window that ends now."""
        return sum(
            isinstance(said, Incident)
            and (said.miner, said.executor_class) == (miner, executor_class)
            and now_ns - window_ns < at_ns <= now_ns
            for said, at_ns in self.facts
        )

    def instants(self) -> list[int]:
        """Return the times at which a question may get another answer."""
        found: list[int] = []
        for said, at_ns in self.facts:
            match said:
                case Exclusion(until_ns=int(until_ns)):
                    found.append(until_ns)
                case JobElsewhere():
                    found += [said.started_at_ns, said.started_at_ns + said.ttl_ns]
                case Incident():
                    found.append(at_ns)
        return found

    def _is_forgotten(self, number: int, job: JobElsewhere) -> bool:
        return any(
            isinstance(said, JobElsewhere)
            and (said.miner, said.executor_class) == (job.miner, job.executor_class)
            and job.started_at_ns + job.ttl_ns <= at_ns - FORGOTTEN_AFTER_NS
            for said, at_ns in self.facts[number - 1 :]
        )

    def _numbered(self) -> list[tuple[int, Fact]]:
        return [(number, said) for number, (said, _) in enumerate(self.facts, 1)]

    def _last_about(self, miner: str) -> tuple[int, Exclusion | Readmission] | None:
        last = None
        for number, said in self._numbered():
            if isinstance(said, (Exclusion, Readmission)) and said.miner == miner:
                last = number, said
        return last

    def _collateral(self, miner: str) -> tuple[int, int]:
        """Return where the miner's amount was recorded, and the amount; zeros if it was not."""
        last, wei = 0, None
        for number, said in self._numbered():
            # Only an amount that differs from the one before is recorded.
            if isinstance(said, Collateral) and miner in said.wei and said.wei[miner] != wei:
                last, wei = number, said.wei[miner]
        return last, wei or 0

    def _same_amounts(self, fact: Collateral) -> bool:
        return all(self._collateral(miner)[0] and self._collateral(miner)[1] == wei for miner, wei in fact.wei.items())
