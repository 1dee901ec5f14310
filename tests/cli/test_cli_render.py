"""Text for terminals: tables, numbers, ranges, charts, and the behaviour of `Output` and `Progress`."""

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

from routing import texts
from routing.cli.demo import chart
from routing.cli.demo.chart import Column
from routing.cli.io import render
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress, progress_line, rate_text
from routing.documents import as_json


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    whole = render.layout(headers, rows)
    return [whole.header, *whole.lines(rows)]


def fitted(headers: Sequence[str], rows: Sequence[Sequence[object]], columns: int) -> tuple[list[str], bool]:
    found = render.layout(headers, rows, columns)
    return [found.header, *found.lines(rows)], found.columns is not None


def test_numbers_are_aligned_right_and_words_left() -> None:
    """Digits of equal value are below each other."""
    assert table(("id", "miner", "left"), [(7, "a", "1.000 s"), (1234, "bcd", "12.000 s")]) == [
        "  id  miner      left",
        "   7  a       1.000 s",
        "1234  bcd    12.000 s",
    ]


HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
HEADERS = ("id", "miner", "left", "class", "blocks")
ROWS = [(7, HOTKEY, "1.000 s", "always_on.gpu-24gb", 96), (1234, "5B", "12.000 s", "cpu", 7)]


def test_a_table_that_fits_is_complete() -> None:
    """A terminal that is wide enough shows everything."""
    whole = table(HEADERS, ROWS)
    width = max(map(len, whole))
    assert fitted(HEADERS, ROWS, width) == (whole, False)
    assert fitted(HEADERS, ROWS, width - 1)[1]


def test_a_narrow_terminal_shortens_names_before_it_drops_columns() -> None:
    """Hotkeys lose their middle; if that is not enough, words are cut at the edge. No line wraps.

    Catches: a row whose second half is on the next line, unaligned.
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
        "  id  miner            left  class  …",
        "   7  5Grwva…utQY   1.000 s  always_on.…",
        "1234  5B           12.000 s  cpu",
    ]


def test_a_number_is_never_cut() -> None:
    """A column of numbers that does not fit is left out, and the header shows an ellipsis.

    Catches: a number without its last digits, which would be another number.
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


JOB = "6f1c0a52-27c3-4d0e-9d3b-5f3f5b1f0c11"
JOB_HEADERS = ("id", "status", "miner", "seconds", "job")
JOB_ROW = (4711, "spent", HOTKEY, 12.5, JOB)
JOB_ORDER = ("job", "id", "miner")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (74, ["id", "status", "miner", "seconds", "job"]),
        (70, ["id", "status", "miner", "job", "…"]),
        (66, ["id", "status", "miner", "job", "…"]),
        (60, ["id", "miner", "job", "…"]),
        (52, ["id", "job", "…"]),
        (38, ["job", "…"]),
    ],
)
def test_a_narrow_terminal_keeps_the_most_important_columns(columns: int, shown: list[str]) -> None:
    """The least important are left out first, wherever they stand, and the first of them is never shortened.

    Catches: a history whose jobs, which `explain` needs in full, were the first to go.
    """
    found = render.layout(JOB_HEADERS, [JOB_ROW], columns, JOB_ORDER)
    (line,) = found.lines([JOB_ROW])
    assert found.header.split() == shown
    assert line.endswith(JOB)
    assert render.columns_of(line) <= columns


@given(st.integers(2, 90), st.lists(st.tuples(st.integers(0, 10**9), st.text(max_size=60)), max_size=4))
def test_no_line_is_longer_than_the_terminal(columns: int, rows: list[tuple[int, str]]) -> None:
    """Every line fits, whatever the content and its script."""
    lines, _ = fitted(("id", "name"), rows, columns)
    assert all(render.columns_of(line) <= columns for line in lines)


def test_later_rows_keep_the_layout_of_the_first() -> None:
    """A wider cell does not move the rows before it; in a narrow terminal a number is still never cut."""
    whole = render.layout(("id", "miner", "left"), [(7, "5Anna", 12.5)])
    assert [whole.header, *whole.lines([(7, "5Anna", 12.5), (1234, "5Bernadette", 7.0)])] == [
        "id  miner    left",
        " 7  5Anna  12.500",
        "1234  5Bernadette   7.000",
    ]
    narrow = render.layout(("id", "left", "job"), [(7, 12.5, "job-1")], 14)
    assert list(narrow.lines([(7, 12.5, "job-1"), (123, 12345.5, "j"), (123456789, 1234.5, "j")])) == [
        " 7  12.500",
        "123",
        "123456789",
    ]


def test_wide_letters_are_two_columns_and_marks_none() -> None:
    """Columns stay aligned in every script."""
    assert render.columns_of("漢字") == 4
    assert render.columns_of("Za\u0301\u0316") == 2
    names = ["miner", "漢字", "Za\u0301\u0316"]
    lines = table(("name", "left"), [(name, "1 s") for name in names])
    assert [render.columns_of(line) for line in lines] == [11, 11, 11, 11]


def test_a_table_without_rows_has_its_headers() -> None:
    """An empty list still shows its columns."""
    assert table(("id", "miner"), []) == ["id  miner"]


def test_none_is_shown_as_a_dash() -> None:
    """A missing value, such as the time of a settlement that has not happened, is visible."""
    assert table(("job", "settled"), [(None, None)])[1] == "-    -"


