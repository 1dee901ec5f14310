"""Reading `FACTS.jsonl`: the valid lines, the refused ones, and their error messages."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime
from random import Random
from typing import Any, cast

import pytest

from routing import BlockFact, ManifestsFact, Miner
from routing.cli.files import facts as fact_lines
from routing.cli.files import json_lines
from routing.cli.files.facts import Fact, numbered_facts
from routing.cli.files.json_lines import BadLine
from routing.cli.files.receipts import EXAMPLE as RECEIPT
from routing.cli.files.receipts import numbered_receipts

MINER = {"hotkey_ss58": "miner-a", "address": "192.0.2.7", "ip_version": 4, "port": 8000}
OTHER = {"hotkey_ss58": "miner-b", "address": "2001:db8::7", "ip_version": 6, "port": 8001}
STAKES = {"validator-a": 1001.0}
MANIFESTS = {"type": "manifests", "block": 1000, "manifests": {"miner-a": {"always_on.gpu-24gb": 3}}}


def block(number: int = 1000, **fields: Any) -> dict[str, Any]:
    return {"type": "block", "number": number, "created_at": "2024-01-01T12:00:00.010Z", **fields}


def first(**fields: Any) -> dict[str, Any]:
    return block(**{"miners": [MINER], "stakes": STAKES, **fields})


def stream(*lines: dict[str, Any] | str) -> io.BytesIO:
    return io.BytesIO("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode())


def facts(*lines: dict[str, Any] | str) -> list[Fact]:
    return [numbered.fact for batch in numbered_facts(stream(*lines)) for numbered in batch]


def blocks(*lines: dict[str, Any] | str) -> list[BlockFact]:
    return [fact for fact in facts(*lines) if isinstance(fact, BlockFact)]


def refusal(*lines: dict[str, Any] | str) -> BadLine:
    with pytest.raises(BadLine) as caught:
        facts(*lines)
    return caught.value


def test_a_block_line_has_the_block_and_its_metagraph() -> None:
    """Every field of the line is in the fact."""
    (fact,) = blocks(first())

    assert fact.number == 1000
    assert fact.created_at == datetime(2024, 1, 1, 12, 0, 0, 10_000, tzinfo=UTC)
    assert list(fact.miners) == [Miner("192.0.2.7", 4, 8000, "miner-a")]
    assert fact.stakes == STAKES
    assert fact.block_hash is None


@pytest.mark.parametrize("block_hash", ["c0" * 32, f"0x{'C0' * 32}"])
def test_a_block_line_may_have_a_hash(block_hash: str) -> None:
    """It belongs to its line alone: unlike miners and stakes, the next line does not inherit it."""
    one, two = blocks(first(block_hash=block_hash), block(1001))
    assert (one.block_hash, two.block_hash) == (block_hash, None)


def test_a_manifests_line_is_a_sync() -> None:
    """Every field of the line is in the fact, and it may be the first line."""
    assert facts(MANIFESTS) == [ManifestsFact(1000, {"miner-a": {"always_on.gpu-24gb": 3}})]


def test_omitted_fields_are_the_same_objects_as_before() -> None:
    """The ledger recognizes an unchanged metagraph by identity and does not compare it again."""
    one, two, three, four = blocks(
        first(),
        block(1001),
        block(1002, stakes={"validator-a": 2.0}),
        block(1003),
    )

    assert two.miners is one.miners
    assert two.stakes is one.stakes
    assert three.miners is one.miners
    assert three.stakes == {"validator-a": 2.0}
    assert four.stakes is three.stakes


def test_repeated_fields_are_the_same_objects_as_before() -> None:
    """A file that repeats everything in every line is as fast as one that omits it."""
    one, two = blocks(first(), first(number=1001))

    assert two.miners is one.miners
    assert two.stakes is one.stakes


def test_a_repeated_metagraph_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lines that end with the same miners and stakes, only the first is decoded whole.

    Catches a file of 10,000 miners in each line, of which every line is decoded.
    """
    decoded: list[int] = []

    class Counting:
        def decode(self, text: bytes) -> Any:
            decoded.append(len(text))
            return original.decode(text)

    original = fact_lines._decoder
    monkeypatch.setattr(fact_lines, "_decoder", Counting())
    facts(*(first(number=number, miners=[MINER, OTHER]) for number in range(1000, 1010)))
    assert sum(length > 100 for length in decoded) == 1


