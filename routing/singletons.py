"""The process-wide `routing()` and `allowance()`."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

from ledger import Miner, Settings, current_runtime
from ledger.errors import InvalidInput, renamed_fields
from routing.service.allowance import Allowance
from routing.service.config import (
    VARIABLES,
    Configuration,
    configuration_from_environment,
    settings_from_environment,
)

from .router import Routing

_UNSET: Any = object()
_guard = threading.RLock()


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603 - another thread of the parent may hold the lock, and would never release it here
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_renew_guard)

_overrides: dict[str, Any] = {}
_allowance: Allowance | None = None
_routing: Routing | None = None


def configure(
    *,
    database_url: str = _UNSET,
    validator_ss58: str = _UNSET,
    settings: Settings | None = _UNSET,
    debug_miner: Miner | None = _UNSET,
    trusted_miner: Miner | None = _UNSET,
) -> None:
    """Configure `routing()` and `allowance()` in code; arguments left out come from the environment.

    `debug_miner=None` routes jobs on the ledger, and `settings=None` uses the recorded settings, whatever the
    environment says. Raises `RuntimeError` after the first use of either; call `reset()` first.
    """
    given = {
        "database_url": database_url,
        "validator_ss58": validator_ss58,
        "settings": settings,
        "debug_miner": debug_miner,
        "trusted_miner": trusted_miner,
    }
    with _guard:
        if _routing is not None or _allowance is not None:
            raise RuntimeError("routing() is in use already: call routing.reset() before routing.configure()")
        _overrides.update({name: value for name, value in given.items() if value is not _UNSET})


def configuration() -> Configuration:
    """Return what `configure` or else the environment says. Raises `InvalidInput` that names the variable."""
    # An explicit None of this one overrides the environment; for all others it counts as left out.
    given = {name: value for name, value in _overrides.items() if value is not None or name == "debug_miner"}
    given.pop("settings", None)
    return replace(configuration_from_environment(), **given)


def allowance() -> Allowance:
    """Return the process-wide ledger, configured by `configure` or the environment; its first call opens it.

    Raises `InvalidInput` that names the environment variable or the parameter.
    """
    global _allowance  # noqa: PLW0603 - one per process is the point
    with _guard:
        if _allowance is None:
            configured = configuration()
            if not configured.validator_ss58:
                raise InvalidInput("ALLOWANCE_VALIDATOR_SS58", "", "this validator's hotkey")
            with renamed_fields({field: variable for field, variable in VARIABLES.items() if field not in _overrides}):
                _allowance = Allowance(
                    configured.database_url,
                    configured.validator_ss58,
                    _overrides.get("settings"),
                    time.time_ns,
                    read_only=False,
                    environment_settings=_environment_settings(),
                )
        return _allowance


def routing() -> Routing:
    """Return the process-wide router on `allowance()`. With a debug miner it needs no database and no validator.

    Raises `InvalidInput` that names the environment variable.
    """
    global _routing  # noqa: PLW0603 - one per process is the point
    with _guard:
        if _routing is None:
            configured = configuration()
            _environment_settings()  # Refuses a wrong value now, and not only when the first job is routed.
            # The function, not its result: a router with a debug miner must not require a ledger.
            _routing = Routing(allowance, debug_miner=configured.debug_miner, trusted_miner=configured.trusted_miner)
        return _routing


def reset() -> None:
    """Close the process-wide ledger, and forget it, the router and all that `configure` set; for tests."""
    global _allowance, _routing
    with _guard:
        closing, _allowance, _routing = _allowance, None, None
        _overrides.clear()
    # Outside the lock: closing may wait for the database, and other threads must not wait with it.
    if closing is not None:
        current_runtime().run_blocking(closing.close())


def _environment_settings() -> dict[str, Any]:
    """Return the fields that the environment names; none if code says which settings apply, with None the recorded."""
    return {} if "settings" in _overrides else settings_from_environment()
