"""A ledger with hostile names for the pages, and `allowance serve` as a process that serves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from routing import Allowance, Routing

from .small import GPU, VALIDATOR, job, miner

SCRIPT = "<script>alert(1)</script>"
IMAGE = "\"><img src=x onerror=alert('1')>"
ARABIC = "مِعْدِن/../?a=1#b&c"
HOSTILE_CLASS = "</td><b>gpu"
HOTKEYS = ("5" + "Anna" * 11 + "abc", SCRIPT, IMAGE, ARABIC)
FORMULA = "=1+1"
JOB = "<i>job</i>-1"
BLOCKS = 40


async def fill(url: str) -> dict[str, int]:
    """Found a ledger whose newest block is a few seconds old; return ids of its reservations by status."""
    newest_at = datetime.now(UTC) - timedelta(seconds=3)
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        classes = {GPU: 2, HOSTILE_CLASS: 1}
        await ledger.record_manifests(1, dict.fromkeys(HOTKEYS, classes))
        for number in range(1, BLOCKS + 1):
            created_at = newest_at - timedelta(seconds=12 * (BLOCKS - number))
            await ledger.record_block(
                number, created_at, [miner(hotkey) for hotkey in HOTKEYS], {VALIDATOR: 1.0, "5Other": 1.0}
            )
        routes = [await Routing(ledger).pick_miner_for_job_request(job(f"{JOB}{n}", 20.0)) for n in range(5)]
        spent, released, held = (route.allowance_reservation_id or 0 for route in routes[:3])
        await ledger.spend(spent)
        await ledger.release(released)
        await ledger.reserve(SCRIPT, HOSTILE_CLASS, 6.0, BLOCKS, job_uuid=FORMULA)
        await ledger.change_settings(block_expiry_blocks=700)
        await ledger.record_manifests(39, {HOTKEYS[0]: classes})
        await ledger.withdraw_manifests(39, f"recorded by mistake {SCRIPT}")
    return {"spent": spent, "released": released, "reserved": held}


@contextmanager
def served(url: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the ledger in a process of its own; yield its URL without a slash at the end, and the process."""
    command = [sys.executable, "-m", "routing.cli", "serve", "--database", url, "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, process.communicate()[1]
            yield address.rstrip("/"), process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
