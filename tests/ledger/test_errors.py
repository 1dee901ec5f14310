"""The tree of errors: each error survives pickling, as task queues do it, with its message and fields."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from ledger import errors

VALUES: dict[str, Any] = {
    "str": "5Anna",
    "int": 7,
    "int | None": 7,
    "float": 1.5,
    "object": 10**30,
    "datetime": datetime(2024, 1, 1, tzinfo=UTC),
    "datetime | None": None,
    "str | None": "what was wrong",
    "list[int]": [7, 8],
    "list[tuple[int, int]]": [(7, 8)],
    "list[str]": ["status"],
    "dict[str, Any]": {"number": (1, 2)},
}
KINDS = [getattr(errors, name) for name in errors.__all__ if "__init__" in vars(getattr(errors, name))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_and_copying(kind: type[Any], protocol: int) -> None:
    """Class, message and fields are unchanged.

    Catches: Python's default, which calls the class with the message alone and fails for classes that expect fields.
    """
    parameters = list(inspect.signature(kind).parameters.values())
    error = kind(*(VALUES[str(each.annotation)] for each in parameters))
    for copied in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(copied) is kind
        assert (str(copied), copied.args, vars(copied)) == (str(error), error.args, vars(error))
        assert copied.to_dict() == error.to_dict()


def test_invalid_input_names_the_field_the_rule_and_the_value() -> None:
    """The message is one sentence, also under the name that the caller used for the field."""
    error = errors.InvalidInput("port", "x", "an integer from 0 to 65535")
    assert str(error) == "port must be an integer from 0 to 65535, got 'x'"
    assert str(error.named("--port")) == "--port must be an integer from 0 to 65535, got 'x'"
