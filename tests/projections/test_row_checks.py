"""Row checks find a bad row even if all hashes were computed again to fit."""

from __future__ import annotations

from typing import Any

import pytest

from ledger import Head, Row
from ledger.codec import row_hash
from projections.row_checks import RowChecker, RowProblem
from tests.support.logs import head_at, row_after, rows_after

pytestmark = pytest.mark.compatibility


def chained(*rows: Row) -> list[Row]:
    """Return the rows with hashes that fit their columns."""
    previous, done = Head().hash, []
    for row in rows:
        done.append(row._replace(hash=row_hash(previous, row)))
        previous = done[-1].hash
    return done


def problems(rows: list[Row]) -> list[RowProblem]:
    row_checker = RowChecker()
    return [problem for row in rows for problem in row_checker.check(row)]


def test_an_honest_log_has_no_problems() -> None:
    """With rows of all three shapes in several streams; the checker's position and hash are those of the last row."""
    rows = rows_after(Head(), 3)
    for columns in ({"job_uuid": "job", "attempt": 1}, {"settles": 4}, {"key": "k", "job_uuid": "job", "attempt": 2}):
        rows.append(row_after(head_at(rows[-1]), "another", len(rows) - 2, **columns))
    row_checker = RowChecker()
    assert [problem for row in rows for problem in row_checker.check(row)] == []
    assert (row_checker.position, row_checker.hash) == (6, rows[-1].hash)


@pytest.mark.parametrize(
    "columns",
    [
        {"attempt": 0},
        {"settles": 0},
        {"settles": ""},
        {"settles": b""},
        {"settles": 0.0},
        {"attempt": ""},
        {"job_uuid": "job", "attempt": b""},
        {"attempt": 1},
        {"job_uuid": "job"},
        {"job_uuid": "job", "attempt": 0},
        {"job_uuid": "job", "attempt": 1, "settles": 1},
        {"job_uuid": "job", "attempt": 1, "settles": 0},
    ],
)
def test_columns_with_equal_hashes_are_distinguished(columns: dict[str, Any]) -> None:
    """An absent value and 0 have the same hash; and a row has a job, or a settlement, or neither.

    Fails if the checker relies on the hash alone.
    """
    rows = chained(*(row._replace(**columns) if row.position == 2 else row for row in rows_after(Head(), 3)))
    found = problems(rows)
    assert {(problem.position, problem.rule.value) for problem in found} == {(2, "row-columns")}


def test_a_wrong_version_is_found_if_the_hashes_fit() -> None:
    """A skipped and a repeated version are one problem each; the versions after them are compared with them."""
    rows = chained(*rows_after(Head(), 4))
    left_out = chained(*(row._replace(version=row.version + (row.position > 2)) for row in rows))
    assert [(problem.position, problem.rule.value) for problem in problems(left_out)] == [(3, "dense-versions")]
    twice = chained(*(row._replace(version=min(row.version, 3)) for row in rows))
    assert [(problem.position, problem.rule.value) for problem in problems(twice)] == [(4, "dense-versions")]


def test_missing_rows_are_one_problem_if_the_hashes_fit() -> None:
    """Two rows were deleted, and all rows after them were hashed again."""
    rows = rows_after(Head(), 6)
    versions = iter(range(1, 7))
    remaining = chained(*(row._replace(version=next(versions)) for row in rows if row.position not in (3, 4)))
    (problem,) = problems(remaining)
    assert (problem.position, problem.rule.value) == (3, "dense-positions")
    assert "positions 3 to 4 are missing" in problem.message


@pytest.mark.parametrize("position", [None, "2", 2.0, -5, 0, 1, 2])
def test_a_row_at_a_wrong_position_does_not_affect_the_others(position: Any) -> None:
    """It is a problem, and the rows after it are compared with those before it."""
    rows = rows_after(Head(), 4)
    found = problems([*rows[:2], rows[0]._replace(position=position), *rows[2:]])
    assert {problem.position for problem in found} == {min(max(position, 1), 3) if type(position) is int else 3}


@pytest.mark.parametrize("columns", [{"version": 2**70}, {"position": 2**70}, {"recorded_at_ns": -(2**70)}])
def test_a_row_that_cannot_be_hashed_is_a_problem_even_with_an_empty_hash(columns: dict[str, Any]) -> None:
    """Fails if a hash that cannot be computed equals a hash that is missing."""
    (row,) = rows_after(Head(), 1)
    assert problems([row._replace(**columns, hash=b"")])
