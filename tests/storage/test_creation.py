"""The schema and the ledger are created on a server that fails, collides, or does not support triggers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ledger import SCHEMA_VERSION
from ledger.store.postgres.creation import MOST_CREATION_ATTEMPTS
from ledger.store.triggers import POSTGRES_TRIGGERS, trigger_names
from routing import Allowance, Routing, StorageUnavailable
from tests.storage.test_old_ledgers import FILES, HEAD, unpacked
from tests.storage.test_old_ledgers import VALIDATOR as OLD_VALIDATOR
from tests.storage.test_schema_steps import rows
from tests.support.logs import opened
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, VALIDATOR, job, small_ledger

# An event trigger that refuses statements. A sequence counts them, since no rollback takes a number back.
REFUSING = """
    CREATE SEQUENCE attempts;
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
    DECLARE attempt bigint;
    BEGIN
        IF {condition} THEN
            attempt := nextval('attempts');
            IF attempt <= {times} THEN
                RAISE EXCEPTION '{message}' USING ERRCODE = '{sqlstate}', DETAIL = 'attempt ' || attempt;
            END IF;
        END IF;
    END $$;
    CREATE EVENT TRIGGER refusing ON ddl_command_start WHEN TAG IN ('{tag}') EXECUTE FUNCTION refuse()"""
EVERY = "true"
ALWAYS = 10**6


async def refuse(
    url: str, tag: str, sqlstate: str, *, message: str = "no", condition: str = EVERY, times: int = ALWAYS
) -> None:
    """Let the database refuse the first statements with this tag, if the condition is true."""
    # Event triggers have no schema; they end with the function, which the fixture's `DROP SCHEMA` deletes.
    values = {"tag": tag, "sqlstate": sqlstate, "message": message, "condition": condition, "times": times}
    async with connected(url) as other:
        await other.execute(REFUSING.format(**values))


async def refused_attempts(url: str) -> int:
    """Return how many statements the database has looked at."""
    ((count,),) = await rows(url, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM attempts")
    assert isinstance(count, int)
    return count


async def open_once(url: str) -> None:
    """Create the ledger's log alone."""
    async with opened(url, VALIDATOR):
        pass


# Errors


@pytest.mark.parametrize(
    ("sqlstate", "message", "attempts"),
    [
        ("XX000", "cache lookup failed for relation 7", 1),
        ("53100", "no space left on device", 1),
        ("42P07", "it exists already", MOST_CREATION_ATTEMPTS),
        ("XX000", "tuple concurrently updated", MOST_CREATION_ATTEMPTS),
    ],
)
async def test_the_last_error_of_the_creation_is_raised(
    postgres_url: str, sqlstate: str, message: str, attempts: int
) -> None:
    """It is a `StorageUnavailable` with the server's message, and one that no other process can cause comes at once.

    Catches attempts that end as `LedgerNotFound`, and a permanent internal error that is retried.
    """
    await refuse(postgres_url, "CREATE TABLE", sqlstate, message=message)
    with pytest.raises(StorageUnavailable, match=message) as unavailable:
        await open_once(postgres_url)
    assert getattr(unavailable.value.__cause__, "sqlstate", None) == sqlstate
    assert await refused_attempts(postgres_url) == attempts


@pytest.mark.parametrize(
    ("sqlstate", "message"),
    [("XX000", "tuple concurrently updated"), ("23505", "duplicate key"), ("42P07", "exists"), ("40001", "again")],
)
async def test_a_collision_is_retried(postgres_url: str, sqlstate: str, message: str) -> None:
    """What another process causes ends when that process is done.

    Catches an opening that fails because another one began at the same moment.
    """
    await refuse(postgres_url, "CREATE TABLE", sqlstate, message=message, times=4)
    await open_once(postgres_url)
    assert await refused_attempts(postgres_url) > 4


async def test_a_row_that_the_database_swallows_is_an_error(postgres_url: str) -> None:
    """The new ledger's row is not stored, although the server reports success: the opening ends, and says so.

    Catches a loop without end, and a `LedgerNotFound` of an opening that creates.
    """
    await open_once(postgres_url)
    async with connected(postgres_url) as other:
        await other.execute(
            """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
               CREATE TRIGGER swallow BEFORE INSERT ON allowance_ledgers FOR EACH ROW EXECUTE FUNCTION swallow()"""
        )
    async with asyncio.timeout(60):
        with pytest.raises(StorageUnavailable, match="row of ledger 2"):
            async with opened(postgres_url, "another-validator"):
                pass


# Databases without triggers


async def use_everything(url: str, directory: Path) -> None:
    """Record facts, pick, settle; read the history, audit, verify, rebuild, export: all agree."""
    async with small_ledger(url=url) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        assert route.allowance_reservation_id is not None
        await ledger.spend(route.allowance_reservation_id)
        made = [await ledger.reserve("5Anna", GPU, 6.0, 11) for _ in range(3)]
        await ledger.release(made[0].reservation_id)
        assert [each.status for each in (await ledger.history()).items] == ["reserved", "reserved", "released", "spent"]
        assert (await ledger.audit()).findings == []
        assert (await ledger.verify()).findings == []
        assert (await ledger.rebuild()).different == 0
        assert (await ledger.export(directory / "export.jsonl")).position == (await ledger.head()).position


