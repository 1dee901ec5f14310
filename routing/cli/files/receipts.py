"""`RECEIPTS.jsonl`: one receipt of another validator per line, read as it arrives and checked line by line."""

import json
from collections.abc import Iterator
from datetime import datetime
from io import BufferedIOBase
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from routing import Receipt

from .json_lines import BadLine, check_length, lines_as_they_arrive, problem_of, refuse_repeated_names, signature_of

EXAMPLE = (
    '{"validator_ss58":"5G…","miner_ss58":"5F…","executor_class":"always_on.gpu-24gb",'
    '"started_at":"2024-01-01T12:00:00Z","blocks":[1000,1001],"allowance_seconds":15.5}'
)


class NumberedReceipt(NamedTuple):
    """A receipt and the number of its line, counted from 1."""

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
    """Yield the receipts of a stream one by one; raise `BadLine` at the first line that is no receipt.

    Blank lines are skipped, but counted.
    """
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
    signature = signature_of(number, text)
    problem = problem_of(text, error) if signature is None else signature.problem
    return BadLine(number, problem, EXAMPLE)


def _receipt(text: bytes) -> Receipt:
    check_length(text)
    line = _decoder.decode(text)
    # A second pass, because msgspec does not notice repeated names.
    json.loads(text, object_pairs_hook=refuse_repeated_names)
    return Receipt(*(getattr(line, name) for name in line.__struct_fields__))
