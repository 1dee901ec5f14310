"""Configuration from the environment: every variable is read, and a wrong value is refused by the variable's name."""

from __future__ import annotations

import argparse
from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest

from ledger import Miner, Settings
from ledger.errors import InvalidInput
from routing import TRUSTED_MINER_FAKE_KEY, NotEnoughAllowanceException, allowance, configure, reset, routing
from routing.cli.named_ledger import ledger_from_arguments
from routing.service.config import configuration_from_environment, settings_from_environment
from tests.support.small import job

RIGHT: dict[str, tuple[str, Any]] = {
    "ALLOWANCE_BLOCK_EXPIRY_BLOCKS": ("10", 10),
    "ALLOWANCE_RESERVATION_MARGIN_SECONDS": ("1.5", 1.5),
    "ALLOWANCE_LONGEST_JOB_SECONDS": ("60", 60.0),
    "ALLOWANCE_LONG_BLOCK_SECONDS": ("13", 13.0),
    "ALLOWANCE_LONG_BLOCK_COUNTS_AS_SECONDS": ("11", 11.0),
    "ALLOWANCE_ALLOWANCE_MULTIPLIER": ("1.5", Fraction(3, 2)),
    "ALLOWANCE_EXECUTORS_MAX_PER_CLASS": ('{"gpu": 2}', {"gpu": 2}),
    "ALLOWANCE_VALIDATION_LEEWAY_LOWER_BLOCKS": ("3", 3),
    "ALLOWANCE_VALIDATION_LEEWAY_UPPER_BLOCKS": ("4", 4),
    "ALLOWANCE_RESPECT_EXECUTOR_COUNT": ("false", False),
    "ALLOWANCE_NEWEST_BLOCK_MAX_AGE_SECONDS": ("300", 300.0),
    "ALLOWANCE_NEWEST_MANIFESTS_MAX_AGE_BLOCKS": ("300", 300),
    "ALLOWANCE_MINIMUM_COLLATERAL_WEI": ("10000000000000000000", 10**19),
    "ALLOWANCE_ROUTING_ORDER": ("reliability", "reliability"),
    "ALLOWANCE_RELIABILITY_WINDOW_HOURS": ("12", 12.0),
    "ALLOWANCE_RELIABILITY_SOFT_CUTOFF": ("-20.5", -20.5),
    "ALLOWANCE_RELIABILITY_SEPARATION": ("4", 4.0),
}


def test_an_empty_environment_means_recorded_settings_and_a_file_of_the_user() -> None:
    """Without settings in the environment the recorded ones apply; the database is a file in the data directory."""
    configuration = configuration_from_environment({"XDG_DATA_HOME": "/data"})
    assert settings_from_environment({"XDG_DATA_HOME": "/data"}) == {}
    assert settings_from_environment(dict.fromkeys(RIGHT, "")) == {}
    assert configuration.database_url == "sqlite:////data/allowance-ledger/allowance.db"
    assert configuration.debug_miner is None
    assert configuration.trusted_miner.hotkey_ss58 == TRUSTED_MINER_FAKE_KEY == "0" * 48


def test_every_field_of_settings_has_a_variable() -> None:
    """Every setting can be set in the environment, except the tie-break, which only `change_settings` changes."""
    names = {field.name for field in fields(Settings)} - {"tie_break"}
    assert {f"ALLOWANCE_{name.upper()}" for name in names} == set(RIGHT)


def test_the_tie_break_has_no_variable() -> None:
    """A variable that would be ignored in silence is refused by its name."""
    with pytest.raises(InvalidInput) as refused:
        configuration_from_environment({"ALLOWANCE_TIE_BREAK": "uuid"})
    assert refused.value.field == "ALLOWANCE_TIE_BREAK"


@pytest.mark.parametrize("variable", sorted(RIGHT))
def test_each_variable_sets_its_field_alone(variable: str) -> None:
    """A variable names the value of its field, and of no other.

    Catches complete settings with defaults for what no variable names: they would reset a ledger's other fields.
    """
    text, value = RIGHT[variable]
    field = variable.removeprefix("ALLOWANCE_").lower()
    named = settings_from_environment({variable: text})
    assert list(named) == [field]
    assert getattr(Settings(**named), field) == value


@pytest.mark.parametrize("field", ["newest_block_max_age_seconds", "newest_manifests_max_age_blocks"])
def test_none_switches_a_limit_off(field: str) -> None:
    """An empty variable is unset, so the text "none" is what removes a limit."""
    assert settings_from_environment({f"ALLOWANCE_{field.upper()}": "None"}) == {field: None}


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("ALLOWANCE_NEWEST_BLOCK_MAX_AGE", "did you mean ALLOWANCE_NEWEST_BLOCK_MAX_AGE_SECONDS?"),
        ("ALLOWANCE_DATABASE_URI", "did you mean ALLOWANCE_DATABASE_URL?"),
        ("ALLOWANCE_X", "`allowance guide settings` lists all"),
    ],
)
def test_an_unknown_variable_is_refused_by_its_name(variable: str, meant: str) -> None:
    """A misspelled variable is not ignored in silence; the error does not show its value, which may be a password."""
    with pytest.raises(InvalidInput) as refused:
        configuration_from_environment({variable: "postgresql://somebody:secret@host/db"})
    assert refused.value.field == variable
    assert meant in str(refused.value)
    assert "secret" not in str(refused.value) + str(refused.value.to_dict())
    configuration_from_environment({variable: ""})


