"""The statements on the log's tables, and which version of the tables they are for.

Up to schema version 2 a row of `allowance_events` had its stream's name; since version 3 it has the stream's number,
and `allowance_streams` has the name and the newest version. A read-only store reads all versions.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

NUMBERED_STREAMS_VERSION = 3
"""The schema version since which rows have their stream's number."""

STORED_SCHEMA_VERSION = "SELECT version FROM allowance_schema"
# Excludes writers of derived tables, of this release and of older ones: all of them lock the schema's row. This locks
# the table, because ledgers share the row's lock, so there may always be one that holds it. In the queue for the table,
# later ones wait behind this.
LOCK_SCHEMA = "LOCK TABLE allowance_schema IN EXCLUSIVE MODE"
HEAD = f"""SELECT position, hash, recorded_at_ns, fence, ({STORED_SCHEMA_VERSION})
           FROM allowance_ledgers WHERE ledger = $1 AND validator_ss58 = $2"""
LOCK_HEAD = f"{HEAD} FOR UPDATE"
# READ COMMITTED, because a transaction waits for the head's lock after its first snapshot. Each later statement gets a
# new snapshot and sees the rows of the append that it waited for; REPEATABLE READ would fail instead.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"

# Whether the log has the row at which the append was decided.
_CONTINUES = """($23 = 0 OR coalesce(
              (SELECT hash = $24 FROM allowance_events WHERE ledger = $1 AND position = $23::bigint), false))"""
# One statement, hence one round trip and one transaction. If the head, the fence, the schema version or the version of
# one stream is not the expected one, the UPDATE moves nothing, `moved` is empty, and so nothing else is written.
#
# All parts see the tables as they were when the statement began. If the UPDATE then waits for another append, the head
# is another one afterwards, and nothing is written; so the compared versions are those at the head. Streams that have
# no row yet get the next numbers of the ledger; nobody else can give them out, because the head's row is locked. The
# version of a stream that gets no event is only compared.
APPEND = f"""
    WITH asked AS MATERIALIZED (
        SELECT asked.*, known.stream, coalesce(known.version, 0) AS actual
        FROM unnest($10::text[], $11::bigint[], $12::bigint[]) WITH ORDINALITY AS asked(name, expected, newest, number)
        LEFT JOIN LATERAL
            (SELECT stream, version FROM allowance_streams WHERE ledger = $1 AND name = asked.name LIMIT 1) AS known
        ON true
    ), moved AS (
        UPDATE allowance_ledgers SET position = $7, hash = $8, recorded_at_ns = $9
        WHERE ledger = $1 AND validator_ss58 = $2 AND position = $3 AND hash = $4 AND fence = $5
          AND ({STORED_SCHEMA_VERSION}) = $6 AND {_CONTINUES}
          AND NOT EXISTS (SELECT FROM asked WHERE actual <> expected)
        RETURNING ledger
    ), continued AS MATERIALIZED (
        SELECT asked.*, moved.ledger, stream IS NULL AS is_new, coalesce(stream,
               coalesce((SELECT max(stream) FROM allowance_streams WHERE ledger = $1), 0)
               + row_number() OVER (PARTITION BY stream IS NULL ORDER BY number))::integer AS stream_number
        FROM moved, asked WHERE newest > expected
    ), begun AS (
        INSERT INTO allowance_streams (ledger, stream, name, version)
        SELECT ledger, stream_number, name, newest FROM continued WHERE is_new
    ), grown AS (
        UPDATE allowance_streams AS streams SET version = continued.newest FROM continued
        WHERE streams.ledger = $1 AND streams.stream = continued.stream_number AND NOT continued.is_new
    ), appended AS (
        INSERT INTO allowance_events
            (ledger, position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash)
        SELECT moved.ledger, added.position, continued.stream_number, added.version, added.recorded_at_ns, added.key,
               added.job_uuid, added.attempt, added.settles, added.payload, added.hash
        FROM moved CROSS JOIN unnest(
            $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], $17::text[],
            $18::text[], $19::bigint[], $20::bigint[], $21::bytea[], $22::bytea[]
        ) AS added(position, number, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash)
        LEFT JOIN continued ON continued.number = added.number
    )
    SELECT EXISTS (SELECT FROM moved), position = $3 AND hash = $4, {_CONTINUES},
           ARRAY(SELECT name FROM asked WHERE actual <> expected ORDER BY number),
           ARRAY(SELECT actual FROM asked WHERE actual <> expected ORDER BY number)
    FROM allowance_ledgers WHERE ledger = $1 AND validator_ss58 = $2"""

