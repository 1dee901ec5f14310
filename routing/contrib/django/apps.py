"""The Django app: its settings and its system checks."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.checks import Tags, register
from django.core.exceptions import ImproperlyConfigured

from routing.singletons import configure

from .checks import check_configuration, check_database

if TYPE_CHECKING:
    # Django ships no types, and a class with a base of unknown type would have an unknown type itself.
    AppConfig = object
else:
    from django.apps import AppConfig


class AllowanceConfig(AppConfig):
    """Passes the setting `ALLOWANCE` to `routing.configure`, and registers the checks."""

    name = "routing.contrib.django"
    label = "allowance"
    verbose_name = "Allowance ledger"

    def ready(self) -> None:
        """Configure the process-wide ledger and router. Raises `ImproperlyConfigured` for an unknown key."""
        known = [parameter.upper() for parameter in signature(configure).parameters]
        configured = dict(getattr(settings, "ALLOWANCE", {}))
        unknown = sorted(set(configured) - set(known))
        if unknown:
            raise ImproperlyConfigured(f"ALLOWANCE has {', '.join(unknown)}; its keys can be {', '.join(known)}")
        configure(**{key.lower(): value for key, value in configured.items()})
        register(check_configuration, "allowance")
        register(check_database, Tags.database)
