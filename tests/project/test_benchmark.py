"""The benchmark runs, prints every figure, and removes its files. No test asserts the figures themselves."""

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


def temporary_directories() -> set[Path]:
    """Return the directories of all benchmarks that are running or were not cleaned up."""
    return set(ROOT.glob(".bench-*"))


def measured(*arguments: str) -> dict[str, Any]:
    """Run the benchmark; return its JSON document."""
    before = temporary_directories()
    run = subprocess.run(
        [*BENCH, "--json", *arguments], cwd=ROOT, check=False, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    document: dict[str, Any] = json.loads(run.stdout)
    assert (run.returncode, document["skipped"]) == (0, []), run.stderr
    assert temporary_directories() <= before
    return document


def assert_complete(figures: list[dict[str, Any]]) -> None:
    """Every figure has samples, its comparison has as many, and its target says whether it was met."""
    for figure in figures:
        assert figure["ours"]["low"] <= figure["ours"]["median"] <= figure["ours"]["high"]
        if figure["beside"] is not None:
            assert len(figure["beside"]["samples"]) == len(figure["ours"]["samples"])
            assert figure["ratio"] > 0
        assert (figure["target"] is None) == (figure["met"] is None)


@pytest.mark.slow
def test_cases_are_measured_and_printed() -> None:
    """Chosen cases run at a small size; each figure has its samples and its target, and no file remains."""
    document = measured("--only", "bytes", "--only", "rebuild", "--log", "3000")
    names = [figure["name"] for figure in document["figures"]]
    per_claim, per_block = "bytes of log per claim", "bytes of log per unchanged block"
    assert names == ["rebuilding from nothing", per_claim, f"{per_claim}, without indexes", per_block]
    assert_complete(document["figures"])


@pytest.mark.long
def test_every_case_is_measured_and_printed() -> None:
    """All cases run at a small size, including PostgreSQL and the library that we compare with."""
    pytest.importorskip("eventsourcing")
    assert_complete(measured()["figures"])


@pytest.mark.slow
def test_an_interrupted_run_removes_its_files() -> None:
    """After ^C the run ends with the exit code that shells expect, without its directory and without a traceback."""
    before = temporary_directories()
    run = subprocess.Popen([*BENCH, "--only", "miners"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not temporary_directories() - before:
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=RUN_SECONDS)
    assert (run.returncode, errors) == (130, b"")
    assert temporary_directories() <= before
