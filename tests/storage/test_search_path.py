"""A ledger per schema of one PostgreSQL database: they do not see each other, and each is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from routing import Allowance, InvalidInput, LedgerNotFound, StorageUnavailable, verify
from tests.storage.test_creation import use_everything
from tests.storage.test_schema_steps import rows
from tests.support.logs import opened
from tests.support.servers import PostgresServer, connected
from tests.support.small import VALIDATOR, small_ledger

SCHEMAS = ("validator_7", '"Validator, 8"')
TABLES = "SELECT table_schema || '.' || table_name FROM information_schema.tables WHERE table_name LIKE 'allowance_%'"


@pytest.fixture
def sharded_url(server: PostgresServer) -> Iterator[str]:
    """The URL of a database with two empty schemas beside `public`."""
    with server.fresh_database() as url:
        database = url.split("@/")[1].split("?")[0]
        server.execute("; ".join(f"CREATE SCHEMA {schema}" for schema in SCHEMAS), database)
        try:
            yield url
        finally:
            server.execute("; ".join(f"DROP SCHEMA IF EXISTS {schema} CASCADE" for schema in SCHEMAS), database)


def seven(url: str) -> str:
    """The URL of the ledger in the first schema."""
    return f"{url}&search_path=validator_7"


def eight(url: str) -> str:
    """The URL of the ledger in the second schema, as an option of the server."""
    return f"{url}&options=-csearch_path%3D%22Validator,%5C%208%22"


async def schemas_with_tables(url: str) -> set[str]:
    """Return the names of the schemas that have tables of ledgers."""
    return {str(name).rpartition(".")[0] for (name,) in await rows(url, TABLES)}


async def test_ledgers_in_two_schemas_do_not_see_each_other(sharded_url: str, tmp_path: Path) -> None:
    """One validator has a ledger in each; whatever happens to one, including a rebuild, leaves the other as it is.

    Catches a statement that names the schema `public`, and tables that are found there.
    """
    async with small_ledger(url=eight(sharded_url), blocks=3) as other:
        before = await other.head()
        await use_everything(seven(sharded_url), tmp_path)
        assert await other.head() == before
        assert (await other.history()).items == []
        assert (await other.verify()).position == before.position
        assert (await other.health()).missing_triggers == []
    assert await schemas_with_tables(sharded_url) == {"validator_7", "Validator, 8"}
    for url, kept in ((seven(sharded_url), 15), (eight(sharded_url), before.position)):
        (report,) = await verify(url)
        assert (report.findings, report.position >= kept) == ([], True)
    with pytest.raises(LedgerNotFound):
        async with Allowance.open(sharded_url, validator_ss58=VALIDATOR, read_only=True):
            pass


async def test_tables_go_to_the_first_schema_of_the_path(sharded_url: str) -> None:
    """`public` has a ledger already, of another validator; a path that ends there begins a ledger in its first schema.

    Catches an opening that finds the tables of `public` behind the schema that was named.
    """
    async with small_ledger(url=sharded_url):
        pass
    path = f"{sharded_url}&search_path=validator_7,public"
    with pytest.raises(LedgerNotFound):
        async with Allowance.open(path, validator_ss58=VALIDATOR, read_only=True):
            pass
    async with Allowance.open(path, validator_ss58=VALIDATOR) as ledger:
        assert (await ledger.head()).position == 1
    assert await schemas_with_tables(sharded_url) == {"public", "validator_7"}


async def test_a_lost_table_is_never_that_of_another_schema(sharded_url: str) -> None:
    """A rebuild makes it again in the ledger's own schema, and the ledger in `public` keeps its history.

    Catches a path that leads a statement on a lost table to the tables of another ledger, which has the same local id.
    """
    path = f"{sharded_url}&search_path=validator_7,public"
    async with small_ledger(url=sharded_url) as public, small_ledger(url=path, blocks=3) as ledger:
        made = await public.reserve("5Anna", "always_on.gpu-24gb", 6.0, 11)
        await public.rebuild()
        async with connected(sharded_url) as other:
            await other.execute("DROP TABLE validator_7.allowance_checkpoints, validator_7.allowance_reservations")
        with pytest.raises(StorageUnavailable, match="allowance rebuild"):
            await ledger.history()
        assert len((await ledger.rebuild()).remade) == 2
        assert (await ledger.history()).items == []
        assert [each.reservation_id for each in (await public.history()).items] == [made.reservation_id]
        assert (await public.rebuild()).different == 0


@pytest.mark.parametrize("has_tables", [True, False], ids=["both", "only the second"])
async def test_a_path_with_tables_in_a_later_schema_is_refused(sharded_url: str, has_tables: bool) -> None:
    """If the URL does not shorten the path itself, which ledger is meant cannot be known: both schemas are named.

    Catches a role with a schema of its own that begins another ledger beside the one in `public`.
    """
    for each in (sharded_url, *[seven(sharded_url)] * has_tables):
        async with opened(each):
            pass
    for read_only in (False, True):
        with pytest.raises(InvalidInput, match=r"validator_7.*public has a ledger's tables") as refused:
            async with opened(f"{sharded_url}&options=-csearch_path%3Dvalidator_7,public", read_only=read_only):
                pass
        assert refused.value.field == "database_url"
    with pytest.raises(InvalidInput, match="public"):
        await verify(f"{sharded_url}&options=-csearch_path%3Dvalidator_7,public")


async def test_an_unknown_schema_is_named(sharded_url: str) -> None:
    """A mistyped schema is neither created nor taken for an empty database."""
    url = f"{sharded_url}&search_path=validator_77"
    for read_only in (False, True):
        with pytest.raises(StorageUnavailable, match="validator_77"):
            async with opened(url, read_only=read_only):
                pass
    with pytest.raises(StorageUnavailable, match="validator_77"):
        await verify(url)
