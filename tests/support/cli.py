"""The command line in the test's own process: a function that runs `allowance`, and the output that it returns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from routing.cli.main import main


@dataclass
class Result:
    """The output of a command and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        """The JSON documents on standard output, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error that `--json` writes."""
        error: dict[str, Any] = self.document["error"]
        return error


Command = Callable[..., Result]


def command_line(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `allowance` with arguments, which it turns into text."""

    def run(*arguments: object) -> Result:
        code = main([str(word) for word in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def configure_ledger(monkeypatch: pytest.MonkeyPatch, database_url: str, validator_ss58: str) -> None:
    """Let the environment name a ledger."""
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", database_url)
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", validator_ss58)
