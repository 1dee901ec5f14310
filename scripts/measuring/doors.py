"""How many names each package exports."""

from __future__ import annotations

from .checkouts import PACKAGES, Checkout, Figures


def figures(checkout: Checkout) -> Figures:
    """Count `__all__` of each package's `__init__`."""
    return {f"{package}: public names": _public_names(checkout, package) for package in PACKAGES}


def _public_names(checkout: Checkout, package: str) -> str:
    return checkout.run("-c", f"import {package}; print(len({package}.__all__))").strip()
