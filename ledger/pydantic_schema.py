"""The pydantic schema of results. Only pydantic imports this module, by `Result.__get_pydantic_core_schema__`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import Parameter, isclass, signature
from typing import Annotated, Any, NotRequired, get_args, get_type_hints

import msgspec
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
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
    field_type = _Hash if hint is bytes else _stored(hint) if _is_of_events(hint) else hint
    return field_type if parameter.default is Parameter.empty else NotRequired[field_type]


def _reader(cls: type) -> Callable[[Any], dict[str, Any]]:
    """Return a function that gives the fields of an instance by name; pydantic serializes their values."""
    names = tuple(signature(cls).parameters)
    return lambda result: {name: getattr(result, name) for name in names}


def _is_of_events(hint: Any) -> bool:
    """Return whether the type is a struct that is no result, or a union of such structs: the stored events."""
    kinds = get_args(hint) or (hint,)
    structs = [kind for kind in kinds if isclass(kind) and issubclass(kind, msgspec.Struct)]
    return len(structs) == len(kinds) and not any(hasattr(kind, "to_dict") for kind in structs)


def _stored(hint: Any) -> Any:
    """Return the type of a field with an event, which msgspec validates and serializes as it does in the log."""

    def validated(value: Any) -> Any:
        return value if isinstance(value, hint) else msgspec.convert(value, hint)

    described = WithJsonSchema({"type": "object", "description": "An event; see `allowance events --schema`."})
    return Annotated[Any, BeforeValidator(validated), PlainSerializer(msgspec.to_builtins), described]


def _hash_from_text(value: Any) -> Any:
    return bytes.fromhex(value) if isinstance(value, str) else value


# Hexadecimal digits in JSON, as in `to_dict`; pydantic would write UTF-8 text.
_Hash = Annotated[
    bytes, BeforeValidator(_hash_from_text), PlainSerializer(bytes.hex, return_type=str, when_used="json")
]
