"""The error of a retry while the outcome of its first call is unknown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ledger.errors import LogWentBack, OutcomeUnknown, StorageUnavailable
from ledger.unknown_outcomes import UnknownOutcomes

KEY = "the-call"


@pytest.mark.parametrize(
    ("error", "expected"), [(LogWentBack(3, 2, 2), LogWentBack), (StorageUnavailable("refused"), OutcomeUnknown)]
)
def test_a_retry_raises_that_the_log_went_back(error: Exception, expected: type[Exception]) -> None:
    """Catches `OutcomeUnknown` instead of `LogWentBack`: the caller would repeat the call for ever."""
    nothing: Any = SimpleNamespace(current=None)
    outcomes = UnknownOutcomes(nothing, nothing, nothing)
    outcomes._unknown.add(KEY)
    retry: Any = SimpleNamespace(work=SimpleNamespace(key=KEY, operation="record_facts"), error=error)

    outcomes.keep([retry])

    assert type(retry.error) is expected
