"""The process-wide `routing()` and `allowance()`."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

from ledger import Miner, Settings, current_runtime
from ledger.errors import InvalidInput, renamed_fields
from routing.service.allowance import Allowance
from routing.service.config import VARIABLES, Configuration, configuration_from_environment

from .router import Routing

_UNSET: Any = object()
_guard = threading.RLock()


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603 - a forked child must not inherit it as another thread held it
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_renew_guard)

_NONE_MEANS_NONE = ("settings", "debug_miner")
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
    """Sets up `routing()` and `allowance()` in code; what is left out comes from the environment.

    `debug_miner=None` routes jobs on the ledger, and `settings=None` adopts the recorded ones, whatever the
    environment says. To be called before their first use, or after `reset()`.
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


def allowance() -> Allowance:
    """The process's ledger, configured by `configure` or the environment; opened at its first call."""
    global _allowance  # noqa: PLW0603 - one per process is the point
    with _guard:
        if _allowance is None:
            configuration = _configuration()
            if not configuration.validator_ss58:
                raise InvalidInput("ALLOWANCE_VALIDATOR_SS58", "", "this validator's hotkey")
            with renamed_fields({field: variable for field, variable in VARIABLES.items() if field not in _overrides}):
                _allowance = Allowance.open(
                    configuration.database_url,
                    validator_ss58=configuration.validator_ss58,
                    settings=configuration.settings,
                )
        return _allowance


def routing() -> Routing:
    """The process's router on `allowance()`. A debug miner needs neither a database nor a validator."""
    global _routing  # noqa: PLW0603
    with _guard:
        if _routing is None:
            configuration = _configuration()
            _routing = Routing(
                allowance, debug_miner=configuration.debug_miner, trusted_miner=configuration.trusted_miner
            )
        return _routing


def reset() -> None:
    """Closes the singletons and forgets `configure`; for tests."""
    global _allowance, _routing
    with _guard:
        closing, _allowance, _routing = _allowance, None, None
        _overrides.clear()
    if closing is not None:
        current_runtime().run_blocking(closing.close())


def _configuration() -> Configuration:
    given = {name: value for name, value in _overrides.items() if value is not None or name in _NONE_MEANS_NONE}
    return replace(configuration_from_environment(), **given)
