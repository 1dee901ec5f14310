"""`RECEIPTS.jsonl`: one receipt of another validator per line, read as it arrives and checked line by line."""

import json
from collections.abc import Iterator
from datetime import datetime
from io import BufferedIOBase
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from routing import AllowanceException, BadReceiptSignature, Receipt

from .json_lines import BadLine, check_length, lines_as_they_arrive, problem_of, refuse_repeated_names, signature_of

EXAMPLE = (
    '{"validator_ss58":"5G…","miner_ss58":"5F…","executor_class":"always_on.gpu-24gb",'
    '"started_at":"2024-01-01T12:00:00Z","blocks":[1000,1001],"allowance_seconds":15.5}'
)

SIGNED_EXAMPLE = (
    '{"started":{"payload":{"receipt_type":"JobStartedReceipt",…},"validator_signature":"0x…","miner_signature":"0x…"},'
    '"finished":{"payload":{"receipt_type":"JobFinishedReceipt",…},"validator_signature":"0x…","miner_signature":"0x…"}}'
)


class NumberedReceipt(NamedTuple):
    """A receipt, or the refusal of one whose signatures are not right, and the number of its line, counted from 1."""

    line: int
    receipt: Receipt | AllowanceException


class _SignedLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    started: dict[str, Any]
    finished: dict[str, Any]


class _ReceiptLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    validator_ss58: str
    miner_ss58: str
    executor_class: str
    started_at: Annotated[datetime, Meta(tz=True)]
    blocks: list[Annotated[int, Meta(ge=0, le=2**63 - 1)]]
    allowance_seconds: float


_decoder = msgspec.json.Decoder(_ReceiptLine)
_signed_decoder = msgspec.json.Decoder(_SignedLine)


def numbered_receipts(stream: BufferedIOBase, *, signed: bool = False) -> Iterator[NumberedReceipt]:
    """Yield the receipts of a stream one by one; raise `BadLine` at the first line that is no receipt.

    Blank lines are skipped, but counted. A `signed` line has the receipts of a job's start and of its end, as
    ComputeHorde's validators and miners sign them.
    """
    number = 0
    for arrived in lines_as_they_arrive(stream):
        for text in arrived:
            number += 1
            if text.isspace() or not text:
                continue
            try:
                yield _signed_receipt(number, text) if signed else NumberedReceipt(number, _receipt(text))
            except (ValueError, RecursionError) as error:
                raise _bad_line(number, text, error, SIGNED_EXAMPLE if signed else EXAMPLE) from error


def _bad_line(number: int, text: bytes, error: Exception, example: str) -> BadLine:
    signature = signature_of(number, text)
    problem = problem_of(text, error) if signature is None else signature.problem
    return BadLine(number, problem, example)


def _receipt(text: bytes) -> Receipt:
    check_length(text)
    line = _decoder.decode(text)
    # A second pass, because msgspec does not notice repeated names.
    json.loads(text, object_pairs_hook=refuse_repeated_names)
    return Receipt(*(getattr(line, name) for name in line.__struct_fields__))


def _signed_receipt(number: int, text: bytes) -> NumberedReceipt:
    from routing.computehorde.receipts import signed_receipt

    check_length(text)
    line = _signed_decoder.decode(text)
    json.loads(text, object_pairs_hook=refuse_repeated_names)
    try:
        return NumberedReceipt(number, signed_receipt(line.started, line.finished))
    except BadReceiptSignature as refusal:
        return NumberedReceipt(number, refusal)
