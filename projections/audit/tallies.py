"""The counts of a replay for the report of fairness."""

from __future__ import annotations

from collections import Counter

import msgspec

from ledger import Origin
from ledger.events import MinerExcluded, MinerFact, MinerReadmitted

from .chance_sums import ChanceSums
from .state import AccountState, AuditedReservation


class FairnessTally:
    """Counts what the report needs while a log is replayed."""

    def __init__(self) -> None:
        self.chances = ChanceSums()
        """The chances of jobs on whose choice no miner fact had an influence."""
        self.with_facts, self.without_facts = ChanceSums(), ChanceSums()
        """The chances of the other jobs, and the chances that they would have had without the facts."""
        self.wins: Counter[AccountState] = Counter()
        self.settings_returns = 0
        self.origins: Counter[tuple[AccountState, Origin]] = Counter()
        self.given_up: Counter[AccountState] = Counter()
        self._unspent: dict[str, AccountState] = {}
        """The account of each job whose last routed reservation was released or expired."""
        self.exclusions: Counter[str] = Counter()
        self.excluded_ns: Counter[str] = Counter()
        self._excluded: dict[str, tuple[int, int]] = {}
        """The start and end of the newest exclusion by miner."""
        self._settings: set[bytes] = set()

    def count_reservation(self, account: AccountState, origin: Origin, job_uuid: str | None) -> None:
        """Count a reservation; if its job was routed before in vain, the earlier miner's was given up."""
        self.origins[account, origin] += 1
        if self._unspent and job_uuid in self._unspent:
            self.given_up[self._unspent.pop(job_uuid)] += 1

    def count_unspent(self, reservation: AuditedReservation) -> None:
        """Count a reservation that was released or expired."""
        if reservation.row.job_uuid is not None and reservation.event.axon is not None:
            self._unspent[reservation.row.job_uuid] = reservation.account

    def count_settings(self, settings: msgspec.Struct) -> None:
        """Count recorded settings, and whether they were in force before."""
        encoded = msgspec.json.encode(settings)
        self.settings_returns += encoded in self._settings
        self._settings.add(encoded)

    def count_fact(self, event: MinerFact, now_ns: int) -> None:
        """Count an exclusion or a readmission."""
        if isinstance(event, MinerExcluded | MinerReadmitted):
            self._end_exclusion(event.miner_ss58, now_ns)
        if isinstance(event, MinerExcluded):
            self.exclusions[event.miner_ss58] += 1
            self._excluded[event.miner_ss58] = now_ns, event.until_ns or 0

    def end_exclusions(self, now_ns: int) -> None:
        """Count the exclusions in force up to now, at the end of a log."""
        for miner_ss58 in list(self._excluded):
            self._end_exclusion(miner_ss58, now_ns)

    def _end_exclusion(self, miner_ss58: str, now_ns: int) -> None:
        start_ns, until_ns = self._excluded.pop(miner_ss58, (now_ns, 0))
        self.excluded_ns[miner_ss58] += max(0, min(until_ns or now_ns, now_ns) - start_ns)
