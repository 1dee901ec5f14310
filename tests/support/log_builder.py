"""Logs built by hand, below the ledger: every row is hashed after the row before it, but its content is not checked.

`LogBuilder` starts with an honest log of three miners and eleven blocks. Each block except the last grants 6 s per
executor, which is 12 s per account. Tests then append whatever rows they need, right or wrong.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ledger import RecordedSettings, Row
from ledger.codec import GENESIS_HASH, encode, reservation_id, row_hash
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    AllowanceReserved,
    Axon,
    BlockRecorded,
    Event,
    LedgerOpened,
    ManifestsRecorded,
    Run,
    account_stream,
)
from routing import Allowance, AuditReport

from .logs import opened

GPU = "always_on.gpu-24gb"
VALIDATOR = "5Validator"
ANNA, BERT, CARL = "5Anna", "5Bert", "5Carl"
MINERS = (ANNA, BERT, CARL)
SECOND_NS = 10**9
START_NS = 1_704_067_200 * SECOND_NS
BLOCKS = 11

COLUMNS = ("ledger", *Row._fields)


def created_at_ns(number: int) -> int:
    """Return the creation time of a block: one block every 12 s."""
    return START_NS + 12 * SECOND_NS * number


def axon(miner_ss58: str) -> Axon:
    """Return the axon of a miner."""
    return "192.0.2.7", 4, 8000 + MINERS.index(miner_ss58)


class LogBuilder:
    """Builds a log row by row. `now_ns` is the recorded time of the next row."""

    def __init__(self, settings: RecordedSettings | None = None, *, offers: Mapping[str, int] | None = None) -> None:
        self.rows: list[Row] = []
        self._versions: Counter[str] = Counter()
        self.settings = settings or RecordedSettings()
        self.now_ns = created_at_ns(0)
        self.append(SETTINGS_STREAM, LedgerOpened(VALIDATOR, self.settings))
        offers = dict.fromkeys(MINERS, 2) if offers is None else offers
        self.append(MANIFESTS_STREAM, ManifestsRecorded(1, {miner: {GPU: count} for miner, count in offers.items()}))
        registered = {miner: axon(miner) for miner in MINERS}
        staked = {VALIDATOR: SECOND_NS, "5Other": SECOND_NS}
        self.append(CHAIN_STREAM, BlockRecorded(1, created_at_ns(1), registered, [], staked))
        for number in range(2, BLOCKS + 1):
            self.block(number)

    @property
    def position(self) -> int:
        """The position of the last row; 0 if there is none."""
        return self.rows[-1].position if self.rows else 0

    def wait(self, seconds: float) -> None:
        """Advance the recorded time of the next rows."""
        self.now_ns += int(seconds * SECOND_NS)

    def append(self, stream: str, event: Event, **columns: Any) -> Row:
        """Append an event; `columns` override the right values of the row."""
        columns.setdefault("payload", encode(event))
        return self.append_columns(stream, **columns)

    def append_columns(self, stream: str, **columns: Any) -> Row:
        """Append a row with any columns; it is hashed after the row before it unless `columns` has a hash."""
        self._versions[stream] = version = self._versions[stream] + 1
        row = Row(self.position + 1, stream, version, self.now_ns, None, None, None, None, b"", b"")
        row = row._replace(**columns)
        if "hash" not in columns:
            row = row._replace(hash=row_hash(self.rows[-1].hash if self.rows else GENESIS_HASH, row))
        self.rows.append(row)
        return row

    def block(self, number: int, **fields: Any) -> Row:
        """Append a block; by default it is on time and has the metagraph of the block before it."""
        fields.setdefault("created_at_ns", created_at_ns(number))
        self.now_ns = max(self.now_ns, created_at_ns(number))
        return self.append(CHAIN_STREAM, BlockRecorded(number, **fields))

    def sync(self, block: int, offered: dict[str, dict[str, int]], absent: Sequence[str] = ()) -> Row:
        """Append a manifest sync as a difference to the one before it."""
        return self.append(MANIFESTS_STREAM, ManifestsRecorded(block, offered, list(absent)))

    def reserve(
        self, miner_ss58: str, seconds: float, *blocks: Run, start: int = BLOCKS, columns: Any = None, **fields: Any
    ) -> Row:
        """Append a direct reservation; only the given values may be wrong."""
        amount_ns = int(seconds * SECOND_NS)
        fields.setdefault("expires_at_ns", self.now_ns + amount_ns + self.settings.reservation_margin_ns)
        event = AllowanceReserved(amount_ns, list(blocks), start, **fields)
        return self.append(account_stream(miner_ss58, GPU), event, **(columns or {}))

    def route(self, job_uuid: str, miner_ss58: str, seconds: float, *blocks: Run, attempt: int = 1, **more: Any) -> Row:
        """Append a routed reservation."""
        more.setdefault("axon", axon(miner_ss58))
        columns = {"job_uuid": job_uuid, "attempt": attempt, **more.pop("columns", {})}
        return self.reserve(miner_ss58, seconds, *blocks, columns=columns, **more)

    def settle(self, made: Row, kind: Any, *fields: Any, **columns: Any) -> Row:
        """Append a settlement of the reservation in the row `made`; `kind` is the class of its event."""
        columns.setdefault("settles", made.position)
        stream = columns.pop("stream", made.stream)
        return self.append(stream, kind(reservation_id(made.position, made.hash), *fields), **columns)


async def audited(
    directory: Path, rows: Sequence[Row], *, head: Mapping[str, Any] | None = None, until_position: int | None = None
) -> AuditReport:
    """Audit rows that were stored without any constraint or trigger."""
    url = await stored(directory, rows, head=head)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        return await ledger.audit(until_position=until_position)


async def stored(directory: Path, rows: Sequence[Row], *, head: Mapping[str, Any] | None = None) -> str:
    """Store the rows in a new database without constraints and triggers; return its URL.

    The head row is that of the last row, with the values in `head` instead where given.
    """
    path = directory / f"built-{len(list(directory.iterdir()))}.db"
    url = f"sqlite:///{path}"
    async with opened(url, VALIDATOR):
        pass
    last = rows[-1]
    head_row = {"position": last.position, "hash": last.hash, "recorded_at_ns": last.recorded_at_ns, **(head or {})}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (ledger,) = connection.execute("SELECT ledger FROM allowance_ledgers").fetchone()
        connection.execute("DROP TABLE allowance_events")
        connection.execute(f"CREATE TABLE allowance_events ({', '.join(COLUMNS)})")
        marks = ", ".join("?" * len(COLUMNS))
        connection.executemany(f"INSERT INTO allowance_events VALUES ({marks})", [(ledger, *row) for row in rows])
        names = ", ".join(f"{name} = ?" for name in head_row)
        connection.execute(f"UPDATE allowance_ledgers SET {names}", tuple(head_row.values()))
    return url