@pytest.mark.parametrize("variable", sorted(RIGHT))
@pytest.mark.parametrize("text", ["x", "-1", "nan", "1e999", "[1]", "9" * 400, "[" * 100_000])
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(variable: str, text: str) -> None:
    """The error names the variable and says which values are right."""
    if (variable, text) == ("ALLOWANCE_RELIABILITY_SOFT_CUTOFF", "-1"):
        return  # a cutoff is below 0
    with pytest.raises(InvalidInput) as refused:
        settings_from_environment({variable: text})
    assert refused.value.field == variable
    assert refused.value.expected


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("ALLOWANCE_BLOCK_EXPIRY_BLOCKS", "99999999999", "an integer from 0 to 1000000000"),
        ("ALLOWANCE_LONGEST_JOB_SECONDS", "9e9", "a finite number from 0 to 8.64e+06"),
        ("ALLOWANCE_LONG_BLOCK_SECONDS", "3601", "a finite number from 0 to 3600"),
        ("ALLOWANCE_ALLOWANCE_MULTIPLIER", "1001", "a decimal or a fraction such as 1.5 or 3/2, from 0 to 1000"),
        ("ALLOWANCE_EXECUTORS_MAX_PER_CLASS", '{"gpu": 9999999999}', "['gpu'] an integer from 0 to 1000000000"),
        ("ALLOWANCE_EXECUTORS_MAX_PER_CLASS", '{"gpu": 2, "cpu": 1, "gpu": 3}', "each name once"),
        ("ALLOWANCE_EXECUTORS_MAX_PER_CLASS", "[1]", "a JSON object such as"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(variable: str, text: str, expected: str) -> None:
    """The error names the upper limit too; a repeated name in a JSON object is refused.

    Catches "0 or more" for a number that is too large, and a cap that a later one replaces silently.
    """
    with pytest.raises(InvalidInput) as refused:
        settings_from_environment({variable: text})
    assert refused.value.field == variable
    assert expected in refused.value.expected
    assert expected in str(refused.value)


@pytest.mark.parametrize("port", ["x", "-1", "65536", "80 80", "８０"])
def test_a_wrong_port_is_refused_by_the_name_of_its_variable(port: str) -> None:
    """Ports of the debug and the trusted miner are whole numbers up to 65535."""
    with pytest.raises(InvalidInput) as refused:
        configuration_from_environment({"DEBUG_MINER_KEY": "5Debug", "DEBUG_MINER_PORT": port})
    assert refused.value.field == "DEBUG_MINER_PORT"
    with pytest.raises(InvalidInput) as refused:
        configuration_from_environment({"TRUSTED_MINER_PORT": port})
    assert refused.value.field == "TRUSTED_MINER_PORT"


def test_debug_and_trusted_miners_come_from_the_environment() -> None:
    """Key, address and port are variables; the ip version follows from the address."""
    configuration = configuration_from_environment(
        {
            "DEBUG_MINER_KEY": "5Debug",
            "DEBUG_MINER_ADDRESS": "::1",
            "DEBUG_MINER_PORT": "9",
            "TRUSTED_MINER_ADDRESS": "192.0.2.9",
            "TRUSTED_MINER_PORT": "10",
        }
    )
    assert configuration.debug_miner == Miner("::1", 6, 9, "5Debug")
    assert configuration.trusted_miner == Miner("192.0.2.9", 4, 10, TRUSTED_MINER_FAKE_KEY)


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [("ALLOWANCE_DATABASE_URL", "mysql://somebody:secret@host/db"), ("ALLOWANCE_VALIDATOR_SS58", "two\nlines")],
)
def test_a_wrong_url_or_validator_is_refused_by_the_name_of_its_variable(
    variable: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library and the command line both name the variable, and the error shows no password."""
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "5Validator")
    monkeypatch.setenv(variable, wrong)
    reset()
    for refuse in (allowance, lambda: ledger_from_arguments(argparse.Namespace(database=None, validator=None))):
        with pytest.raises(InvalidInput) as refused:
            refuse()
        assert refused.value.field == variable
        assert str(refused.value).startswith(f"{variable} must be ")
        assert "secret" not in str(refused.value)


def test_a_wrong_url_is_refused_by_the_name_of_its_option_or_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command-line option, or the parameter of `configure`, that had the wrong value."""
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "5Validator")
    with pytest.raises(InvalidInput) as refused:
        ledger_from_arguments(argparse.Namespace(database="x", validator=None))
    assert refused.value.field == "--database"
    reset()
    configure(database_url="x")
    try:
        with pytest.raises(InvalidInput) as refused:
            allowance()
        assert refused.value.field == "database_url"
    finally:
        reset()


async def test_none_in_code_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`configure(debug_miner=None)` means no debug miner, although the environment names one.

    Catches None treated as left out: every job would be sent to the debug miner without any check.
    """
    monkeypatch.setenv("DEBUG_MINER_KEY", "5Debug")
    reset()
    configure(debug_miner=None, database_url="sqlite://", validator_ss58="5Validator")
    try:
        with pytest.raises(NotEnoughAllowanceException):
            await routing().pick_miner_for_job_request(job("one"))
    finally:
        await allowance().close()
        reset()