def test_labelled_values_are_aligned() -> None:
    """All values begin in the same column."""
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
def test_runs_of_blocks_are_written_as_ranges(blocks: list[int], text: str) -> None:
    """Hundreds of blocks fit into one line."""
    assert texts.block_ranges(blocks) == text


@given(st.sets(st.integers(1, 60)))
def test_ranges_contain_each_block_once(blocks: set[int]) -> None:
    """The blocks can be reconstructed from the ranges."""
    named: list[int] = []
    for part in filter(None, texts.block_ranges(sorted(blocks)).split(", ")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)

    assert named == sorted(blocks)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (7_400_000, "7.4 MB")],
)
def test_a_size_has_the_largest_fitting_unit(size: int, text: str) -> None:
    """Also after rounding: there is no "1000.0 kB"."""
    assert texts.size_text(size) == text


def test_times_are_shown_in_utc() -> None:
    """Every time is shown in one zone, with milliseconds."""
    moment = datetime(2024, 1, 1, 13, 0, 0, 10_999, tzinfo=timezone(timedelta(hours=1)))

    assert texts.time_text(moment) == "2024-01-01 12:00:00.010Z"
    assert texts.time_text(None) == "-"


def test_a_share_of_zero_is_a_dash() -> None:
    """Nothing is divided by zero."""
    assert texts.percent_text(0.0, 0.0) == "-"
    assert texts.percent_text(1.0, 4.0) == "25.0 %"


def test_a_count_of_one_is_singular() -> None:
    """Other counts are plural, with separators of thousands."""
    assert texts.counted(1, "block") == "1 block"
    assert texts.counted(1100, "block") == "1,100 blocks"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    """Names from outside become printable characters, whatever is in them."""
    assert texts.printable(text).isprintable()


def test_a_chart_shows_the_free_and_the_used_part() -> None:
    """The free part is filled, the used part is shaded, and the rest is empty."""
    columns = [Column(4.0, 0.0), Column(4.0, 2.0), Column(0.0, 0.0), Column(4.0, 4.0)]

    assert chart.draw(columns, first_label="1", last_label="4", rows=4) == [
        "4 s │░░ █",
        "    │░░ █",
        "    │░█ █",
        "    │░█ █",
        "    └────",
        "     1  4",
    ]


def test_a_chart_shows_the_smallest_amount() -> None:
    """An amount above 0 is at least one character, so that it does not look like none."""
    lines = chart.draw([Column(100.0, 0.001)], first_label="1", last_label="1", rows=2, characters=chart.ASCII)

    assert lines[:2] == ["100 s |.", "      |#"]


def test_a_chart_without_columns_is_empty() -> None:
    """An account without any grant is drawn without an error."""
    assert chart.draw([], first_label="1", last_label="1", rows=1)[0].endswith("│")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1))), st.integers(1, 9))
def test_a_chart_has_the_requested_size(amounts: list[tuple[float, float]], rows: int) -> None:
    """Whatever the numbers, a chart has its rows and its columns."""
    columns = [Column(granted, granted * share) for granted, share in amounts]

    lines = chart.draw(columns, first_label="a", last_label="b", rows=rows)

    assert len(lines) == rows + 2
    assert all(len(line) <= len(lines[-2]) for line in lines[:-1])


def test_json_is_one_line_with_times_and_fractions() -> None:
    """Every value of a result or an error can be written."""
    text = as_json({"at": datetime(2024, 1, 1, tzinfo=UTC), "half": Fraction(1, 2), "name": "a\nb"})

    assert json.loads(text) == {"at": "2024-01-01T00:00:00Z", "half": "1/2", "name": "a\nb"}
    assert "\n" not in text


def test_a_character_that_the_terminal_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output on an ASCII terminal does not fail."""
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    out = Output(json_wanted=False)

    out.line("…")
    out.flush()

    assert data.getvalue() == b"\\u2026\n"
    assert not out.shows_unicode


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_only_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_only_a_terminal_gets_shortened_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a pipe gets complete names; on a terminal a note says that the table was shortened."""
    monkeypatch.setenv("COLUMNS", "40")
    piped, watched, notes = io.StringIO(), Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", notes)
    for stream in (piped, watched):
        monkeypatch.setattr(sys, "stdout", stream)
        Output(json_wanted=False).table(HEADERS, ROWS)
    assert piped.getvalue().splitlines() == table(HEADERS, ROWS)
    assert watched.getvalue().splitlines() == fitted(HEADERS, ROWS, 40)[0]
    assert notes.getvalue().count("shortened to fit the terminal") == 1


def test_only_a_terminal_gets_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets nothing; a terminal gets one line, which is erased at the end."""
    piped, watched = io.StringIO(), Terminal()
    for stream in (piped, watched):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("import", "lines") as progress:
            progress.show(1, "2 blocks/s")
            progress.show(2, "2 blocks/s")

    assert piped.getvalue() == ""
    assert watched.getvalue() == "\r\x1b[Kimport: 1 lines, 2 blocks/s\r\x1b[K"


def test_progress_shows_the_share_if_the_total_is_known() -> None:
    """Without a total it shows the count; rates are per second."""
    assert progress_line("route", 1200, 3000, "jobs", "") == "route [########............] 40 %: 1,200 of 3,000 jobs"
    assert progress_line("route", 0, 0, "jobs", "") == "route [####################] 100 %: 0 of 0 jobs"
    assert rate_text(350, 1.0, "blocks") == "350 blocks/s"
    assert rate_text(0, 0.0, "blocks") == "0 blocks/s"
