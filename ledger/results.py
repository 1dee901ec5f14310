"""What all results share: `to_dict`, and a schema for pydantic."""

from __future__ import annotations

from typing import Any

import msgspec


class Result:
    """A result of the public face: a frozen struct, a frozen dataclass or a named tuple.

    Each can be a field of a pydantic model, and so of a FastAPI response model. Pydantic is no dependency: it calls
    `__get_pydantic_core_schema__`, and nobody else does.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for `json.dumps`; nested results become dicts too.

        Times become ISO 8601 text in UTC, such as `2026-01-01T12:00:00.010000Z`, fractions text such as `3/2`, and
        hashes hexadecimal digits.

            json.dumps(reservation.to_dict())
        """
        fields = self._asdict() if hasattr(self, "_asdict") else msgspec.to_builtins(self, **_AS_JSON)
        return {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return the schema by which pydantic validates, serializes and describes this class."""
        from .pydantic_schema import schema_of

        return schema_of(cls, source, handler)


_AS_JSON: dict[str, Any] = {"str_keys": True, "enc_hook": str}
