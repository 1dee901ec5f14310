"""The audit as a page: one file that any browser opens without a network."""

from .document import is_page, page

__all__ = ["is_page", "page"]
