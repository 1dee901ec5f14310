"""Configuration from the environment: read at the first call, refused by name where it is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ledger import Miner, Settings
from ledger.errors import InvalidInput
from ledger.values import integer, name

TRUSTED_MINER_FAKE_KEY = "0" * 48
VARIABLES = {"database_url": "ALLOWANCE_DATABASE_URL", "validator_ss58": "ALLOWANCE_VALIDATOR_SS58"}
DEFAULT_MINER_ADDRESS = "127.0.0.1"
DEFAULT_MINER_PORT = 8000


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the process-wide `routing()` and `allowance()` are made from."""

    database_url: str
    validator_ss58: str
    settings: Settings | None
    debug_miner: Miner | None
    trusted_miner: Miner


def configuration_from_environment(environment: Mapping[str, str] = os.environ) -> Configuration:
    """The configuration in environment variables; raises `InvalidInput` that names the variable."""
    debug_key = environment.get("DEBUG_MINER_KEY", "")
    debug_miner = _miner(environment, "DEBUG_MINER", debug_key) if debug_key else None
    return Configuration(
        environment.get("ALLOWANCE_DATABASE_URL") or default_database_url(environment),
        environment.get("ALLOWANCE_VALIDATOR_SS58", ""),
        settings_from_environment(environment),
        debug_miner,
        _miner(environment, "TRUSTED_MINER", TRUSTED_MINER_FAKE_KEY),
    )


def default_database_url(environment: Mapping[str, str] = os.environ) -> str:
    """A SQLite file in the user's data directory."""
    from pathlib import Path  # here, since whoever only imports the library should not wait for it

    home = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"sqlite:///{Path(home) / 'allowance-ledger' / 'allowance.db'}"


def settings_from_environment(environment: Mapping[str, str]) -> Settings | None:
    """Settings where any `ALLOWANCE_<FIELD>` is set, the rest at their defaults; None where none is."""
    given: dict[str, Any] = {}
    for field in fields(Settings):
        variable = f"ALLOWANCE_{field.name.upper()}"
        if environment.get(variable, "") != "":
            read, expected = _READERS[field.name]
            try:
                given[field.name] = read(environment[variable])
                Settings(**{field.name: given[field.name]})
            except InvalidInput as refused:
                right = _expected(refused, field.name, expected)
                raise InvalidInput(variable, environment[variable], right) from refused
            except (ValueError, TypeError, RecursionError) as cause:
                raise InvalidInput(variable, environment[variable], expected) from cause
    return Settings(**given) if given else None


def _expected(refused: InvalidInput, field: str, as_text: str) -> str:
    """What would be right: of a number, what `Settings` says, who knows the range; else what the text must be."""
    if refused.field != field:
        return f"{as_text}, with {refused.field} {refused.expected}"
    return refused.expected if _READERS[field][0] in (int, float) else as_text


def _miner(environment: Mapping[str, str], prefix: str, hotkey_ss58: str) -> Miner:
    address = environment.get(f"{prefix}_ADDRESS") or DEFAULT_MINER_ADDRESS
    port_text = environment.get(f"{prefix}_PORT") or str(DEFAULT_MINER_PORT)
    expected = "a port from 0 to 65535"
    if not port_text.isascii() or not port_text.isdigit() or len(port_text) > len("65535"):
        raise InvalidInput(f"{prefix}_PORT", port_text, expected)
    return Miner(
        name(address, f"{prefix}_ADDRESS", 253),
        6 if ":" in address else 4,
        integer(int(port_text), f"{prefix}_PORT", 0, 65_535),
        name(hotkey_ss58, f"{prefix}_KEY"),
    )


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _json(text: str) -> Any:
    import json  # as above

    return json.loads(text, object_pairs_hook=_each_name_once)


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A repeated name would silently replace the value before it."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is there twice")
    return names


_AGE: tuple[Callable[[str], Any], str] = (int, "a whole number of blocks, 0 or more")
_SECONDS: tuple[Callable[[str], Any], str] = (float, "a number of seconds, 0 or more")
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "block_expiry_blocks": _AGE,
    "reservation_margin_seconds": _SECONDS,
    "longest_job_seconds": _SECONDS,
    "long_block_seconds": _SECONDS,
    "long_block_counts_as_seconds": _SECONDS,
    "allowance_multiplier": (str, "a decimal or a fraction such as 1.5 or 3/2, from 0 to 1000"),
    "executors_max_per_class": (_json, 'a JSON object such as {"always_on.gpu-24gb": 2}, each name once'),
    "validation_leeway_lower_blocks": _AGE,
    "validation_leeway_upper_blocks": _AGE,
    "respect_executor_count": (_flag, "true or false"),
    "newest_block_max_age_seconds": _SECONDS,
}
