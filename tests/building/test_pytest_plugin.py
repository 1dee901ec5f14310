"""The pytest plugin: its fixtures in tests with and without an event loop, and its cost for runs without them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "routing.contrib.pytest_plugin"
# A library must not warn in the tests of others.
OPTIONS = ("-p", "no:cacheprovider", "-W", "error")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the entry points of `pyproject.toml` those of an installed package, for the pytest that a test runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    directory = tmp_path_factory.mktemp("site")
    information = directory / "allowance_ledger_of_this_test-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: allowance-ledger-of-this-test\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[pytest11]\n" + "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["pytest11"].items())
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{directory}")


def test_the_fixtures_give_a_ledger_to_plain_and_asynchronous_tests(pytester: pytest.Pytester) -> None:
    """One ledger in memory serves both kinds; its clock moves only if the test moves it."""
    pytester.makepyfile(
        """
        import asyncio

        import routing
        from routing.sync import Routing

        def test_plain(blocking_allowance, allowance_network, allowance_clock):
            ledger, job = blocking_allowance, allowance_network.job(30.0)
            route = Routing(ledger).pick_miner_for_job_request(job)
            assert route.miner in allowance_network.miners
            assert ledger.expire_due() == []
            allowance_clock.advance(30 + 100)
            assert [each.job_uuid for each in ledger.expire_due()] == [job.uuid]

        def test_asynchronous(async_allowance, allowance_network):
            async def route_and_spend():
                route = await routing.Routing(async_allowance).pick_miner_for_job_request(allowance_network.job())
                return await async_allowance.settle(route, "spend")
            assert asyncio.run(route_and_spend()).status == "spent"

        def test_every_test_has_a_new_ledger(blocking_allowance):
            assert blocking_allowance.history().items == []

        def test_process_wide(process_wide_allowance, allowance_network):
            async def route():
                return await routing.routing().pick_miner_for_job_request(allowance_network.job())
            assert asyncio.run(route()).allowance_reservation_id
            assert [each.status for each in process_wide_allowance.history().items] == ["reserved"]
        """
    )
    pytester.runpytest_subprocess(*OPTIONS, "-p", "no:asyncio").assert_outcomes(passed=4)


def test_asynchronous_tests_of_pytest_asyncio_use_them_too(pytester: pytest.Pytester) -> None:
    """A fixture that blocks is set up outside of the test's event loop, where it may block."""
    pytester.makepyfile(
        """
        import pytest
        from routing import Routing

        @pytest.mark.asyncio
        async def test_asynchronous(async_allowance, allowance_network):
            route = await Routing(async_allowance).pick_miner_for_job_request(allowance_network.job())
            assert (await async_allowance.settle(route, "release")).status == "released"
        """
    )
    options = ("-o", "asyncio_default_fixture_loop_scope=function")
    pytester.runpytest_subprocess(*OPTIONS, *options).assert_outcomes(passed=1)


def test_a_run_can_leave_the_plugin_out(pytester: pytest.Pytester) -> None:
    """By the name of its entry point, as for every plugin."""
    pytester.makepyfile("def test_it(blocking_allowance): pass")
    pytester.runpytest_subprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:allowance").assert_outcomes(errors=1)


def test_the_plugin_imports_nothing_heavy() -> None:
    """A run that uses none of the fixtures does not wait for the library: neither msgspec nor asyncio is imported.

    It fails if the plugin imports the library at its top.
    """
    script = (
        f"import pytest, sys; before = set(sys.modules); import {PLUGIN}; "
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('ledger.lazy')))"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == str(["ledger", "routing", "routing.contrib", PLUGIN, "routing.shadowing"])
