"""The audit as a page: one file that any browser opens without a network."""

from .document import page

__all__ = ["page"]