async def missing(url: str, validator_ss58: str = VALIDATOR) -> list[str]:
    """Return what `health` reports."""
    async with Allowance.open(url, validator_ss58=validator_ss58, read_only=True) as ledger:
        return (await ledger.health()).missing_triggers


ALL_TRIGGERS = trigger_names(POSTGRES_TRIGGERS)
TRANSITION_TABLES = ["allowance_events_dense"]


@pytest.mark.parametrize(
    ("tag", "condition", "lacking"),
    [
        ("CREATE TRIGGER", EVERY, ALL_TRIGGERS),
        ("CREATE TRIGGER", "current_query() LIKE '%REFERENCING%'", TRANSITION_TABLES),
        ("CREATE FUNCTION", EVERY, ALL_TRIGGERS),
    ],
    ids=["no triggers", "no transition tables", "no functions"],
)
async def test_a_ledger_works_on_a_database_without_triggers(
    postgres_url: str, tmp_path: Path, tag: str, condition: str, lacking: list[str]
) -> None:
    """The database has the triggers that it supports; `health` names the others, and everything else works.

    Catches a creation that gives up, one that gives up every trigger because of one, and a rule that only a trigger
    enforces.
    """
    await refuse(postgres_url, tag, "0A000", condition=condition)
    await use_everything(postgres_url, tmp_path)
    assert await refused_attempts(postgres_url) > 0
    assert await missing(postgres_url) == lacking
    stored = await rows(postgres_url, "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
    assert {name for (name,) in stored} == set(ALL_TRIGGERS) - set(lacking)


@pytest.mark.parametrize("sqlstate", ["0A000", "42601", "42501", "42704", "P0001", "XX000"])
async def test_every_refusal_of_a_trigger_is_borne(postgres_url: str, sqlstate: str) -> None:
    """Databases that lack triggers report it in many ways."""
    await refuse(postgres_url, "CREATE TRIGGER", sqlstate)
    await open_once(postgres_url)
    assert await missing(postgres_url) == ALL_TRIGGERS


@pytest.mark.parametrize("sqlstate", ["53100", "57014", "55P03", "22000"])
async def test_an_error_that_says_nothing_of_triggers_fails_the_creation(postgres_url: str, sqlstate: str) -> None:
    """Nothing is created, and the next opening makes every trigger.

    Catches a database that is left without its triggers because of a full disk or a timeout.
    """
    await refuse(postgres_url, "CREATE TRIGGER", sqlstate, message="for now", times=1)
    with pytest.raises(StorageUnavailable, match="for now"):
        await open_once(postgres_url)
    assert await rows(postgres_url, "SELECT relname FROM pg_class WHERE relname LIKE 'allowance%'") == []
    await open_once(postgres_url)
    assert await missing(postgres_url) == []


@pytest.mark.parametrize(
    ("sqlstate", "message"), [("40P01", "deadlock detected"), ("XX000", "tuple concurrently updated")]
)
async def test_contention_at_a_trigger_is_retried(postgres_url: str, sqlstate: str, message: str) -> None:
    """Catches a trigger that is given up because another process was in the way."""
    await refuse(postgres_url, "CREATE TRIGGER", sqlstate, message=message, times=3)
    await open_once(postgres_url)
    assert await missing(postgres_url) == []


async def test_older_tables_without_triggers_are_upgraded(
    server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """The step's triggers need a function that such a database never had; the step itself succeeds.

    Catches an upgrade that fails for ever on a database without triggers.
    """
    server.load(postgres_url, unpacked("postgres.sql.gz", tmp_path, FILES))
    async with connected(postgres_url) as other:
        await other.execute("DROP FUNCTION allowance_refuse, allowance_check_dense CASCADE")
    await refuse(postgres_url, "CREATE TRIGGER", "0A000")
    assert await missing(postgres_url, OLD_VALIDATOR) == []
    async with Allowance.open(postgres_url, validator_ss58=OLD_VALIDATOR) as ledger:
        health = await ledger.health()
        assert (health.schema_version, health.position) == (SCHEMA_VERSION, HEAD.position)
        assert health.missing_triggers == ALL_TRIGGERS
        assert (await ledger.verify()).findings == []


async def test_health_reads_the_stored_triggers(postgres_url: str) -> None:
    """A trigger that somebody drops or disables later is missing; one of the same name on another table is none.

    Catches a report of what the creation did.
    """
    await open_once(postgres_url)
    assert await missing(postgres_url) == []
    async with connected(postgres_url) as other:
        await other.execute(
            """DROP TRIGGER allowance_events_append_only ON allowance_events;
               CREATE TRIGGER allowance_events_append_only BEFORE UPDATE ON allowance_snapshots
               FOR EACH ROW EXECUTE FUNCTION allowance_refuse('no');
               ALTER TABLE allowance_streams DISABLE TRIGGER allowance_streams_no_delete;
               ALTER TABLE allowance_ledgers ENABLE REPLICA TRIGGER allowance_ledgers_no_delete"""
        )
    assert await missing(postgres_url) == [
        "allowance_events_append_only",
        "allowance_streams_no_delete",
        "allowance_ledgers_no_delete",
    ]
