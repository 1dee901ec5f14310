"""`scripts/measure` runs on this checkout. The figures themselves are asserted nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_figure_is_measured() -> None:
    """The table has a row for each figure, and a value in each row."""
    command = [sys.executable, "-m", "scripts.measuring", "--runs", "1"]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    heading, _, *rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()]
    assert [cell.strip() for cell in heading] == ["figure", "after"]
    assert len(rows) > 15
    assert all(value.strip() for _, value in rows)