_STREAM_NAMES = {
    False: "stream::text AS stream",
    # A scalar subquery is an index look-up for each row, whatever the planner's statistics say. A number that names no
    # stream stays as it is, and fits no hash.
    True: """coalesce((SELECT name FROM allowance_streams AS streams
                       WHERE streams.ledger = events.ledger AND streams.stream = events.stream),
                      events.stream::text) AS stream""",
}
_COLUMNS = "position, {stream}, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
ATTEMPTS = "SELECT position FROM allowance_events WHERE ledger = $1 AND job_uuid = $2 ORDER BY attempt"
# A page of at most $3 rows, and without those that follow after $4 bytes of payload. The server adds the sizes up while
# it reads the page by the primary key, and sends no row that would not fit.
_PAGE = """SELECT {columns} FROM
               (SELECT *, sum(octet_length(payload)) OVER (ORDER BY position) - octet_length(payload) AS before
                FROM allowance_events WHERE ledger = $1 AND position > $2 ORDER BY position LIMIT $3) AS events
           WHERE before < $4 ORDER BY position"""
# A lateral subquery with a limit is always planned as an index look-up. The planner would turn a join into a scan of
# the log if its statistics are old and say that the log is small.
_FIND = """
    WITH found AS (
        SELECT 'key' AS found_by, events.* FROM unnest($2::text[]) AS asked(value) CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND key = asked.value LIMIT 1) AS events
        UNION ALL
        SELECT 'job', events.* FROM unnest($3::text[]) AS asked(value) CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND job_uuid = asked.value
             ORDER BY attempt DESC LIMIT 1) AS events
        UNION ALL
        SELECT 'position', events.* FROM unnest($4::bigint[]) AS asked(value) CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND position = asked.value LIMIT 1) AS events
    ), ends AS (
        SELECT 'settles', events.* FROM found CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND settles = found.position LIMIT 1) AS events
        WHERE found_by <> 'key'
    )
    SELECT {columns}, found_by FROM (SELECT * FROM found UNION ALL SELECT * FROM ends) AS events"""
_OF_STREAMS = """SELECT {columns} FROM allowance_events AS events
                 WHERE ledger = $1 AND position > $3 AND position <= $4 AND {is_of_streams} ORDER BY position"""
_IS_OF_STREAMS = {
    False: "stream::text = ANY($2::text[])",
    True: """stream = ANY(ARRAY(SELECT stream FROM allowance_streams AS streams
                                WHERE streams.ledger = $1 AND name = ANY($2::text[])))""",
}
_ALL = "SELECT {columns} FROM allowance_events AS events WHERE ledger = $1 AND position >= $2 ORDER BY position"
# The same without the columns, to know how many rows fit into a page before they are sent.
ALL_SIZES = "SELECT octet_length(payload) FROM allowance_events WHERE ledger = $1 AND position >= $2 ORDER BY position"


class LogQueries(NamedTuple):
    """Queries whose first ten columns are those of a `Row`."""

    page: str
    find: str
    of_streams: str
    all: str


def log_queries(schema_version: int) -> LogQueries:
    """Return the queries for tables of this version."""
    return _log_queries(schema_version >= NUMBERED_STREAMS_VERSION)


@cache
def _log_queries(has_numbers: bool) -> LogQueries:
    columns = _COLUMNS.format(stream=_STREAM_NAMES[has_numbers])
    parts = {"columns": columns, "is_of_streams": _IS_OF_STREAMS[has_numbers]}
    return LogQueries(*(query.format(**parts) for query in (_PAGE, _FIND, _OF_STREAMS, _ALL)))
