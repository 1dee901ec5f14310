"""What machines ask for: `/healthz` and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ledger.errors import AllowanceException
from routing.documents import as_fields, as_json_bytes, error_document

from .parameters import FORMAT, Parameters

if TYPE_CHECKING:
    from routing import Allowance

THRESHOLDS = ("max_block_age", "max_lag", "max_overdue", "max_unverified")
MOST_SECONDS = 10**9


async def healthz(ledgers: Sequence[Allowance], request: Request) -> Response:
    """Return 200 if every ledger is well, else 503; the body has the health of each.

    The parameters have the meaning of the options of `allowance health`: seconds, events, reservations, seconds.
    """
    parameters = Parameters(request.query_params.multi_items(), THRESHOLDS)
    limits = {
        "max_block_age_seconds": parameters.whole("max_block_age", 0, MOST_SECONDS),
        "max_lag_events": parameters.whole("max_lag", 0),
        "max_overdue": parameters.whole("max_overdue", 0),
        "max_unverified_seconds": parameters.whole("max_unverified", 0, MOST_SECONDS),
    }
    documents = [await _document(ledger, limits) for ledger in ledgers]
    is_well = not any(each.get("error") or each["failures"] for each in documents)
    body = {"status": "ok" if is_well else "failing", "ledgers": documents}
    return Response(as_json_bytes(body), 200 if is_well else 503, media_type="application/json")


async def _document(ledger: Allowance, limits: dict[str, Any]) -> dict[str, Any]:
    try:
        health = await ledger.health()
    except AllowanceException as error:
        return error_document(error)
    return {**as_fields(health), "failures": health.failures(**limits)}


async def metrics(ledgers: Sequence[Allowance], request: Request) -> Response:
    """Return the metrics of the ledgers in the text format of Prometheus."""
    Parameters(request.query_params.multi_items(), (FORMAT,))
    try:
        from routing.metrics import exposition
    except ImportError as missing:
        raise HTTPException(503, "metrics need the extra `metrics` (prometheus-client)") from missing
    body, content_type = await asyncio.to_thread(exposition, ledgers)
    return Response(body, headers={"Content-Type": content_type})
