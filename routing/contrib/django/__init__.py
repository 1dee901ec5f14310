"""The ledger in a Django project: configured in the project's settings, checked, and settled on commit.

    # settings.py
    INSTALLED_APPS = [..., "routing.contrib.django"]
    ALLOWANCE = {"DATABASE_URL": "postgresql://…", "VALIDATOR_SS58": "5F…"}

The keys of `ALLOWANCE` are the parameters of `routing.configure` in upper case; a key left out comes from the
environment. `manage.py allowance …` is the command `allowance` with this configuration; `manage.py check` checks it.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from django.db import transaction

from routing import JobRoute

__all__ = ["settle_on_commit"]


def settle_on_commit(route: JobRoute, how: Literal["spend", "release"], *, using: str | None = None) -> None:
    """Settle a route when the current database transaction commits; at once if there is none.

    If the transaction is rolled back, nothing is settled: the reservation stays until somebody settles it or it
    expires. So a job that the project never stored is not paid for. `using` names the database, as for
    `transaction.on_commit`. An error of `settle` reaches the caller after the commit. For code without an event loop.
    """
    from routing.sync import allowance

    transaction.on_commit(partial(allowance().settle, route, how), using=using)
