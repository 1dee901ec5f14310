"""Settings of a ledger: changed field by field, in order, with every change logged and listed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ledger import RecordedSettings
from ledger.settings import FIELDS
from ledger.values import seconds
from routing import (
    Allowance,
    IdempotencyConflict,
    InvalidInput,
    ReadOnlyLedger,
    Settings,
    allowance,
    configure,
    reset,
)
from routing.sync import Allowance as BlockingAllowance
from tests.support.small import GPU, START, VALIDATOR, Clock, small_ledger

GIVEN = Settings(block_expiry_blocks=500, longest_job_seconds=60, executors_max_per_class={GPU: 1})


async def test_change_settings_changes_the_named_fields_only(any_url: str) -> None:
    """The other fields stay as they were recorded, not at their defaults, and the result is what is recorded then."""
    async with small_ledger(url=any_url, settings=GIVEN) as ledger:
        before = (await ledger.head()).position
        changed = await ledger.change_settings(allowance_multiplier="1.5", newest_block_max_age_seconds=600)

        assert changed == replace(GIVEN, allowance_multiplier=Fraction(3, 2), newest_block_max_age_seconds=600)
        assert await ledger.settings() == changed
        assert (await ledger.head()).position == before + 1
        assert await ledger.change_settings(newest_block_max_age_seconds=None) == replace(
            GIVEN, allowance_multiplier=Fraction(3, 2)
        )
        assert (await ledger.audit()).findings == []


async def test_a_change_without_a_difference_records_nothing(url: str) -> None:
    """Naming the recorded values, in any spelling, or no field at all, appends no event."""
    async with small_ledger(url=url, settings=GIVEN) as ledger:
        before = await ledger.head()
        assert await ledger.change_settings(block_expiry_blocks=500, longest_job_seconds=60.0) == GIVEN
        assert await ledger.change_settings(allowance_multiplier=Fraction(1)) == GIVEN
        assert await ledger.change_settings() == GIVEN
        assert await ledger.head() == before


async def test_concurrent_changes_of_different_fields_both_survive(any_url: str) -> None:
    """Each change is decided on the settings recorded just before it, also by another process.

    Catches a change that is computed from settings read before: the later one would reset the field of the earlier.
    """
    async with (
        small_ledger(url=any_url, settings=GIVEN) as ledger,
        Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=Clock()) as other,
    ):
        await asyncio.gather(
            ledger.change_settings(block_expiry_blocks=400),
            other.change_settings(longest_job_seconds=30),
            ledger.change_settings(reservation_margin_seconds=10),
            other.change_settings(respect_executor_count=False),
        )
        expected = Settings(
            block_expiry_blocks=400,
            longest_job_seconds=30,
            reservation_margin_seconds=10,
            respect_executor_count=False,
            executors_max_per_class={GPU: 1},
        )
        assert await ledger.settings() == await other.settings() == expected


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ({"block_expiry": 5, "margin": 6}, "settings"),
        ({"block_expiry_blocks": -1}, "block_expiry_blocks"),
        ({"block_expiry_blocks": 5, "longest_job_seconds": "long"}, "longest_job_seconds"),
        ({"respect_executor_count": "no"}, "respect_executor_count"),
    ],
)
async def test_an_invalid_change_is_refused_as_a_whole(url: str, named: dict[str, Any], field: str) -> None:
    """An unknown field is named, with the known ones; a wrong value too; nothing of the call is recorded."""
    async with small_ledger(url=url) as ledger:
        before = await ledger.head()
        with pytest.raises(InvalidInput) as refused:
            await ledger.change_settings(**named)
        assert refused.value.field == field
        if field == "settings":
            assert "block_expiry, margin" in refused.value.value
            assert "block_expiry_blocks" in refused.value.expected
        assert await ledger.head() == before


async def test_a_change_is_made_once_per_key(any_url: str) -> None:
    """A retry returns the first outcome, also after a later change; another request with the key is refused."""
    async with small_ledger(url=any_url, settings=GIVEN) as ledger:
        first = await ledger.change_settings(block_expiry_blocks=400, idempotency_key="key")
        await ledger.change_settings(block_expiry_blocks=300)
        after = await ledger.head()

        assert await ledger.change_settings(block_expiry_blocks=400, idempotency_key="key") == first
        # The last one names a value that was recorded then, which is another request all the same.
        unchanged = {"longest_job_seconds": (await ledger.at(position=after.position).settings()).longest_job_seconds}
        for other in ({"block_expiry_blocks": 300}, {"longest_job_seconds": 30}, unchanged):
            with pytest.raises(IdempotencyConflict):
                await ledger.change_settings(**other, idempotency_key="key")
        with pytest.raises(IdempotencyConflict):
            await ledger.record_manifests(5, {}, confirm=True, idempotency_key="key")
        with pytest.raises(IdempotencyConflict):
            await ledger.expire_due(idempotency_key="key")
        assert await ledger.head() == after
        assert (await ledger.audit()).findings == []


async def test_a_read_only_ledger_changes_no_settings(tmp_path: Path) -> None:
    """A reader can see and list settings, and change none."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    async with small_ledger(url=url, settings=GIVEN):
        pass
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True, settings=Settings()) as ledger:
        with pytest.raises(ReadOnlyLedger):
            await ledger.change_settings(block_expiry_blocks=5)
        assert await ledger.settings() == GIVEN
        assert len(await ledger.settings_changes()) == 1


