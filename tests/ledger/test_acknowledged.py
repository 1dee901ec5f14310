"""What a process has acknowledged, compared with the stored log."""

from __future__ import annotations

import pytest

from ledger import Head, Row
from ledger.acknowledged import REMEMBERED_HEADS, Acknowledged
from routing import LogWentBack
from tests.support.logs import append, head_at, opened, rows_after

FIRST = rows_after(Head(), 9)


@pytest.mark.parametrize(
    ("stored_rows", "expected"),
    [
        # Cut off after 5: the head at 3 is kept for certain, 6 to 9 are gone.
        (FIRST[:5], (9, 5, 3, "positions 6 to 9, and perhaps others after 3")),
        (FIRST[:6], (9, 6, 6, "positions 7 to 9.")),
        # Cut off after 6 and grown again, beyond what was acknowledged.
        ([*FIRST[:6], *rows_after(head_at(FIRST[5]), 8, "other")], (9, 14, 6, "positions 9 to 9, and perhaps")),
        (rows_after(Head(), 9, "other"), (9, 9, 0, "positions 9 to 9, and perhaps others after 0")),
        ([], (9, 0, 0, "positions 1 to 9.")),
    ],
)
async def test_the_error_names_what_is_gone(stored_rows: list[Row], expected: tuple[int, int, int, str]) -> None:
    """Whatever was stored instead, and for ever: later the same error is raised without another look."""
    acknowledged = Acknowledged()
    for position in (3, 6, 9):
        acknowledged.note(position, FIRST[position - 1].hash)
    async with opened("sqlite://") as store:
        if stored_rows:
            await append(store, stored_rows)
        with pytest.raises(LogWentBack) as went_back:
            await acknowledged.check(store)
        error = went_back.value
        assert (error.acknowledged_position, error.stored_position, error.kept_position) == expected[:3]
        assert expected[3] in str(error)
    with pytest.raises(LogWentBack):
        acknowledged.refuse_if_lost()


async def test_a_log_that_has_grown_is_no_loss() -> None:
    """Also if more heads were noted than are remembered, and if an older one is noted late."""
    rows = rows_after(Head(), REMEMBERED_HEADS + 10)
    acknowledged = Acknowledged()
    async with opened("sqlite://") as store:
        await acknowledged.check(store)
        await append(store, rows)
        for row in rows[:-1]:
            acknowledged.note(row.position, row.hash)
        acknowledged.note(1, b"an older head is ignored")
        await acknowledged.check(store)
        acknowledged.refuse_if_lost()
