"""The generators: what simulated callers ask for, drawn from the world's seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ledger import BlockFact, ManifestsFact, Miner, WithdrawBlock, WithdrawManifests
from tests.simulation.diary import Request
from tests.simulation.miner_facts import draw_report
from tests.support.small import hash_of

if TYPE_CHECKING:
    from tests.simulation.process import Process

VALIDATOR = "5Validator"
START = datetime(2024, 1, 1, tzinfo=UTC)
MINERS = ("5Anna", "5Bert", "5Carl", "5Dora", "5Emil")
CLASSES = ("gpu", "cpu")
FIRST_BLOCKS = 8
FAR_BLOCKS = 150_000


@dataclass
class Network:
    """What the simulated chain looks like: a block's content depends on its number only; every third has no hash."""

    miners: int
    classes: int
    leaves_every: int
    long_every: int

    def block(self, number: int, off_by_seconds: float = 0.0) -> BlockFact:
        """Return a block: from time to time it is long, or a miner is not registered."""
        late = 3.0 if number % self.long_every == 0 else 0.0
        created_at = START + timedelta(seconds=12 * number + late + off_by_seconds)
        away = number // self.leaves_every % (self.miners + 2)
        miners = [Miner("192.0.2.7", 4, 8000, ss58) for i, ss58 in enumerate(MINERS[: self.miners]) if i != away - 1]
        stakes = {VALIDATOR: 1.0, "5Other": 1.0 + number // 10 % 3}
        block_hash = hash_of(number, f"{off_by_seconds}") if number % 3 else None
        return BlockFact(number, created_at, miners, stakes, block_hash)


class Operations:
    """Draws the next request of a world."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.network = Network(
            chance.randint(1, len(MINERS)), chance.randint(1, 2), chance.choice((4, 7, 100)), chance.choice((5, 100))
        )
        self.reservations: list[int] = []
        """The ids that any caller was told."""
        self.jobs: list[Request] = []
        self.requests: list[Request] = []
        self.reports: list[Request] = []
        """The requests that report a miner fact for the first time."""
        self._newest = 0
        self._skipped: list[int] = []
        self._withdrawn: list[int] = []
        self._manifests: dict[int, ManifestsFact] = {}
        self._weights = [weight * chance.choice((0.3, 1.0, 2.0)) for weight in _WEIGHTS.values()]

    def first(self) -> Request:
        """Return the request with which a world begins: a sync and some blocks."""
        self._newest = FIRST_BLOCKS
        sync = self._sync(1)
        return self._facts("first facts", [sync, *map(self.network.block, range(1, FIRST_BLOCKS + 1))], keyed=False)

    def next(self) -> Request:
        """Return the next request."""
        kind = self.chance.choices(list(_WEIGHTS), self._weights)[0]
        request: Request = getattr(self, f"_{kind}")()
        return request

    def request(self, kind: str, invoke: Callable[[Process, Request], Any], *, keyed: bool = False) -> Request:
        """Return a new request, with a key if `keyed`."""
        number = len(self.requests) + 1
        request = Request(number, kind, invoke, key=f"key-{number}" if keyed else None)
        self.requests.append(request)
        return request

    def _pick(self) -> Request:
        if self.jobs and self.chance.random() < 0.2:
            again = self.chance.choice(self.jobs)
            request = self.request("pick again", again.invoke)
            request.job_uuid, request.amount_ns = again.job_uuid, again.amount_ns
            return request
        request = self.request("pick", _pick(self.chance.choice(CLASSES[: self.network.classes])))
        request.job_uuid, request.amount_ns = f"job-{request.number}", self._amount_ns(request)
        self.jobs.append(request)
        return request

    def _reserve(self) -> Request:
        keyed, has_job = self.chance.random() < 0.6, self.chance.random() < 0.4
        account = self.chance.choice(MINERS[: self.network.miners]), self.chance.choice(CLASSES[: self.network.classes])
        request = self.request("reserve", _reserve(*account, max(1, self._newest - self.chance.choice((0, 0, 1, 5)))))
        request.key = f"key-{request.number}" if keyed else None
        request.job_uuid = f"job-{request.number}" if has_job else None
        request.amount_ns = self._amount_ns(request)
        if self.chance.random() < 0.4:
            request.expected_off_by = self.chance.choice((0, 0, 0, 0, -1, 1))
        return request

    def _amount_ns(self, request: Request) -> int:
        """Return an amount that no other request has, so that a row tells which request made it."""
        return self.chance.choice((1, 5, 6, 12, 30)) * 10**9 + request.number * 1000

    def _spend(self) -> Request:
        return self._settle("spend")

    def _release(self) -> Request:
        return self._settle("release")

    def _settle(self, how: str) -> Request:
        request = self.request(how, _settle(how), keyed=self.chance.random() < 0.5)
        recent = self.reservations[-8:] if self.chance.random() < 0.7 else self.reservations
        is_known = bool(recent) and self.chance.random() < 0.95
        request.reservation_id = self.chance.choice(recent) if is_known else 7 << 20 | 1
        return request

    def _expire(self) -> Request:
        return self.request("expire_due", _expire, keyed=self.chance.random() < 0.5)

    def _block(self) -> Request:
        keyed, draw = self.chance.random() < 0.2, self.chance.random()
        if draw < 0.1:
            number = self.chance.randint(1, self._newest)
            return self._facts("block, other content", [self.network.block(number, off_by_seconds=1.0)], keyed)
        if draw < 0.15:
            return self._facts("block, implausible", [self.network.block(self._newest + FAR_BLOCKS)], keyed)
        if draw < 0.3 and self._skipped:
            number = self._skipped.pop(self.chance.randrange(len(self._skipped)))
            return self._facts("block, late", [self.network.block(number)], keyed)
        if draw < 0.45:
            number = self.chance.randint(1, self._newest)
            block = self.network.block(number)
            # A repeat may lack the hash, or have one that the recorded block lacks.
            told = self.chance.choice((block.block_hash, None, hash_of(number, "0.0")))
            return self._facts("block, repeated", [replace(block, block_hash=told)], keyed)
        return self._new_blocks(keyed)

    def _new_blocks(self, keyed: bool) -> Request:
        count = self.chance.choice((1, 1, 1, 2, 3))
        numbers = list(range(self._newest + 1, self._newest + 1 + count))
        self._newest += count
        if self.chance.random() < 0.3:
            self._newest += 1
            numbers.append(self._newest)
            self._skipped.append(numbers.pop(self.chance.randrange(len(numbers))))
        if self.chance.random() < 0.3:
            numbers.reverse()
        return self._facts("block, new", [self.network.block(number) for number in numbers], keyed)

    def _manifest(self) -> Request:
        keyed, draw = self.chance.random() < 0.2, self.chance.random()
        known = sorted(self._manifests)
        if draw < 0.15 and known:
            return self._facts("sync, repeated", [self._manifests[self.chance.choice(known)]], keyed)
        block = self._newest if draw < 0.8 else self.chance.randint(1, self._newest)
        kind = "sync, other content" if block in self._manifests else "sync, new"
        return self._facts(kind, [self._sync(block)], keyed)

    def _sync(self, block: int) -> ManifestsFact:
        manifests = {
            miner: {executor_class: self.chance.choice((0, 1, 2, 2, 3)) for executor_class in self._classes()}
            for miner in MINERS[: self.network.miners]
            if self.chance.random() < 0.9
        }
        fact = ManifestsFact(block, manifests)
        self._manifests.setdefault(block, fact)
        return fact

    def _classes(self) -> list[str]:
        return [each for each in CLASSES[: self.network.classes] if self.chance.random() < 0.9]

    def _facts(self, kind: str, facts: list[Any], keyed: bool, *, confirm: bool = False) -> Request:
        request = self.request(kind, _record(facts, confirm), keyed=keyed)
        request.facts = tuple(_described(fact) for fact in facts)
        return request

    def _withdraw_block(self) -> Request:
        numbers = (self._newest, self._newest, max(1, self._newest - 1), self.chance.randint(1, self._newest + 1))
        number = self.chance.choice(numbers)
        request = self.request("withdraw_block", _withdraw(WithdrawBlock, number), keyed=self.chance.random() < 0.3)
        self._withdrawn.append(number)
        return request

    def _withdraw_manifests(self) -> Request:
        block = self.chance.choice([*self._manifests, self._newest + 1])
        keyed = self.chance.random() < 0.3
        return self.request("withdraw_manifests", _withdraw(WithdrawManifests, block), keyed=keyed)

    def _record_again(self) -> Request:
        """Confirm a fact that may have been withdrawn."""
        if self._withdrawn and self.chance.random() < 0.7:
            number = self.chance.choice(self._withdrawn)
            off_by_seconds = self.chance.choice((0.0, 0.0, 1.0))
            return self._facts("block, again", [self.network.block(number, off_by_seconds)], keyed=False, confirm=True)
        block = self.chance.choice(list(self._manifests))
        return self._facts("sync, again", [self._sync(block)], keyed=False, confirm=True)

    def _change_settings(self) -> Request:
        fields = self.chance.choice(
            (
                {"block_expiry_blocks": self.chance.choice((5, 10, 722))},
                {"reservation_margin_seconds": self.chance.choice((1.0, 30.0, 100.0))},
                {"executors_max_per_class": self.chance.choice(({}, {"gpu": 1}, {"gpu": 2, "cpu": 1}))},
                {"respect_executor_count": self.chance.random() < 0.5},
                {"tie_break": self.chance.choice(("uuid", "uuid_and_hash"))},
                {"newest_manifests_max_age_blocks": self.chance.choice((None, 3, 30))},
                {"minimum_collateral_wei": self.chance.choice((0, 5, 5))},
                {"routing_order": self.chance.choice(("allowance", "reliability"))},
                {"reliability_window_hours": self.chance.choice((24.0, 0.01))},
                {"reliability_soft_cutoff": self.chance.choice((-50.0, -2.0))},
            )
        )
        return self.request("change_settings", _change_settings(fields), keyed=self.chance.random() < 0.3)

    def _miner_fact(self) -> Request:
        """Report a new miner fact, or one that was reported before."""
        if self.reports and self.chance.random() < 0.2:
            before = self.chance.choice(self.reports)
            request = self.request(before.kind, before.invoke)
            request.report, request.reported_at = before.report, before.reported_at
            return request
        classes = CLASSES[: self.network.classes]
        jobs = [str(each.job_uuid) for each in self.jobs[-5:]]
        report = draw_report(self.chance, MINERS[: self.network.miners], classes, jobs)
        request = self.request(report.call, report.invoke, keyed=self.chance.random() < 0.3)
        request.report = report
        self.reports.append(request)
        return request

    def _read(self) -> Request:
        return self.request("find_miners", _find(self.chance.choice(CLASSES[: self.network.classes]), self._newest))

    def _look(self) -> Request:
        request = self.request("reservation", _look)
        request.reservation_id = self.chance.choice(self.reservations) if self.reservations else 7 << 20 | 1
        return request


_WEIGHTS = {
    "pick": 10.0,
    "reserve": 5.0,
    "spend": 5.0,
    "release": 4.0,
    "expire": 1.5,
    "block": 4.0,
    "manifest": 1.0,
    "withdraw_block": 0.7,
    "withdraw_manifests": 0.4,
    "record_again": 0.5,
    "change_settings": 0.8,
    "miner_fact": 6.0,
    "read": 1.0,
    "look": 1.0,
}


def _described(fact: Any) -> tuple[str, int, Any]:
    if isinstance(fact, BlockFact):
        return "block-recorded", fact.number, int(fact.created_at.timestamp() * 10**9)
    return "manifests-recorded", fact.block, None


def _pick(executor_class: str) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        job = SimpleNamespace(
            uuid=request.job_uuid,
            executor_class=executor_class,
            download_time_limit=0,
            execution_time_limit=request.amount_ns / 10**9,
            upload_time_limit=0,
            on_trusted_miner=False,
        )
        return process.routing.pick_miner_for_job_request(job)

    return invoke


def _reserve(miner: str, executor_class: str, block: int) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        if request.expected_off_by is not None and request.expected_version is None:
            # Seen when the request is made, like `Candidate.stream_version`: by the append others may have moved it.
            seen = process.world.server.versions.get(f"{miner}\t{executor_class}", 0)
            request.expected_version = max(0, seen + request.expected_off_by)
        return process.ledger.reserve(
            miner,
            executor_class,
            request.amount_ns / 10**9,
            block,
            expected_version=request.expected_version,
            job_uuid=request.job_uuid,
            idempotency_key=request.key,
        )

    return invoke


def _settle(how: str) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        return getattr(process.ledger, how)(request.reservation_id, idempotency_key=request.key)

    return invoke


def _expire(process: Process, request: Request) -> Any:
    return process.ledger.expire_due(idempotency_key=request.key)


def _withdraw(command: Callable[..., Any], number: int) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        # Not by the public call, which would look up in the history who holds a block.
        return process.ledger._withdraw(command(number, request.reason, request.key))

    return invoke


def _change_settings(fields: dict[str, Any]) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        return process.ledger.change_settings(idempotency_key=request.key, **fields)

    return invoke


def _record(facts: list[Any], confirm: bool) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        return process.ledger.record_facts(facts, confirm=confirm, idempotency_key=request.key)

    return invoke


def _find(executor_class: str, block: int) -> Callable[[Process, Request], Any]:
    def invoke(process: Process, request: Request) -> Any:
        return process.ledger.find_miners(1.0, executor_class, max(1, block))

    return invoke


def _look(process: Process, request: Request) -> Any:
    return process.ledger.reservation(request.reservation_id)
