"""Configuration from the environment: every variable is read, and a wrong one is refused by name."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest

from ledger import InvalidInput, Miner, Settings
from routing import TRUSTED_MINER_FAKE_KEY
from routing.environment import from_environment

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
}


def test_nothing_set_means_the_recorded_settings_and_a_file_of_the_user() -> None:
    """Without settings in the environment the ledger's own apply; the database is a file in the data directory."""
    configuration = from_environment({"XDG_DATA_HOME": "/data"})
    assert configuration.settings is None
    assert configuration.database_url == "sqlite:////data/allowance-ledger/allowance.db"
    assert configuration.debug_miner is None
    assert configuration.trusted_miner.hotkey_ss58 == TRUSTED_MINER_FAKE_KEY == "0" * 48


def test_every_field_of_settings_has_a_variable() -> None:
    """No setting is left out of the environment."""
    assert {f"ALLOWANCE_{field.name.upper()}" for field in fields(Settings)} == set(RIGHT)


@pytest.mark.parametrize("variable", sorted(RIGHT))
def test_each_variable_sets_its_field(variable: str) -> None:
    """A variable sets its field and leaves the others at their defaults."""
    text, value = RIGHT[variable]
    settings = from_environment({variable: text}).settings
    field = variable.removeprefix("ALLOWANCE_").lower()
    assert settings is not None
    assert getattr(settings, field) == value
    assert settings == Settings(**{field: value})


@pytest.mark.parametrize("variable", sorted(RIGHT))
@pytest.mark.parametrize("text", ["x", "-1", "nan", "1e999", "[1]", "9" * 400])
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(variable: str, text: str) -> None:
    """The error names the variable and says what would be right."""
    with pytest.raises(InvalidInput) as refused:
        from_environment({variable: text})
    assert refused.value.field == variable
    assert refused.value.expected


@pytest.mark.parametrize("port", ["x", "-1", "65536", "80 80", "８０"])
def test_a_wrong_port_is_refused_by_name(port: str) -> None:
    """Ports of the debug and the trusted miner are whole numbers up to 65535."""
    with pytest.raises(InvalidInput) as refused:
        from_environment({"DEBUG_MINER_KEY": "5Debug", "DEBUG_MINER_PORT": port})
    assert refused.value.field == "DEBUG_MINER_PORT"
    with pytest.raises(InvalidInput) as refused:
        from_environment({"TRUSTED_MINER_PORT": port})
    assert refused.value.field == "TRUSTED_MINER_PORT"


def test_debug_and_trusted_miners_come_from_the_environment() -> None:
    """Key, address and port; the ip version follows from the address."""
    configuration = from_environment(
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
