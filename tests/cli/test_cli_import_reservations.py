"""Import lines of type `reservation`: what another system had booked, taken over once, refused by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, VALIDATOR

MINERS = [{"hotkey_ss58": "5Anna", "address": "192.0.2.7", "ip_version": 4, "port": 8000}]


def line(blocks: list[list[int]], **fields: Any) -> dict[str, Any]:
    return {
        "type": "reservation",
        "miner_ss58": "5Anna",
        "executor_class": GPU,
        "blocks": blocks,
        "amount_seconds": 6.0,
        "job_uuid": None,
        "reserved_at": "2024-01-01T00:01:00Z",
        "expires_at": "2124-01-01T00:05:00Z",
        "status": "reserved",
    } | fields


def facts(blocks: int = 11) -> list[dict[str, Any]]:
    """Return blocks that grant 6 s each to us on the one miner."""
    sync = {"type": "manifests", "block": 1, "manifests": {"5Anna": {GPU: 1}}}
    times = [f"2024-01-01T00:{12 * number // 60:02}:{12 * number % 60:02}Z" for number in range(blocks + 1)]
    first = {"type": "block", "number": 1, "created_at": times[1], "miners": MINERS}
    first["stakes"] = {VALIDATOR: 1.0, "5Other": 1.0}
    return [sync, first, *({"type": "block", "number": n, "created_at": times[n]} for n in range(2, blocks + 1))]


@pytest.fixture
def allowance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    configure_ledger(monkeypatch, f"sqlite:///{tmp_path}/ledger.db", VALIDATOR)
    return command_line(capsys)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "facts.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))
        return path

    return write


def test_a_file_with_reservations_is_imported_once(allowance: Command, written: Any) -> None:
    """The first import takes over both; the second changes nothing."""
    spent = line([[3, 4], [6, 6]], status="spent", job_uuid="job", amount_seconds=None)
    file = written(*facts(), line([[1, 1]]), spent)
    first = allowance("import", file, "--json").document
    assert (first["reservations_imported"], first["reservations_repeated"], first["lines"]) == (2, 0, 14)
    again = allowance("import", file, "--json").document
    assert (again["reservations_imported"], again["reservations_repeated"]) == (0, 2)
    assert again["position"] == first["position"]
    held = {tuple(each["blocks"]): each["status"] for each in allowance("history", "--json").documents}
    assert held == {(1,): "reserved", (3, 4, 6): "spent"}
    assert "0 reservations imported, 2 known already" in allowance("import", file).out


def test_a_refused_reservation_is_named_by_its_line(allowance: Command, written: Any) -> None:
    """The ones before it are imported, it and what stands after it are not: block 12 is not recorded."""
    block = facts(12)[-1]
    result = allowance("import", written(*facts(), line([[1, 2]], amount_seconds=9.0), line([[2, 3]]), block), "--json")
    assert result.code == 1
    assert (result.error["type"], result.error["fields"]["line"]) == ("CannotImportReservation", 14)
    assert result.error["fields"]["taken"] == [[2, 2]]
    assert allowance("health", "--json").document["newest_block"] == 11
    assert len(allowance("history", "--json").documents) == 1


BAD_LINES: dict[str, tuple[dict[str, Any], str]] = {
    "no blocks": ({"blocks": []}, "$.blocks"),
    "a block instead of a run": ({"blocks": [1000]}, "$.blocks"),
    "overlapping runs": ({"blocks": [[1, 2], [2, 3]]}, "blocks must be runs of blocks"),
    "another status": ({"status": "released"}, "$.status"),
    "a naive time": ({"reserved_at": "2024-01-01T00:00:00"}, "$.reserved_at"),
    "an amount of 0": ({"amount_seconds": 0}, "$.amount_seconds"),
    "another field": ({"amount": 1}, "unknown field `amount`"),
}


@pytest.mark.parametrize(("fields", "problem"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_says_what_is_wrong(allowance: Command, written: Any, fields: dict[str, Any], problem: str) -> None:
    """The line's number and the problem; the reservation before it in the same batch is imported."""
    result = allowance("import", written(*facts(), line([[1, 1]]), line([[2, 2]]) | fields), "--json")
    assert result.code == 2
    assert result.error["fields"]["line"] == 14
    assert problem in result.error["message"]
    assert len(allowance("history", "--json").documents) == 1
