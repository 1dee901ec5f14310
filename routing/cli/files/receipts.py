"""`RECEIPTS.jsonl`: another validator's receipt per line, read as it comes, checked line by line."""

import json
from collections.abc import Iterator
from datetime import datetime
from io import BufferedIOBase
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from routing import Receipt

from .facts import BadLine, lines_as_they_arrive, problem_of, refuse_repeated_names
from .signatures import signature_of

EXAMPLE = (
    '{"validator_ss58":"5G…","miner_ss58":"5F…","executor_class":"always_on.gpu-24gb",'
    '"started_at":"2024-01-01T12:00:00Z","blocks":[1000,1001],"allowance_seconds":15.5}'
)


class NumberedReceipt(NamedTuple):
    """A receipt and the number, from 1, of the line that tells it."""

    line: int
    receipt: Receipt


class _ReceiptLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    validator_ss58: str
    miner_ss58: str
    executor_class: str
    started_at: Annotated[datetime, Meta(tz=True)]
    blocks: list[Annotated[int, Meta(ge=0, le=2**63 - 1)]]
    allowance_seconds: float


_decoder = msgspec.json.Decoder(_ReceiptLine)


def numbered_receipts(stream: BufferedIOBase) -> Iterator[NumberedReceipt]:
    """Yields the receipts of a stream one by one; raises `BadLine` for what is none. Blank lines are only counted."""
    number = 0
    for arrived in lines_as_they_arrive(stream):
        for text in arrived:
            number += 1
            if text.isspace() or not text:
                continue
            try:
                yield NumberedReceipt(number, _receipt(text))
            except (ValueError, RecursionError) as error:
                raise _bad_line(number, text, error) from error


def _bad_line(number: int, text: bytes, error: Exception) -> BadLine:
    beginning = signature_of(number, text)
    if beginning is not None:
        return BadLine(number, beginning.problem, EXAMPLE)
    return BadLine(number, problem_of(text, error), EXAMPLE)


def _receipt(text: bytes) -> Receipt:
    line = _decoder.decode(text)
    json.loads(text, object_pairs_hook=refuse_repeated_names)
    return Receipt(*(getattr(line, name) for name in line.__struct_fields__))
