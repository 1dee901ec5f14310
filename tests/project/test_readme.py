"""The README does what it says, and forgets nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from routing import Settings
from routing.cli.commands import COMMANDS

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_runs_as_it_stands(tmp_path: Path) -> None:
    """Copied into a file and run in an empty folder, and run again, it routes a job and shows its history."""
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "example.py").write_text(found[1])
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert "5Miner" in ran.stdout
        assert "spent" in ran.stdout


@pytest.mark.parametrize("command", sorted(command.name for command in COMMANDS))
def test_every_command_is_in_the_readme(command: str) -> None:
    """A command that nobody can find does not exist."""
    assert f"allowance {command}" in README.read_text()


@pytest.mark.parametrize("setting", [field.name for field in fields(Settings)])
def test_every_setting_is_in_the_readme(setting: str) -> None:
    """Each setting stands in the table."""
    assert f"`{setting}`" in README.read_text()
