"""`allowance serve`: its errors, and that it needs the extra only when it runs."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from routing import Allowance
from tests.support.cli import command_line
from tests.support.engines import new_database
from tests.support.served import fill, served
from tests.support.small import VALIDATOR


def test_a_wrong_or_taken_address_is_an_error_of_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named with what would be right, and no page is announced."""
    url = new_database("sqlite", tmp_path)
    asyncio.run(fill(url))
    command = command_line(capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        for options, words in {
            ("--port", number): f"127.0.0.1:{number}",
            ("--port", 65_536): "not a port from 0 to 65535",
            ("--host", "192.0.2.1"): "free to listen on",
            ("--host", "no host"): "free to listen on",
        }.items():
            result = command("serve", "--database", url, *options)
            assert (result.code, result.out) == (2, "")
            assert words in result.err


def test_a_ledger_that_does_not_exist_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is created, and the exit code says that there is no such database."""
    result = command_line(capsys)("serve", "--database", f"sqlite:///{tmp_path}/none.db", "--port", "0")
    assert result.code in (1, 2, 3)
    assert result.out == ""
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an import of the extra by the core, and a traceback where a sentence helps."""
    for module in [each for each in sys.modules if each.startswith("routing.web.serving")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = command_line(capsys)("serve", "--database", "sqlite:///allowance.db")
    assert result.code == 2
    assert "pip install 'allowance-ledger[web]'" in result.err


@pytest.mark.slow
def test_an_export_is_served_like_a_ledger(tmp_path: Path) -> None:
    """A file that somebody sent is restored to a temporary database, which is audited too and removed at the end."""
    url, file = new_database("sqlite", tmp_path), tmp_path / "ledger.export"
    asyncio.run(fill(url))

    async def export() -> None:
        async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
            await ledger.export(file)

    asyncio.run(export())
    before = set(Path(tempfile.gettempdir()).glob("allowance-*"))
    with served(str(file)) as (address, _):
        position = httpx.get(f"{address}/overview.json").json()["position"]
        assert len(httpx.get(f"{address}/events.json?limit=1000").json()["items"]) == position
        httpx.get(f"{address}/audit-start")
        httpx.get(f"{address}/audit-live", timeout=60)
        assert httpx.get(f"{address}/audit.json").json()["report"]["findings_count"] == 0
    assert set(Path(tempfile.gettempdir()).glob("allowance-*")) <= before
