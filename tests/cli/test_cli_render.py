"""Text for terminals: tables, numbers, ranges, charts, and what `Output` makes of them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.cli.demo import chart
from routing.cli.demo.chart import Column
from routing.cli.io import render
from routing.cli.io.documents import as_json
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress, progress_line, rate_text


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    whole = render.layout(headers, rows)
    return [whole.header, *whole.lines(rows)]


def fitted(headers: Sequence[str], rows: Sequence[Sequence[object]], columns: int) -> tuple[list[str], bool]:
    found = render.layout(headers, rows, columns)
    return [found.header, *found.lines(rows)], found.columns is not None


def test_columns_are_aligned_numbers_to_the_right() -> None:
    """Digits stand under digits, words under words."""
    assert table(("id", "miner", "left"), [(7, "a", "1.000 s"), (1234, "bcd", "12.000 s")]) == [
        "  id  miner      left",
        "   7  a       1.000 s",
        "1234  bcd    12.000 s",
    ]


HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
HEADERS = ("id", "miner", "left", "class", "blocks")
ROWS = [(7, HOTKEY, "1.000 s", "always_on.gpu-24gb", 96), (1234, "5B", "12.000 s", "cpu", 7)]


def test_a_table_that_fits_is_left_alone() -> None:
    """A terminal of its width, or wider, shows it whole."""
    whole = table(HEADERS, ROWS)
    width = max(map(len, whole))
    assert fitted(HEADERS, ROWS, width) == (whole, False)
    assert fitted(HEADERS, ROWS, width - 1)[1]


def test_a_narrow_terminal_gets_short_names_first_and_fewer_columns_then() -> None:
    """No line is wrapped: hotkeys lose their middle, then words are cut at the edge.

    Catches a row of which the second half stands under the first, unaligned.
    """
    assert fitted(HEADERS, ROWS, 56) == (
        [
            "  id  miner            left  class               blocks",
            "   7  5Grwva…utQY   1.000 s  always_on.gpu-24gb      96",
            "1234  5B           12.000 s  cpu                      7",
        ],
        True,
    )
    assert fitted(HEADERS, ROWS, 40)[0] == [
        "  id  miner            left  class",
        "   7  5Grwva…utQY   1.000 s  always_on.…",
        "1234  5B           12.000 s  cpu",
    ]


def test_a_number_is_whole_or_not_there() -> None:
    """A column of numbers that does not fit is left out, and the header says that there was more.

    Catches a number without its last digits, which would be another number.
    """
    rows = [(7, 1234.5, 96), (8, 12.0, 7)]
    assert fitted(("id", "left", "blocks"), rows, 19) == (
        [
            "id       left  …",
            " 7  1,234.500",
            " 8     12.000",
        ],
        True,
    )
    assert fitted(("id", "left", "blocks"), rows, 16)[0][0] == "id       left  …"
    assert fitted(("id", "left", "blocks"), rows, 15)[0] == ["id  …", " 7", " 8"]


@given(st.integers(2, 90), st.lists(st.tuples(st.integers(0, 10**9), st.text(max_size=60)), max_size=4))
def test_no_line_is_longer_than_the_terminal(columns: int, rows: list[tuple[int, str]]) -> None:
    """Whatever stands in a table, in any script, it stays in its columns."""
    lines, _ = fitted(("id", "name"), rows, columns)
    assert all(render.columns_of(line) <= columns for line in lines)


def test_later_rows_stand_as_the_first_ones() -> None:
    """A wider cell stands out, and moves nothing above it; in a terminal a number is whole or not there, too."""
    whole = render.layout(("id", "miner", "left"), [(7, "5Anna", 12.5)])
    assert [whole.header, *whole.lines([(7, "5Anna", 12.5), (1234, "5Bernadette", 7.0)])] == [
        "id  miner    left",
        " 7  5Anna  12.500",
        "1234  5Bernadette   7.000",
    ]
    narrow = render.layout(("id", "left", "job"), [(7, 12.5, "job-1")], 14)
    assert list(narrow.lines([(7, 12.5, "job-1"), (123, 12345.5, "j"), (123456789, 1234.5, "j")])) == [
        " 7  12.500  j…",
        "123",
        "123456789",
    ]


def test_wide_letters_take_two_columns_and_marks_none() -> None:
    """Columns stay aligned whatever script a name is in."""
    assert render.columns_of("漢字") == 4
    assert render.columns_of("Za\u0301\u0316") == 2
    names = ["miner", "漢字", "Za\u0301\u0316"]
    lines = table(("name", "left"), [(name, "1 s") for name in names])
    assert [render.columns_of(line) for line in lines] == [11, 11, 11, 11]


def test_a_table_without_rows_is_its_headers() -> None:
    """An empty answer still says what it would have shown."""
    assert table(("id", "miner"), []) == ["id  miner"]


def test_nothing_is_shown_as_a_dash() -> None:
    """None, as in a reservation that is not settled, is visible."""
    assert table(("job", "settled"), [(None, None)])[1] == "-    -"


def test_labels_are_aligned() -> None:
    """Values stand below each other."""
    assert list(render.labelled([("a", 1), ("long", None)])) == ["a     1", "long  -"]


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([7, 8], "7-8"),
        ([1000, 1001, 1002, 1007, 1009, 1010], "1000-1002, 1007, 1009-1010"),
    ],
)
def test_runs_of_blocks_are_drawn_together(blocks: list[int], text: str) -> None:
    """Hundreds of blocks fit into a line."""
    assert render.block_ranges(blocks) == text


@given(st.sets(st.integers(1, 60)))
def test_ranges_name_each_block_once(blocks: set[int]) -> None:
    """From the ranges the blocks can be told again."""
    named: list[int] = []
    for part in filter(None, render.block_ranges(sorted(blocks)).split(", ")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)

    assert named == sorted(blocks)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (7_400_000, "7.4 MB")],
)
def test_sizes_are_short(size: int, text: str) -> None:
    """A size is told in the unit that fits it."""
    assert render.size_text(size) == text


def test_times_are_told_in_utc() -> None:
    """Wherever the time comes from, it is shown in one zone, to the millisecond."""
    moment = datetime(2024, 1, 1, 13, 0, 0, 10_999, tzinfo=timezone(timedelta(hours=1)))

    assert render.time_text(moment) == "2024-01-01 12:00:00.010Z"
    assert render.time_text(None) == "-"


def test_shares_of_nothing_are_a_dash() -> None:
    """Nothing is divided by zero."""
    assert render.percent_text(0.0, 0.0) == "-"
    assert render.percent_text(1.0, 4.0) == "25.0 %"


def test_one_is_not_a_plural() -> None:
    """The demo speaks properly of one miner, too."""
    assert render.counted(1, "block") == "1 block"
    assert render.counted(1100, "block") == "1,100 blocks"


@given(st.text())
def test_nothing_printed_can_steer_a_terminal(text: str) -> None:
    """Names from elsewhere come out as printable characters, whatever is in them."""
    assert render.printable(text).isprintable()


def test_a_chart_shows_what_is_left_and_what_is_gone() -> None:
    """Filled is left, shaded is gone, empty was never there."""
    columns = [Column(4.0, 0.0), Column(4.0, 2.0), Column(0.0, 0.0), Column(4.0, 4.0)]

    assert chart.draw(columns, first_label="1", last_label="4", rows=4) == [
        "4 s │░░ █",
        "    │░░ █",
        "    │░█ █",
        "    │░█ █",
        "    └────",
        "     1  4",
    ]


def test_a_chart_does_not_hide_a_little() -> None:
    """The smallest amount is a character, so that nobody takes it for nothing."""
    lines = chart.draw([Column(100.0, 0.001)], first_label="1", last_label="1", rows=2, characters=chart.ASCII)

    assert lines[:2] == ["100 s |.", "      |#"]


def test_a_chart_of_nothing_is_empty() -> None:
    """An account that never granted anything draws as nothing, without an error."""
    assert chart.draw([], first_label="1", last_label="1", rows=1)[0].endswith("│")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1))), st.integers(1, 9))
def test_a_chart_is_as_large_as_asked_for(amounts: list[tuple[float, float]], rows: int) -> None:
    """Whatever the numbers, a chart has its rows and its columns."""
    columns = [Column(granted, granted * share) for granted, share in amounts]

    lines = chart.draw(columns, first_label="a", last_label="b", rows=rows)

    assert len(lines) == rows + 2
    assert all(len(line) <= len(lines[-2]) for line in lines[:-1])


def test_json_is_one_line_and_knows_times_and_fractions() -> None:
    """Whatever a result or an error holds can be written."""
    text = as_json({"at": datetime(2024, 1, 1, tzinfo=UTC), "half": Fraction(1, 2), "name": "a\nb"})

    assert json.loads(text) == {"at": "2024-01-01T00:00:00Z", "half": "1/2", "name": "a\nb"}
    assert "\n" not in text


def test_a_terminal_that_lacks_a_character_gets_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ASCII terminal is no reason to fail."""
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    out = Output(json_wanted=False)

    out.line("…")
    out.flush()

    assert data.getvalue() == b"\\u2026\n"
    assert not out.shows_unicode