@pytest.mark.parametrize(
    ("before", "start"),
    [
        ("", '"type":"block","number":2,"created_at":"2024-01-01T12:00:12Z","miners":[]'),
        ("", '"type":"block","number":2,"created_at":"2024-01-01T12:00:12Z","stakes":{}'),
        ("", '"type":"manifests","block":2,"manifests":{}'),
        ("", '"type":"block","number":0,"created_at":"2024-01-01T12:00:12Z"'),
        ("", '"type":"block"'),
        (',"number":1', '"type":"block","number":2,"created_at":"2024-01-01T12:00:12Z"'),
    ],
)
def test_a_bad_line_that_ends_like_the_one_before_is_refused(before: str, start: str) -> None:
    """A name that is there twice, a sync with miners, or a missing field is no repeated metagraph."""
    end = json.dumps({"miners": [MINER], "stakes": STAKES})[1:-1] + before
    number = "" if before else '"number":1,'
    good = f'{{"type":"block",{number}"created_at":"2024-01-01T12:00:00Z",{end}}}'
    assert len(facts(good)) == 1
    assert refusal(good, f"{{{start},{end}}}").fields["line"] == 2


@pytest.mark.parametrize("seed", range(30))
def test_repeated_ends_of_lines_change_no_fact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines in any spelling, good or bad, give the facts and the error that decoding each whole line gives.

    Catches an end that is taken for the last metagraph although that has changed, or although the line is no block.
    """
    draw = Random(seed)
    lines = [json.dumps(first())] + [_a_line(draw) for _ in range(40)]
    found = _read(lines)
    monkeypatch.setattr(fact_lines, "_metagraph_end", lambda _: b"")
    assert found == _read(lines)


def _a_line(draw: Random) -> str:
    """Return a line with some of the fields, in some order; seldom a bad one."""
    fields: list[tuple[str, Any]] = [("type", "block"), ("number", draw.randrange(1, 99))]
    fields += [("created_at", "2024-01-01T12:00:00Z")]
    fields += draw.choice([[], [("miners", draw.choice([[MINER], [MINER, OTHER]]))]])
    fields += draw.choice([[], [("stakes", draw.choice([STAKES, {"validator-a": 2.0}]))]])
    if draw.random() < 0.2:
        draw.shuffle(fields)
    fields += draw.choice([[]] * 40 + [[("number", 7)], [("miners", [])], [("number", 0)], [("other", 1)]])
    separators = draw.choice([(",", ":"), (",", ":"), (", ", ": "), (" , ", " : ")])
    text = separators[0].join(f"{json.dumps(name)}{separators[1]}{json.dumps(value)}" for name, value in fields)
    return draw.choice(["{%s}"] * 30 + ["{%s} ", "[%s}", "{%s", '{"a":{%s}']) % text


def _read(lines: list[str]) -> tuple[list[Fact], str]:
    """Return the facts before the first bad line, and its error."""
    read: list[Fact] = []
    try:
        for batch in numbered_facts(stream(*lines)):
            read += [numbered.fact for numbered in batch]
    except BadLine as error:
        return read, str(error)
    return read, ""


def test_a_list_of_miners_replaces_the_earlier_one() -> None:
    """The new list holds for its own line and the later ones."""
    one, two, three = blocks(first(), block(1001, miners=[MINER, OTHER]), block(1002))

    assert [miner.hotkey_ss58 for miner in one.miners] == ["miner-a"]
    assert [miner.hotkey_ss58 for miner in two.miners] == ["miner-a", "miner-b"]
    assert three.miners is two.miners


def test_blank_lines_are_skipped_but_counted() -> None:
    """A line has the number that an editor shows."""
    assert [
        numbered.line for batch in numbered_facts(stream("", first(), "   ", block(1001), "\r")) for numbered in batch
    ] == [2, 4]


def test_an_empty_file_has_no_facts() -> None:
    """An empty file is valid."""
    assert facts() == []


def test_the_last_line_needs_no_line_end() -> None:
    """A last line without a line end is read, too."""
    assert list(numbered_facts(io.BytesIO(json.dumps(first()).encode()))) != []


def test_batches_have_at_most_the_requested_length() -> None:
    """A large file is recorded batch by batch, in order."""
    lines = [first(), *(block(number) for number in range(1001, 1010))]

    batches = list(numbered_facts(stream(*lines), batch_facts=4))

    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [numbered.line for batch in batches for numbered in batch] == list(range(1, 11))


class Feed:
    """A stream whose parts arrive one by one, as from a pipe."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)

    def read1(self, size: int) -> bytes:
        return self.parts.pop(0) if self.parts else b""


