"""Configuration from the environment, read when the process-wide ledger or router is first used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ledger import Miner, Settings
from ledger.errors import InvalidInput
from ledger.values import integer, name

# Source: ComputeHorde's validator, which sends jobs for its trusted miner to a pseudo-miner with this hotkey.
TRUSTED_MINER_FAKE_KEY = "0" * 48
VARIABLES = {"database_url": "ALLOWANCE_DATABASE_URL", "validator_ss58": "ALLOWANCE_VALIDATOR_SS58"}
PREFIX = "ALLOWANCE_"
NOT_IN_ENVIRONMENT = frozenset({"tie_break"})
"""Settings without a variable: only `change_settings` changes them, in code or by a command."""
SETTING_VARIABLES = {
    field.name: f"{PREFIX}{field.name.upper()}" for field in fields(Settings) if field.name not in NOT_IN_ENVIRONMENT
}
DEFAULT_MINER_ADDRESS = "127.0.0.1"
DEFAULT_MINER_PORT = 8000


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of the process-wide `routing()` and `allowance()`.

    `validator_ss58` is empty if it is not configured. `debug_miner` None means that jobs are routed on the ledger.
    """

    database_url: str
    validator_ss58: str
    debug_miner: Miner | None
    trusted_miner: Miner


def configuration_from_environment(environment: Mapping[str, str] = os.environ) -> Configuration:
    """Return the configuration in environment variables, without settings, which only programs apply.

    Raises `InvalidInput` with the variable as its field, also for an unknown variable whose name begins as ours do.
    """
    _refuse_unknown_variables(environment)
    debug_key = environment.get("DEBUG_MINER_KEY", "")
    debug_miner = _miner(environment, "DEBUG_MINER", debug_key) if debug_key else None
    return Configuration(
        environment.get("ALLOWANCE_DATABASE_URL") or default_database_url(environment),
        environment.get("ALLOWANCE_VALIDATOR_SS58", ""),
        debug_miner,
        _miner(environment, "TRUSTED_MINER", TRUSTED_MINER_FAKE_KEY),
    )


def default_database_url(environment: Mapping[str, str] = os.environ) -> str:
    """Return the URL of a SQLite file in the user's data directory, as the XDG specification defines it."""
    from pathlib import Path  # here, to keep start-up light: most processes configure a database

    home = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"sqlite:///{Path(home) / 'allowance-ledger' / 'allowance.db'}"


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the fields of `Settings` that `ALLOWANCE_<FIELD>` variables name, with their values.

    An empty variable counts as unset. Raises `InvalidInput` with the variable as its field.
    """
    named = {field: environment.get(variable, "") for field, variable in SETTING_VARIABLES.items()}
    return {
        field: setting_from_text(SETTING_VARIABLES[field], field, text) for field, text in named.items() if text != ""
    }


def setting_from_text(variable: str, field: str, text: str) -> Any:
    """Return the value of a field of `Settings`. Raises `InvalidInput` with `variable` as its field."""
    read, expected = _READERS[field]
    try:
        value = read(text)
        # `Settings` checks the range. Checked one by one, each refusal names its variable.
        Settings(**{field: value})
    except InvalidInput as refused:
        raise InvalidInput(variable, text, _expected(refused, field, expected)) from refused
    except (ValueError, TypeError, RecursionError) as cause:
        raise InvalidInput(variable, text, expected) from cause
    return value


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Raise for a variable that would be ignored in silence although its user meant this library."""
    known = (*VARIABLES.values(), *SETTING_VARIABLES.values())
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable not in known and text:
            if variable.removeprefix(PREFIX).lower() in NOT_IN_ENVIRONMENT:
                expected = "unset, because only `change_settings` and `allowance settings set` change this setting"
                raise InvalidInput(variable, None, expected)
            from difflib import get_close_matches  # here, to keep start-up light: it is for this error only

            close = get_close_matches(variable.removeprefix(PREFIX), [name.removeprefix(PREFIX) for name in known], 1)
            expected = (
                f"unset; did you mean {PREFIX}{close[0]}?" if close else "unset; `allowance guide settings` lists all"
            )
            message = f"{variable} is neither a setting nor another variable of this library, and must be {expected}"
            # Without its value, which may be a URL with a password.
            raise InvalidInput(variable, None, expected, message)


def _expected(refused: InvalidInput, field: str, expected_text: str) -> str:
    """Return what would be right: for a number the range that `Settings` allows, otherwise the form of the text."""
    if refused.field != field:
        return f"{expected_text}, with {refused.field} {refused.expected}"
    return refused.expected if _READERS[field][0] in _NUMBERS else expected_text


def _miner(environment: Mapping[str, str], prefix: str, hotkey_ss58: str) -> Miner:
    address = environment.get(f"{prefix}_ADDRESS") or DEFAULT_MINER_ADDRESS
    port_text = environment.get(f"{prefix}_PORT") or str(DEFAULT_MINER_PORT)
    expected = "a port from 0 to 65535"
    # Stricter than `int()`, which accepts spaces, signs, underscores and the digits of every script.
    if not port_text.isascii() or not port_text.isdigit() or len(port_text) > len("65535"):
        raise InvalidInput(f"{prefix}_PORT", port_text, expected)
    return Miner(
        name(address, f"{prefix}_ADDRESS", 253),
        6 if ":" in address else 4,
        integer(int(port_text), f"{prefix}_PORT", 0, 65_535),
        name(hotkey_ss58, f"{prefix}_KEY"),
    )


def _read_flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that reads "none" as None, and everything else with `read`."""
    return lambda text: None if text.strip().lower() == "none" else read(text)


def _read_json(text: str) -> Any:
    import json  # here, to keep start-up light: only one setting needs it

    return json.loads(text, object_pairs_hook=_without_duplicate_names)


def _without_duplicate_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON allows a repeated name, and the last value would silently replace the first.
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is repeated")
    return names


_seconds_or_none, _blocks_or_none = _or_none(float), _or_none(int)
_NUMBERS = (int, float, _seconds_or_none, _blocks_or_none)
_BLOCKS: tuple[Callable[[str], Any], str] = (int, "a whole number of blocks, 0 or more")
_SECONDS: tuple[Callable[[str], Any], str] = (float, "a number of seconds, 0 or more")
# How each field of `Settings` is read from text, and what the text should be.
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "block_expiry_blocks": _BLOCKS,
    "reservation_margin_seconds": _SECONDS,
    "longest_job_seconds": _SECONDS,
    "long_block_seconds": _SECONDS,
    "long_block_counts_as_seconds": _SECONDS,
    "allowance_multiplier": (str, "a decimal or a fraction such as 1.5 or 3/2, from 0 to 1000"),
    "executors_max_per_class": (_read_json, 'a JSON object such as {"always_on.gpu-24gb": 2}, each name once'),
    "validation_leeway_lower_blocks": _BLOCKS,
    "validation_leeway_upper_blocks": _BLOCKS,
    "respect_executor_count": (_read_flag, "true or false"),
    "newest_block_max_age_seconds": (_seconds_or_none, "a number of seconds, 0 or more, or none"),
    "newest_manifests_max_age_blocks": (_blocks_or_none, "a whole number of blocks, 0 or more, or none"),
    "tie_break": (str, "uuid_and_hash or uuid"),
    "minimum_collateral_wei": (int, "a whole number of wei, 0 or more"),
    "routing_order": (str, "allowance or reliability"),
    "reliability_window_hours": (float, "a number of hours above 0"),
    "reliability_soft_cutoff": (float, "a number below 0"),
    "reliability_separation": (float, "a number, 0 or more"),
}
