"""Receipts as ComputeHorde's validators and miners sign them: one of the job's start, one of its end.

Source of the fields and of the signed text: its receipts' schemas. The start names the executor class; the end names
the blocks that paid and the cost. Each is signed by the validator and by the miner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ledger.errors import BadReceiptSignature, InvalidInput
from ledger.values import name
from routing import Receipt

from .signatures import is_signed_by

START, END = "JobStartedReceipt", "JobFinishedReceipt"
_SAME = ("job_uuid", "validator_hotkey", "miner_hotkey")


def signed_receipt(started: Mapping[str, Any], finished: Mapping[str, Any]) -> Receipt:
    """Return the receipt of a job from the two signed ones, after checking all four signatures.

    Each is a JSON object with `payload`, `validator_signature` and `miner_signature`, as they are transferred. Raises
    `BadReceiptSignature`, and `InvalidInput` if a field is absent or malformed, or the two are not of the same job.
    """
    start, end = _checked(started, START), _checked(finished, END)
    for field in _SAME:
        if start[field] != end[field]:
            raise InvalidInput(field, end[field], f"{start[field]!r}, as in the receipt of the start")
    return Receipt(
        validator_ss58=start["validator_hotkey"],
        miner_ss58=start["miner_hotkey"],
        executor_class=_field(start, "executor_class"),
        started_at=_moment(start, "timestamp"),
        blocks=_field(end, "block_numbers"),
        allowance_seconds=_cost(end),
    )


def signed_text(payload: Mapping[str, Any]) -> bytes:
    """Return the text of a payload that is signed: its JSON with sorted names."""
    return json.dumps(payload, sort_keys=True).encode()


def _checked(receipt: Mapping[str, Any], receipt_type: str) -> Mapping[str, Any]:
    """Return the payload of a receipt that both have signed."""
    payload = _field(receipt, "payload")
    if not isinstance(payload, Mapping) or payload.get("receipt_type") != receipt_type:
        raise InvalidInput("payload", payload, f"that of a {receipt_type}")
    for field in _SAME:
        name(_field(payload, field), field)
    for signer in ("validator", "miner"):
        hotkey_ss58 = payload[f"{signer}_hotkey"]
        if not is_signed_by(hotkey_ss58, signed_text(payload), _field(receipt, f"{signer}_signature")):
            raise BadReceiptSignature(receipt_type, payload["job_uuid"], signer, hotkey_ss58)
    return payload


def _field(fields: object, field: str) -> Any:
    if not isinstance(fields, Mapping) or field not in fields:
        raise InvalidInput(field, None, "present")
    return fields[field]


def _moment(payload: Mapping[str, Any], field: str) -> datetime:
    try:
        return datetime.fromisoformat(_field(payload, field))
    except (TypeError, ValueError):
        raise InvalidInput(field, payload[field], "a time with its time zone") from None


def _cost(payload: Mapping[str, Any]) -> float:
    try:
        return float(_field(payload, "score_str"))
    except (TypeError, ValueError):
        raise InvalidInput("score_str", payload["score_str"], "a number of executor-seconds") from None
