"""What the pages answer as JSON: the same documents, with the same keys, as `--json` of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from routing import Candidate

_encoder = msgspec.json.Encoder(enc_hook=str)


def as_json(value: object) -> bytes:
    """Return JSON in one line; a value that JSON has no notation for, such as a fraction, becomes a string."""
    return _encoder.encode(value)


def fields(value: object) -> dict[str, Any]:
    """Return the fields of a result (a struct or a dataclass) by name."""
    return dict(msgspec.to_builtins(value, builtin_types=(msgspec.Raw,), enc_hook=str))


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


def error_document(error: Exception) -> dict[str, object]:
    """Return the document of an error, as `--json` writes it."""
    named = {name: value for name, value in vars(error).items() if name[0] != "_" and name != "fact_index"}
    return {"error": {"type": type(error).__name__, "message": str(error), "fields": named}}
