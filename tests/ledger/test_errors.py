"""The tree of errors: each one survives the way through a task queue with what it says."""

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
    "dict[str, Any]": {"number": (1, 2)},
}
KINDS = [getattr(errors, name) for name in errors.__all__ if "__init__" in vars(getattr(errors, name))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_is_the_same_after_a_task_queue(kind: type[Any], protocol: int) -> None:
    """Class, message and fields come out as they went in.

    Catches Python's own way, which makes an error anew from its message alone and fails where it takes fields.
    """
    parameters = list(inspect.signature(kind).parameters.values())
    error = kind(*(VALUES[str(each.annotation)] for each in parameters))
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
        assert again.to_dict() == error.to_dict()
