"""The recipes of the guide as programs: their files, their commands, and a ledger for them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from routing.contrib.testing import SmallNetwork
from routing.sync import Allowance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "routing" / "guide" / "integrations.md"
NETWORK = SmallNetwork()
STOP_SECONDS = 30

_file = re.compile(r"^```python\n# (?P<path>[\w/]+\.py)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_command = re.compile(r"^\$ (?P<command>.*)$", re.MULTILINE)


def files() -> dict[str, str]:
    """The files that the page shows, by path."""
    return {found["path"]: found["text"] for found in _file.finditer(PAGE.read_text())}


def command(program: str) -> list[str]:
    """The page's only command that begins so, run by this Python's programs."""
    (line,) = (each for each in _command.findall(PAGE.read_text()) if each.startswith(program))
    name, *arguments = line.split()
    return [sys.executable, *arguments] if name == "python" else [sys.executable, "-m", name, *arguments]


def environment(directory: Path) -> dict[str, str]:
    """The environment of the programs: the ledger in the directory, and the code of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALLOWANCE_", "DEBUG_MINER_"))}
    return {
        **kept,
        "PYTHONPATH": f"{ROOT}:{directory}",
        "ALLOWANCE_DATABASE_URL": ledger_url(directory),
        "ALLOWANCE_VALIDATOR_SS58": NETWORK.validator_ss58,
    }


def ledger_url(directory: Path) -> str:
    return f"sqlite:///{directory}/allowance.db"


def open_ledger(directory: Path) -> Allowance:
    """The ledger of the recipes, as the test sees it."""
    return Allowance.open(ledger_url(directory), validator_ss58=NETWORK.validator_ss58)


def make_ledger(directory: Path) -> None:
    """Found the ledger, and record the facts of the small network up to now."""
    with open_ledger(directory) as ledger:
        ledger.record_facts(NETWORK.facts(datetime.now(UTC)))


@contextmanager
def running(program: list[str], directory: Path, ready: str, times: int, **more: str) -> Iterator[None]:
    """Start a program, wait until its output has had the text so many times, and stop it at the end."""
    started = subprocess.Popen(
        program,
        cwd=directory,
        env={**environment(directory), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _wait_for(started, ready, times)
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()
            raise


def _wait_for(started: subprocess.Popen[str], ready: str, times: int) -> None:
    assert started.stdout is not None
    seen = ""
    for line in started.stdout:
        seen += line
        if seen.count(ready) == times:
            return
    raise AssertionError(f"the program ended before it was ready:\n{seen}")