class Terminal(io.StringIO):
    """A stream that a person watches."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR, a dumb terminal, a pipe and JSON each turn colours off."""
    for variable in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    assert not Output(json_wanted=False).colour_wanted

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert Output(json_wanted=False).colour_wanted
    assert not Output(json_wanted=True).colour_wanted
    monkeypatch.setenv("TERM", "dumb")
    assert not Output(json_wanted=False).colour_wanted
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output(json_wanted=False).colour_wanted


def test_only_a_terminal_gets_tables_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a pipe gets every name whole; a terminal is told that it did not."""
    monkeypatch.setenv("COLUMNS", "40")
    piped, watched, notes = io.StringIO(), Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", notes)
    for stream in (piped, watched):
        monkeypatch.setattr(sys, "stdout", stream)
        Output(json_wanted=False).table(HEADERS, ROWS)
    assert piped.getvalue().splitlines() == table(HEADERS, ROWS)
    assert watched.getvalue().splitlines() == fitted(HEADERS, ROWS, 40)[0]
    assert notes.getvalue().count("shortened to fit the terminal") == 1


def test_progress_is_for_those_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets no progress; a terminal gets one line that is wiped at the end."""
    piped, watched = io.StringIO(), Terminal()
    for stream in (piped, watched):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("import", "lines") as progress:
            progress.show(1, "2 blocks/s")
            progress.show(2, "2 blocks/s")

    assert piped.getvalue() == ""
    assert watched.getvalue() == "\r\x1b[Kimport: 1 lines, 2 blocks/s\r\x1b[K"


def test_progress_says_how_far_it_is() -> None:
    """With a known end, both are told."""
    assert progress_line("route", 1200, 3000, "jobs", "") == "route [########............] 40 %: 1,200 of 3,000 jobs"
    assert progress_line("route", 0, 0, "jobs", "") == "route [####################] 100 %: 0 of 0 jobs"
    assert rate_text(350, 1.0, "blocks") == "350 blocks/s"
    assert rate_text(0, 0.0, "blocks") == "0 blocks/s"
