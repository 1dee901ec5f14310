"""Metrics of a prefork server: what its workers count adds up, whichever of them is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.scrapes import parsed, value
from tests.support.small import GPU, VALIDATOR, small_ledger

ROOT = Path(__file__).parents[2]
WORKERS, PICKS = 2, 3
# As a server with `preload` does: everything is set up and used before the workers are forked.
SERVER = """
import os, sys
from routing.metrics import enable, exposition
from routing.sync import Allowance, Routing
from tests.support.small import VALIDATOR, job

def pick(name):
    route = router.pick_miner_for_job_request(job(name))
    ledger.spend(route.allowance_reservation_id)

url, workers, picks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
enable()
ledger = Allowance.open(url, validator_ss58=VALIDATOR)
router = Routing(ledger)
pick("before the fork")
children = []
for worker in range(workers):
    child = os.fork()
    if child == 0:
        for number in range(picks):
            pick(f"{worker}-{number}")
        ledger.close()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
sys.stdout.write(exposition([ledger])[0].decode())
ledger.close()
"""


async def test_the_counts_of_prefork_workers_add_up(tmp_path: Path) -> None:
    """Two workers and their parent count picks; a scrape of the parent has the sum, and the ledger's gauges.

    Catches counters that live in one process, and gauges that are lost or doubled in multiprocess mode.
    """
    url, directory = f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path / "metrics"
    directory.mkdir()
    async with small_ledger(url=url, offers={"5Anna": 100}):
        pass
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVER, url, str(WORKERS), str(PICKS)]
    run = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    samples, picked = parsed(run.stdout), WORKERS * PICKS + 1
    assert value(samples, "allowance_picks_total", executor_class=GPU, outcome="routed") == picked
    assert value(samples, "allowance_settlements_total", status="spent") == picked
    seconds = "allowance_operation_duration_seconds"
    labels = {"operation": "pick_miner_for_job_request", "outcome": "routed"}
    assert value(samples, f"{seconds}_count", **labels) == picked
    assert value(samples, f"{seconds}_bucket", **labels, le="+Inf") == picked
    openings = WORKERS + 1
    assert value(samples, "allowance_batch_commands_sum") == 2 * picked + openings
    assert value(samples, "allowance_reservations", validator_ss58=VALIDATOR, status="spent") == picked
    assert not [name for name, _ in samples if name.startswith("validator_")]
    assert len(list(directory.glob("counter_*.db"))) == WORKERS + 1
