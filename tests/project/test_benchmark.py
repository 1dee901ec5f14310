"""The benchmark runs, tells all that it measured, and leaves nothing behind. What it measures is asserted nowhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, "-m", "scripts.benchmark", "--quick"]
RUN_SECONDS = 280.0


def left_behind() -> set[Path]:
    return set(ROOT.glob(".bench-*"))


def measured(*arguments: str) -> dict[str, Any]:
    """What a run tells as JSON."""
    before = left_behind()
    run = subprocess.run(
        [*BENCH, "--json", *arguments], cwd=ROOT, check=False, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    document: dict[str, Any] = json.loads(run.stdout)
    assert (run.returncode, document["skipped"]) == (0, []), run.stderr
    assert left_behind() <= before
    return document


def assert_told(figures: list[dict[str, Any]]) -> None:
    """Every figure has samples, and what stands beside it as many; a target says whether it was met."""
    for figure in figures:
        assert figure["ours"]["low"] <= figure["ours"]["median"] <= figure["ours"]["high"]
        if figure["beside"] is not None:
            assert len(figure["beside"]["samples"]) == len(figure["ours"]["samples"])
            assert figure["ratio"] > 0
        assert (figure["target"] is None) == (figure["met"] is None)


@pytest.mark.slow
def test_cases_are_measured_and_told() -> None:
    """Chosen cases run at a small size, each figure with its samples and its target; no file stays."""
    document = measured("--only", "block", "--only", "rebuild", "--events", "3000")
    names = [figure["name"] for figure in document["figures"]]
    assert names == ["recording an unchanged block", "bytes stored for an unchanged block", "rebuilding from nothing"]
    assert_told(document["figures"])


@pytest.mark.long
def test_every_case_is_measured_and_told() -> None:
    """All cases run at a small size, PostgreSQL and the library compared with included."""
    pytest.importorskip("eventsourcing")
    assert_told(measured()["figures"])


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_behind() -> None:
    """^C ends it as a shell expects, with its directory gone and without a traceback."""
    before = left_behind()
    run = subprocess.Popen([*BENCH, "--only", "miners"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not left_behind() - before:
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=RUN_SECONDS)
    assert (run.returncode, told) == (130, b"")
    assert left_behind() <= before