def test_lines_of_a_live_feed_do_not_wait_for_a_full_batch() -> None:
    """Complete lines are yielded before the next read, which may wait."""
    one, two = (json.dumps(line).encode() for line in (first(), block(1001)))
    feed = Feed(one + b"\n" + two[:10], two[10:] + b"\n")

    batches = numbered_facts(cast(io.BufferedIOBase, feed))

    assert [numbered.line for numbered in next(batches)] == [1]
    assert len(feed.parts) == 1
    assert [numbered.line for numbered in next(batches)] == [2]
    assert list(batches) == []


TIME = '"created_at":"2024-01-01T12:00:00Z"'

BAD_LINES = {
    "truncated": ('{"type":"block","number":10', "truncated", "complete JSON object"),
    "malformed": ('{"type":"block" "number":1}', "malformed", "complete JSON object"),
    "two in one line": (json.dumps(MANIFESTS) * 2, "trailing", "complete JSON object"),
    "an array": ("[]", "array", "complete JSON object"),
    "null": ("null", "null", "complete JSON object"),
    "a NUL": ("\0", "malformed", "complete JSON object"),
    "unknown type": ('{"type":"blok"}', "'blok'", '"manifests" or "reservation"'),
    "no type": ('{"number":1}', "`type`", '"type":"block"'),
    "no number": (f'{{"type":"block",{TIME}}}', "`number`", '"number":1001'),
    "no time": ('{"type":"block","number":1}', "`created_at`", "time with its time zone"),
    "no manifests": ('{"type":"manifests","block":1}', "`manifests`", '"manifests":{'),
    "misspelt field": (f'{{"type":"block","number":1,{TIME},"minrs":[]}}', "`minrs`", "miners"),
    "naive time": ('{"type":"block","number":1,"created_at":"2024-01-01T12:00:00"}', "timezone", "time zone"),
    "a time that is a number": ('{"type":"block","number":1,"created_at":1704110400}', "`int`", "time zone"),
    "a huge number": (f'{{"type":"block","number":{10**30},{TIME}}}', "$.number", "2^63 - 1"),
    "a negative number": (f'{{"type":"block","number":-100,{TIME}}}', "$.number", "from 1"),
    "a number of many digits": (f'{{"type":"block","number":1{"0" * 5000},{TIME}}}', "$.number", "from 1"),
    "true": (f'{{"type":"block","number":true,{TIME}}}', "`bool`", "whole number"),
    "a short hash": (json.dumps(first(block_hash="c0ffee")), "$.block_hash", "64 hexadecimal digits"),
    "a long hash": (json.dumps(first(block_hash="c0" * 33)), "$.block_hash", "64 hexadecimal digits"),
    "a hash with a line end": (json.dumps(first(block_hash="c0" * 32 + "\n")), "$.block_hash", "64 hexadecimal digits"),
    "no hash": (json.dumps(first(block_hash=None)), "$.block_hash", "64 hexadecimal digits"),
    "a fraction": (f'{{"type":"block","number":1.5,{TIME}}}', "`float`", "whole number"),
    "NaN": (f'{{"type":"block","number":NaN,{TIME}}}', "malformed", "complete JSON object"),
    "a stake beyond floats": (json.dumps(first()).replace("1001.0", "1e999"), "$.stakes", "finite stakes"),
    "a negative stake": (json.dumps(first(stakes={"validator-a": -1})), "$.stakes", "from 0 on"),
    "a negative count": (json.dumps(MANIFESTS).replace("3}", "-3}"), "$.manifests", "from 0 on"),
    "a count that is true": (json.dumps(MANIFESTS).replace("3}", "true}"), "$.manifests", "executor counts"),
    "miners that are null": (json.dumps(first(miners=None)), "$.miners", "list of miners"),
    "a miner without port": (json.dumps(first(miners=[{"hotkey_ss58": "a"}])), "$.miners[0]", '"port":8000'),
    "a nameless miner": (json.dumps(first(miners=[MINER | {"hotkey_ss58": ""}])), "$.miners", "list of miners"),
    "duplicate hotkeys": (json.dumps(first(miners=[MINER, OTHER, MINER])), "'miner-a' is there twice", "once"),
    "a name twice": (f'{{"type":"block","number":1,"number":2,{TIME}}}', "'number' is there twice", "once"),
    "a stake twice": (
        json.dumps(first()).replace('"stakes": {', '"stakes": {"validator-a": 7, '),
        "'validator-a' is there twice",
        "once",
    ),
    "no miners yet": (json.dumps(block(stakes=STAKES)), "`miners` is left out", "first block line"),
    "no stakes yet": (json.dumps(block(miners=[MINER])), "`stakes` is left out", "first block line"),
    "nested without end": ("[" * 100_000, "array", "complete JSON object"),
}


