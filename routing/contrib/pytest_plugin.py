"""The pytest plugin: a ledger in memory, a clock to move, and a small network, as fixtures.

pytest loads it in every run of an environment that has this package, so it imports nothing but pytest; the fixtures
import the library. A test imports nothing to use them:

    def test_a_job_is_routed(blocking_allowance, allowance_network):
        route = Routing(blocking_allowance).pick_miner_for_job_request(allowance_network.job())
        assert route.miner in allowance_network.miners
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import routing
    import routing.sync

    from .testing import MovableClock, SmallNetwork


@pytest.fixture
def allowance_clock() -> MovableClock:
    """The clock of `blocking_allowance` and `async_allowance`; it stands still until the test calls `advance`."""
    from .testing import MovableClock

    return MovableClock()


@pytest.fixture
def allowance_network() -> SmallNetwork:
    """The network that the ledgers know: three miners with two executors each. `job()` makes a request for it."""
    from .testing import SmallNetwork

    return SmallNetwork()


@pytest.fixture
def blocking_allowance(
    allowance_clock: MovableClock, allowance_network: SmallNetwork
) -> Iterator[routing.sync.Allowance]:
    """A ledger in memory with the facts of `allowance_network`, for tests without an event loop."""
    from routing.sync import Allowance

    validator_ss58 = allowance_network.validator_ss58
    with Allowance.open("sqlite://", validator_ss58=validator_ss58, clock_ns=allowance_clock) as ledger:
        ledger.record_facts(allowance_network.facts(allowance_clock.now))
        yield ledger


@pytest.fixture
def async_allowance(blocking_allowance: routing.sync.Allowance) -> routing.Allowance:
    """The ledger of `blocking_allowance`, for tests that `await`."""
    return blocking_allowance.asynchronous


@pytest.fixture
def process_wide_allowance(allowance_network: SmallNetwork) -> Iterator[routing.sync.Allowance]:
    """The ledger of `routing.allowance()` and `routing.routing()`, in memory, for programs that use these.

    It knows the facts of `allowance_network`, and its clock is the real one.
    """
    from datetime import UTC, datetime

    import routing
    from routing.sync import allowance

    routing.reset()
    routing.configure(database_url="sqlite://", validator_ss58=allowance_network.validator_ss58, debug_miner=None)
    ledger = allowance()
    ledger.record_facts(allowance_network.facts(datetime.now(UTC)))
    yield ledger
    routing.reset()
