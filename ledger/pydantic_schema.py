"""The pydantic schema of results. Only pydantic imports this module, by `Result.__get_pydantic_core_schema__`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import Parameter, signature
from typing import Annotated, Any, NotRequired, get_type_hints

from pydantic import BeforeValidator, PlainSerializer
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict


def schema_of(cls: type, source: Any, handler: Any) -> CoreSchema:
    """Return a schema that accepts an instance, or a mapping (or JSON object) of its fields, and gives an instance."""
    if is_dataclass(cls):
        # Pydantic knows dataclasses; it does not know structs, and writes a named tuple as a list.
        schema: CoreSchema = handler(source)
        return schema
    fields = handler.generate_schema(_typed_dict(cls))
    from_fields = core_schema.no_info_after_validator_function(lambda values: cls(**values), fields)
    return core_schema.json_or_python_schema(
        json_schema=from_fields,
        python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), from_fields]),
        serialization=core_schema.plain_serializer_function_ser_schema(_reader(cls), return_schema=fields),
    )


def _typed_dict(cls: type) -> Any:
    """Return a typed dict with the fields of a class, under the name of the class, since OpenAPI shows it."""
    hints = get_type_hints(cls)
    fields = {name: _field_type(hints[name], parameter) for name, parameter in signature(cls).parameters.items()}
    new_typed_dict: Any = TypedDict  # Type checkers accept only literal names and fields.
    typed_dict = new_typed_dict(cls.__name__, fields)
    typed_dict.__module__, typed_dict.__doc__ = cls.__module__, cls.__doc__
    return typed_dict


def _field_type(hint: Any, parameter: Parameter) -> Any:
    field_type = _Hash if hint is bytes else hint
    return field_type if parameter.default is Parameter.empty else NotRequired[field_type]


def _reader(cls: type) -> Callable[[Any], dict[str, Any]]:
    """Return a function that gives the fields of an instance by name; pydantic serializes their values."""
    names = tuple(signature(cls).parameters)
    return lambda result: {name: getattr(result, name) for name in names}


def _hash_from_text(value: Any) -> Any:
    return bytes.fromhex(value) if isinstance(value, str) else value


# Hexadecimal digits in JSON, as in `to_dict`; pydantic would write UTF-8 text.
_Hash = Annotated[
    bytes, BeforeValidator(_hash_from_text), PlainSerializer(bytes.hex, return_type=str, when_used="json")
]