@pytest.mark.parametrize(("text", "problem", "expected"), BAD_LINES.values(), ids=BAD_LINES)
def test_the_error_of_a_bad_line_says_what_is_wrong_and_what_would_be_right(
    text: str, problem: str, expected: str
) -> None:
    """The error has the line's number, the problem and a valid example, in one line of text."""
    error = refusal(MANIFESTS, text)

    assert error.fields["line"] == 2
    assert problem in str(error.fields["problem"])
    assert expected in str(error.fields["expected"])
    assert str(error).startswith("line 2: ")
    assert "\n" not in str(error)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    """The error names the encoding; the reader does not guess another."""
    with pytest.raises(BadLine) as caught:
        list(numbered_facts(io.BytesIO(b'{"type":"bl\xffock"}\n')))

    assert "UTF-8" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem", "expected"),
    [
        (b"\xef\xbb\xbf" + json.dumps(MANIFESTS).encode(), "byte order mark", "without one"),
        ((json.dumps(MANIFESTS) + "\n").encode("utf-16"), "UTF-16", "in UTF-8"),
        (gzip.compress(json.dumps(MANIFESTS).encode()), "gzip", "`gunzip`"),
        (b"SQLite format 3\0" + bytes(100), "SQLite database", "`allowance restore`"),
    ],
    ids=["byte order mark", "UTF-16", "gzip", "SQLite"],
)
def test_a_file_of_another_kind_is_recognized_by_its_first_bytes(content: bytes, problem: str, expected: str) -> None:
    """The error names the kind of file, in the first line only.

    Catches: "invalid character (byte 0)" about a file with a byte order mark, or about a compressed file.
    """
    with pytest.raises(BadLine) as caught:
        list(numbered_facts(io.BytesIO(content)))
    assert problem in str(caught.value.fields["problem"])
    assert expected in str(caught.value.fields["expected"])
    with pytest.raises(BadLine) as caught:
        list(numbered_receipts(io.BytesIO(content)))
    assert problem in str(caught.value.fields["problem"])
    with pytest.raises(BadLine) as caught:
        list(numbered_facts(io.BytesIO(b"\n" + content)))
    assert problem not in str(caught.value.fields["problem"])


def test_an_endless_line_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without line ends is not read to its end."""
    monkeypatch.setattr(json_lines, "LONGEST_LINE_BYTES", 100)
    feed = Feed(*[b"x" * 60] * 50)

    with pytest.raises(BadLine, match="longer than 100 bytes"):
        list(numbered_facts(cast(io.BufferedIOBase, feed)))

    assert len(feed.parts) > 40


def test_facts_before_a_bad_line_are_yielded_first() -> None:
    """The lines after a bad line are not decoded."""
    batches = numbered_facts(stream(MANIFESTS, first(), "broken", block(1001)))

    assert [numbered.line for numbered in next(batches)] == [1, 2]
    with pytest.raises(BadLine) as caught:
        next(batches)
    assert caught.value.fields["line"] == 3


def test_the_error_of_a_bad_line_has_no_control_characters() -> None:
    """Escape sequences in a file do not reach the terminal."""
    error = refusal('{"type":"\\u001b[2J\\u0000"}')

    assert str(error).isprintable()


@pytest.mark.parametrize(("read", "line"), [(numbered_facts, MANIFESTS), (numbered_receipts, RECEIPT)])
def test_a_line_that_is_too_long_is_refused_by_number(read: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond the limit is refused although it ends in the same read as others, and although it is valid.

    Catches a limit that only lines without an end reach.
    """
    monkeypatch.setattr(json_lines, "LONGEST_LINE_BYTES", 200)
    lines = f"\n{line}{' ' * 200}\n"

    with pytest.raises(BadLine, match="line 2: longer than 200 bytes"):
        list(read(io.BytesIO(lines.encode())))
