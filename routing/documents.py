"""The JSON that `--json` and the pages write: documents of public results. Their keys are stable, for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from ledger import Miner, Reservation
    from projections import Candidate
    from routing.pick import JobRoute

_encoder = msgspec.json.Encoder(enc_hook=str)


def as_json(value: object) -> str:
    """Return one line of JSON; a value that JSON has no notation for, such as a fraction, becomes a string."""
    return as_json_bytes(value).decode()


def as_json_bytes(value: object) -> bytes:
    """Return `as_json` in UTF-8."""
    return _encoder.encode(value)


def as_fields(value: object) -> dict[str, Any]:
    """Return the fields of a result (a struct or a dataclass) by name, ready for `as_json`."""
    fields = msgspec.to_builtins(value, builtin_types=(msgspec.Raw,), enc_hook=str)
    return dict(fields)


def miner_document(miner: Miner) -> dict[str, object]:
    """Return the document of a registered miner with its axon (its network address)."""
    return {
        "hotkey_ss58": miner.hotkey_ss58,
        "address": miner.address,
        "ip_version": miner.ip_version,
        "port": miner.port,
    }


def candidate_document(rank: int, candidate: Candidate) -> dict[str, object]:
    """Return the document of a candidate. `rank` counts from 1; `share_left` is available divided by total."""
    return {
        "rank": rank,
        "hotkey_ss58": candidate.hotkey_ss58,
        "earliest_block": candidate.earliest_block,
        "available_seconds": candidate.available_seconds,
        "total_seconds": candidate.total_seconds,
        "share_left": candidate.available_seconds / candidate.total_seconds,
        "stream_version": candidate.stream_version,
    }


def route_document(route: JobRoute) -> dict[str, object]:
    """Return the document of a route; the reservation's id and value are null if nothing is reserved."""
    return {
        "miner": miner_document(route.miner),
        "allowance_blocks": route.allowance_blocks,
        "allowance_reservation_id": route.allowance_reservation_id,
        "allowance_job_value": route.allowance_job_value,
    }


def reservation_document(reservation: Reservation) -> dict[str, object]:
    """Return the document of a reservation with all its fields."""
    return {
        "reservation_id": reservation.reservation_id,
        "status": reservation.status,
        "validator_ss58": reservation.validator_ss58,
        "miner_ss58": reservation.miner_ss58,
        "executor_class": reservation.executor_class,
        "job_uuid": reservation.job_uuid,
        "allowance_seconds": reservation.allowance_seconds,
        "blocks": reservation.blocks,
        "job_start_block": reservation.job_start_block,
        "reserved_at": reservation.reserved_at,
        "expires_at": reservation.expires_at,
        "settled_at": reservation.settled_at,
    }


def error_document(error: Exception) -> dict[str, object]:
    """Return the document of an error of the library, with its public fields.

    `fact_index` counts within a batch, which users do not see.
    """
    fields = {name: value for name, value in vars(error).items() if name[0] != "_" and name != "fact_index"}
    return {"error": {"type": type(error).__name__, "message": str(error), "fields": fields}}
