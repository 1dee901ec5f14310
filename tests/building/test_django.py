"""`routing.contrib.django`, in processes of their own, since Django is configured once in a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.recipes import NETWORK, environment, make_ledger

SET_UP = """
import json, sys
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["routing.contrib.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    ALLOWANCE=json.loads(sys.argv[1]),
)
django.setup()
"""
CHECK = """
from django.core.checks import run_checks
print(json.dumps([[each.id, each.msg] for each in run_checks(databases=["default"])]))
"""


def run(script: str, allowance: dict[str, Any], directory: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a project with this setting `ALLOWANCE`, and nothing about a ledger in the environment."""
    kept = {name: value for name, value in environment(directory).items() if not name.startswith("ALLOWANCE_")}
    command = [sys.executable, "-c", SET_UP + script, json.dumps(allowance)]
    return subprocess.run(
        command, cwd=directory, env={**kept, **more}, capture_output=True, text=True, timeout=60, check=False
    )


def checked(allowance: dict[str, Any], directory: Path, **more: str) -> list[list[str]]:
    """The ids and messages of the checks."""
    ran = run(CHECK, allowance, directory, **more)
    assert ran.returncode == 0, ran.stderr
    messages: list[list[str]] = json.loads(ran.stdout)
    return messages


LEDGER = {"DATABASE_URL": "sqlite:///allowance.db", "VALIDATOR_SS58": NETWORK.validator_ss58}


def test_a_ledger_that_can_be_read_passes_the_checks(tmp_path: Path) -> None:
    """The checks create nothing and report nothing."""
    make_ledger(tmp_path)
    assert checked(LEDGER, tmp_path) == []


def test_a_missing_validator_is_an_error_unless_a_debug_miner_gets_all_jobs(tmp_path: Path) -> None:
    """The environment counts, as it does for `routing.configure`."""
    ((found, message),) = checked({}, tmp_path)
    assert (found, "validator" in message) == ("allowance.E001", True)
    assert checked({}, tmp_path, DEBUG_MINER_KEY="5Debug") == []


def test_a_database_without_the_ledger_is_worth_a_note_only(tmp_path: Path) -> None:
    """A new project must be able to run `migrate` before the ledger has its first event."""
    make_ledger(tmp_path)
    ((found, message),) = checked({**LEDGER, "VALIDATOR_SS58": "5Other"}, tmp_path)
    assert (found, "5Other" in message) == ("allowance.I001", True)


def test_an_unreachable_database_is_an_error(tmp_path: Path) -> None:
    """It fails if the check asks only whether the settings look right."""
    ((found, _),) = checked({**LEDGER, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, tmp_path)
    assert found == "allowance.E002"


def test_an_unknown_key_is_refused_at_start(tmp_path: Path) -> None:
    """A misspelt key would otherwise be ignored, and the ledger of the environment used. The error lists all keys."""
    ran = run("", {"DATABASE": "sqlite://"}, tmp_path)
    assert ran.returncode != 0
    assert "ALLOWANCE has DATABASE; its keys can be DATABASE_URL, VALIDATOR_SS58, SETTINGS" in ran.stderr


SETTLE = """
from django.db import transaction
from routing.contrib.django import settle_on_commit
from routing.contrib.testing import SmallNetwork
from routing.sync import allowance, routing

def route():
    return routing().pick_miner_for_job_request(SmallNetwork().job())

def status(route):
    return allowance().reservation(route.allowance_reservation_id).status

committed, rolled_back, outside = route(), route(), route()
with transaction.atomic():
    settle_on_commit(committed, "spend")
    print(status(committed))
print(status(committed))
try:
    with transaction.atomic():
        settle_on_commit(rolled_back, "spend")
        raise KeyError
except KeyError:
    print(status(rolled_back))
settle_on_commit(outside, "release")
print(status(outside))
"""


def test_a_route_is_settled_when_the_transaction_commits(tmp_path: Path) -> None:
    """Not before, and not at all if it is rolled back; it fails if the helper settles at once."""
    make_ledger(tmp_path)
    ran = run(SETTLE, LEDGER, tmp_path)
    assert ran.stdout.split() == ["reserved", "spent", "reserved", "released"], ran.stderr


CALL = """
import os
from django.core.management import CommandError, call_command

call_command("allowance", "health", "--json")
try:
    call_command("allowance", "show", "7")
except CommandError as failed:
    print(failed.returncode, "ALLOWANCE_DATABASE_URL" in os.environ)
"""


@pytest.mark.slow
def test_call_command_runs_the_command_line_on_the_ledger_of_the_settings(tmp_path: Path) -> None:
    """It passes options on, raises on an exit code other than 0, and leaves the environment as it was."""
    make_ledger(tmp_path)
    ran = run(CALL, LEDGER, tmp_path)
    assert ran.returncode == 0, ran.stderr
    health, failed = ran.stdout.splitlines()
    assert json.loads(health)["validator_ss58"] == NETWORK.validator_ss58
    assert failed == "1 False"
