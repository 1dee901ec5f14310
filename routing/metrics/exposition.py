"""The body of `/metrics`."""

from __future__ import annotations

from collections.abc import Iterable


def exposition(ledgers: Iterable[object], *, feeds: Iterable[object] = ()) -> tuple[bytes, str]:
    """Return what Prometheus scrapes, and its content type."""
    raise NotImplementedError
