"""The read-only pages of a ledger, for a browser. Needs the extra `web`, except for the audit page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .application import app as app
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, {"routing.web.application": "app"})