async def test_every_change_is_listed_with_its_position(url: str) -> None:
    """The list has the old and the new value of each changed field, and begins with the founding."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, settings=GIVEN, clock=clock) as ledger:
        clock.advance(60)
        await ledger.change_settings(block_expiry_blocks=400, longest_job_seconds=30)
        position = (await ledger.head()).position
        await ledger.change_settings(longest_job_seconds=40)

        founded, first, second = await ledger.settings_changes()

        assert (founded.position, list(founded.changes)) == (1, list(FIELDS))
        assert founded.changes["block_expiry_blocks"] == (None, 500)
        assert (first.position, first.recorded_at) == (position, START + timedelta(seconds=192))
        assert first.changes == {"block_expiry_blocks": (500, 400), "longest_job_seconds": (60.0, 30.0)}
        assert (second.position, second.changes) == (position + 1, {"longest_job_seconds": (30.0, 40.0)})
        assert await ledger.at(position=position).settings_changes() == [founded, first]


def logged_changes(caplog: pytest.LogCaptureFixture) -> list[tuple[int, dict[str, Any]]]:
    """Return level and changes of each log record about settings."""
    return [(record.levelno, record.changes) for record in caplog.records if hasattr(record, "changes")]


async def test_every_change_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A change on request is an INFO; settings in code that replace the recorded ones are a WARNING."""
    caplog.set_level(logging.INFO, "allowance.ledger")
    url = f"sqlite:///{tmp_path / 'a.db'}"
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=GIVEN) as ledger:
        assert logged_changes(caplog) == []
        await ledger.change_settings(block_expiry_blocks=400)
        await ledger.change_settings(block_expiry_blocks=400)
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=GIVEN) as ledger:
        assert await ledger.settings() == GIVEN
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=GIVEN):
        pass

    assert logged_changes(caplog) == [
        (logging.INFO, {"block_expiry_blocks": (500, 400)}),
        (logging.WARNING, {"block_expiry_blocks": (400, 500)}),
    ]
    assert "block_expiry_blocks: 400 -> 500" in caplog.text


@pytest.fixture
def process_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a file that the environment names; the process-wide ledger is closed afterwards."""
    url = f"sqlite:///{tmp_path / 'own.db'}"
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", url)
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", VALIDATOR)
    reset()
    yield url
    reset()


def settings_now() -> Settings:
    """Return the settings of the process-wide ledger, opened anew."""
    from routing.sync import allowance as blocking_allowance

    try:
        return blocking_allowance().settings()
    finally:
        reset()


def test_the_environment_changes_only_the_fields_it_names(
    process_wide: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable merges into the recorded settings of the process-wide ledger, with a warning for what it changes.

    Catches the environment as complete settings: a variable would reset all fields that it does not name.
    """
    with BlockingAllowance.open(process_wide, validator_ss58=VALIDATOR, settings=GIVEN):
        pass
    monkeypatch.setenv("ALLOWANCE_NEWEST_BLOCK_MAX_AGE_SECONDS", "600")
    monkeypatch.setenv("ALLOWANCE_LONGEST_JOB_SECONDS", "")
    merged = replace(GIVEN, newest_block_max_age_seconds=600)
    assert settings_now() == merged
    assert logged_changes(caplog) == [(logging.WARNING, {"newest_block_max_age_seconds": (None, 600.0)})]
    assert "the environment" in caplog.text
    assert settings_now() == merged
    assert len(logged_changes(caplog)) == 1

    monkeypatch.delenv("ALLOWANCE_NEWEST_BLOCK_MAX_AGE_SECONDS")
    assert settings_now() == merged


def test_a_new_process_wide_ledger_starts_from_the_defaults_and_the_environment(
    process_wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event has the defaults, with the fields that the environment names; there is no second one."""
    monkeypatch.setenv("ALLOWANCE_BLOCK_EXPIRY_BLOCKS", "300")
    assert settings_now() == Settings(block_expiry_blocks=300)
    with BlockingAllowance.open(process_wide, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert len(ledger.settings_changes()) == 1


def test_settings_in_code_replace_those_in_the_environment(process_wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`configure(settings=…)` wins as a whole, and None in code means the recorded settings."""
    monkeypatch.setenv("ALLOWANCE_BLOCK_EXPIRY_BLOCKS", "300")
    configure(settings=GIVEN)
    assert settings_now() == GIVEN
    configure(settings=None)
    assert settings_now() == GIVEN


def test_a_program_that_opens_a_ledger_in_code_ignores_the_environment(
    process_wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the process-wide ledger reads settings from the environment."""
    monkeypatch.setenv("ALLOWANCE_BLOCK_EXPIRY_BLOCKS", "300")
    with BlockingAllowance.open(process_wide, validator_ss58=VALIDATOR) as ledger:
        assert ledger.settings() == Settings()
        assert ledger.change_settings(block_expiry_blocks=5).block_expiry_blocks == 5


def test_a_wrong_variable_is_refused_before_the_ledger_is_opened(
    process_wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of `allowance()` names the variable."""
    for variable in ("ALLOWANCE_LONGEST_JOB_SECONDS", "ALLOWANCE_LONGEST_JOB"):
        monkeypatch.setenv(variable, "long")
        with pytest.raises(InvalidInput) as refused:
            allowance()
        assert refused.value.field == variable
        monkeypatch.delenv(variable)
    assert not Path(process_wide.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize("amount_ns", [1, 99_999_999_999, 8_639_999_999_999_999])
def test_a_change_keeps_the_other_fields_to_the_nanosecond(amount_ns: int) -> None:
    """The public form counts in float seconds; the way there and back is exact up to the largest duration."""
    recorded = RecordedSettings(reservation_margin_ns=amount_ns, longest_job_ns=amount_ns)
    assert seconds(amount_ns) == recorded.to_settings().longest_job_seconds
    assert recorded.changed({"block_expiry_blocks": 5}) == RecordedSettings(
        reservation_margin_ns=amount_ns, longest_job_ns=amount_ns, block_expiry_blocks=5
    )
