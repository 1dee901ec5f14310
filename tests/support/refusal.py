"""A refusal of the reference model."""

from __future__ import annotations


class Refused(Exception):
    """A refusal: the name of the product's error class, its fields, and a text that its message must contain."""

    def __init__(self, error: str, says: str = "", **fields: object) -> None:
        super().__init__(f"{error} {says} {fields}")
        self.error = error
        self.says = says
        self.fields = fields
