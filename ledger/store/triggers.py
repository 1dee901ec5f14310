"""The log's triggers, a second defence, for example against a statement that somebody types by hand.

Correctness does not depend on them: a database that does not support them gets the tables without them, and `health`
names those that are missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SQLITE_TRIGGERS = (
    """CREATE TRIGGER IF NOT EXISTS allowance_events_no_update BEFORE UPDATE ON allowance_events
       BEGIN SELECT RAISE(ABORT, 'events are never updated'); END""",
    """CREATE TRIGGER IF NOT EXISTS allowance_events_no_delete BEFORE DELETE ON allowance_events
       BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END""",
    # INSERT OR REPLACE fires no delete trigger, so an insert that would replace a row at its position is refused here.
    # One trigger with two look-ups, because it is executed for every row of every append.
    """CREATE TRIGGER IF NOT EXISTS allowance_events_only_appended BEFORE INSERT ON allowance_events
       WHEN NEW.position <= (SELECT position FROM allowance_ledgers WHERE ledger = NEW.ledger)
         OR (NEW.position > 1 AND NOT EXISTS
             (SELECT 1 FROM allowance_events WHERE ledger = NEW.ledger AND position = NEW.position - 1))
       BEGIN SELECT RAISE(ABORT, 'events are never replaced, and positions are dense'); END""",
    # No trigger looks at a stream's version, which every append moves.
    """CREATE TRIGGER IF NOT EXISTS allowance_streams_no_rename BEFORE UPDATE OF ledger, stream, name
       ON allowance_streams
       BEGIN SELECT RAISE(ABORT, 'a stream is never renamed'); END""",
    """CREATE TRIGGER IF NOT EXISTS allowance_streams_no_delete BEFORE DELETE ON allowance_streams
       BEGIN SELECT RAISE(ABORT, 'a stream is never deleted'); END""",
    """CREATE TRIGGER IF NOT EXISTS allowance_ledgers_no_step_back BEFORE UPDATE ON allowance_ledgers
       WHEN NEW.position <= OLD.position BEGIN SELECT RAISE(ABORT, 'a head never steps back'); END""",
    """CREATE TRIGGER IF NOT EXISTS allowance_ledgers_no_delete BEFORE DELETE ON allowance_ledgers
       BEGIN SELECT RAISE(ABORT, 'a ledger is never deleted'); END""",
)

POSTGRES_TRIGGERS = (
    """CREATE OR REPLACE FUNCTION allowance_refuse() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    # Once per statement: since no position occurs twice, its rows are dense if they are as many as their range is long
    # and the first one has a predecessor. A scalar subquery always uses the index. NOT EXISTS would be planned as a
    # join, and as a scan of the log while the planner's statistics say it is small.
    """CREATE OR REPLACE FUNCTION allowance_check_dense() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           IF EXISTS (SELECT 1 FROM (SELECT ledger, min(position) AS first, max(position) AS last, count(*) AS number
                                     FROM added GROUP BY ledger) AS ranges
                      WHERE last - first + 1 <> number
                         OR (first > 1 AND
                             (SELECT before.position FROM allowance_events AS before
                              WHERE before.ledger = ranges.ledger AND before.position = ranges.first - 1) IS NULL))
           THEN
               RAISE EXCEPTION 'positions are dense' USING ERRCODE = 'integrity_constraint_violation';
           END IF;
           RETURN NULL;
       END $$""",
    """CREATE TRIGGER allowance_events_dense AFTER INSERT ON allowance_events
       REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION allowance_check_dense()""",
    """CREATE TRIGGER allowance_events_append_only BEFORE UPDATE OR DELETE ON allowance_events
       FOR EACH ROW EXECUTE FUNCTION allowance_refuse('events are never updated or deleted')""",
    """CREATE TRIGGER allowance_events_no_truncate BEFORE TRUNCATE ON allowance_events
       FOR EACH STATEMENT EXECUTE FUNCTION allowance_refuse('events are never deleted')""",
    # No trigger looks at a stream's version, which every append moves.
    """CREATE TRIGGER allowance_streams_no_rename BEFORE UPDATE OF ledger, stream, name ON allowance_streams
       FOR EACH ROW EXECUTE FUNCTION allowance_refuse('a stream is never renamed')""",
    """CREATE TRIGGER allowance_streams_no_delete BEFORE DELETE ON allowance_streams
       FOR EACH ROW EXECUTE FUNCTION allowance_refuse('a stream is never deleted')""",
    """CREATE TRIGGER allowance_streams_no_truncate BEFORE TRUNCATE ON allowance_streams
       FOR EACH STATEMENT EXECUTE FUNCTION allowance_refuse('a stream is never deleted')""",
    """CREATE TRIGGER allowance_ledgers_no_step_back BEFORE UPDATE ON allowance_ledgers
       FOR EACH ROW WHEN (NEW.position < OLD.position)
       EXECUTE FUNCTION allowance_refuse('a head never steps back')""",
    """CREATE TRIGGER allowance_ledgers_no_delete BEFORE DELETE ON allowance_ledgers
       FOR EACH ROW EXECUTE FUNCTION allowance_refuse('a ledger is never deleted')""",
    """CREATE TRIGGER allowance_ledgers_no_truncate BEFORE TRUNCATE ON allowance_ledgers
       FOR EACH STATEMENT EXECUTE FUNCTION allowance_refuse('a ledger is never deleted')""",
)
"""Apart from the tables, because databases that only speak PostgreSQL's language may lack some kinds of trigger."""

_NAME = re.compile(r"CREATE TRIGGER (?:IF NOT EXISTS )?(\w+)")


def trigger_names(statements: Iterable[str]) -> list[str]:
    """Return the names of the triggers that statements create, in order; a function is no trigger."""
    return [found[1] for found in map(_NAME.match, statements) if found is not None]
