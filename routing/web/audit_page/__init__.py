"""The audit's report as an HTML page: one file that any browser shows without a network."""

from .document import is_page, page, sections

__all__ = ["is_page", "page", "sections"]
