"""The parts of the public face that others build on: job requests, uuids, `settle`, the version."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

import routing
import routing.sync as blocking
from routing import Allowance, InvalidInput, JobRequest, JobRoute, Miner, ReservationAlreadySpent, Routing
from tests.support.small import GPU, job, miner, small_ledger


@dataclass(frozen=True)
class FrozenJob:
    """A request as a user writes it: `JobRequest` asks for attributes that can be read, not for ones to assign."""

    uuid: UUID
    executor_class: str = GPU
    download_time_limit: int = 1
    execution_time_limit: int = 4
    upload_time_limit: int = 1
    on_trusted_miner: bool = False


async def test_any_object_with_the_attributes_is_a_job_request() -> None:
    """A frozen dataclass that imports nothing from the library is accepted, by type checkers too (mypy reads this)."""
    request: JobRequest = FrozenJob(uuid4())
    async with small_ledger() as ledger:
        assert (await Routing(ledger).pick_miner_for_job_request(request)).allowance_job_value == 6.0


UUID_CALLS: dict[str, Callable[[Allowance, Any], Any]] = {
    "reservation_for_job": lambda ledger, uuid: ledger.reservation_for_job(uuid),
    "history": lambda ledger, uuid: ledger.history(job_uuid=uuid),
    "explain": lambda ledger, uuid: ledger.explain(uuid),
    "reserve": lambda ledger, uuid: ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid=uuid),
    "pick": lambda ledger, uuid: Routing(ledger).pick_miner_for_job_request(job(uuid)),
}


@pytest.mark.parametrize("call", UUID_CALLS)
async def test_a_job_uuid_is_text_or_a_uuid(call: str) -> None:
    """Both name the same job, whichever of them reserved. It fails if a call passes a `UUID` on as it is."""
    uuid = uuid4()
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        await Routing(ledger).pick_miner_for_job_request(job(str(uuid)))
        assert await UUID_CALLS[call](ledger, uuid) == await UUID_CALLS[call](ledger, str(uuid))


@pytest.mark.parametrize(("how", "status"), [("spend", "spent"), ("release", "released")])
async def test_settle_settles_the_reservation_of_the_route(how: Any, status: str) -> None:
    """As `spend` and `release` do, with their errors and keys."""
    async with small_ledger() as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("a"))
        settled = await ledger.settle(route, how, idempotency_key="once")
        assert settled is not None
        assert (settled.reservation_id, settled.status) == (route.allowance_reservation_id, status)
        assert await ledger.settle(route, how, idempotency_key="once") == settled
        with pytest.raises(routing.AllowanceException):
            await ledger.settle(route, how)


async def test_settle_returns_none_for_debug_and_trusted_routes() -> None:
    """They have no reservation, so nothing is recorded and no caller needs to ask which kind a route is."""
    async with small_ledger() as ledger:
        router = Routing(ledger, debug_miner=miner("5Debug"))
        before = await ledger.head()
        assert await ledger.settle(await router.pick_miner_for_job_request(job("a")), "spend") is None
        trusted = await Routing(ledger).pick_miner_for_job_request(job("b", trusted=True))
        assert await ledger.settle(trusted, "release") is None
        assert await ledger.head() == before


@pytest.mark.parametrize("how", ["expire", "Spend", "", None, True, ["spend"]])
async def test_settle_refuses_another_word(how: Any) -> None:
    """Also for a route without a reservation: a typing error must not wait for production to be found."""
    async with small_ledger() as ledger:
        for reservation_id in (None, 7):
            with pytest.raises(InvalidInput) as refused:
                await ledger.settle(JobRoute(miner("5Anna"), [], reservation_id, None), how)
            assert (refused.value.field, refused.value.expected) == ("how", "spend or release")


async def test_settle_refuses_what_is_no_route() -> None:
    """An id belongs into `spend` or `release`."""
    async with small_ledger() as ledger:
        with pytest.raises(InvalidInput) as refused:
            await ledger.settle(7, "spend")  # type: ignore[arg-type]  # wrong on purpose
        assert refused.value.field == "route"


def test_settle_blocks_in_sync() -> None:
    """The blocking call is the same one."""
    with blocking.Allowance.open("sqlite://", validator_ss58="5Validator") as ledger:
        assert ledger.settle(JobRoute(Miner("192.0.2.7", 4, 80, "5Anna"), None, None, None), "spend") is None


async def test_a_second_settle_names_the_first() -> None:
    """The error says that the reservation is spent already."""
    async with small_ledger() as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("a"))
        await ledger.settle(route, "spend")
        with pytest.raises(ReservationAlreadySpent):
            await ledger.settle(route, "release")


def test_the_version_is_the_one_of_the_package() -> None:
    """`routing.__version__` and `allowance --version` have one source, which the metadata is built from."""
    assert routing.__version__.count(".") >= 2
    shown = subprocess.run(
        [sys.executable, "-m", "routing.cli", "--version"], check=True, capture_output=True, text=True
    )
    assert shown.stdout == f"allowance {routing.__version__}\n"


def test_the_version_costs_nothing_until_it_is_read() -> None:
    """`import routing` imports no module for it, and reading it imports no other."""
    script = (
        "import sys, routing; before = set(sys.modules); routing.__version__; "
        "print(sorted(set(sys.modules) - before), 'importlib.metadata' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout == "['routing.version'] False\n"
