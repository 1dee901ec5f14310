"""In which schema a ledger's tables are: the first one of the connection's search path, and no other.

The statements name tables without a schema. If another schema of the path had such tables too, a statement on a lost
table of the first one would silently use the other's. So a path on which another schema has them is refused.
"""

from __future__ import annotations

import asyncpg

from ledger.errors import InvalidInput, StorageUnavailable

from .database_url import SHOWN_URL

# The schemas of the path that exist and that the user may use, in order.
_SCHEMAS = """SELECT current_setting('search_path'), ARRAY(
                  SELECT name::text FROM unnest(current_schemas(false)) WITH ORDINALITY AS path(name, number)
                  ORDER BY number), ARRAY(
                  SELECT name::text FROM unnest(current_schemas(false)) WITH ORDINALITY AS path(name, number)
                  WHERE to_regclass(format('%I.allowance_schema', name)) IS NOT NULL ORDER BY number)"""


async def has_schema(connection: asyncpg.Connection) -> bool:
    """Return whether the first schema of the search path has a ledger's tables.

    Raises `StorageUnavailable` if no schema of the path exists, and `InvalidInput` if another one has such tables.
    """
    search_path, schemas, with_tables = await connection.fetchrow(_SCHEMAS)
    if not schemas:
        raise StorageUnavailable(f"the search_path {search_path} names no schema that exists and that the user may use")
    if set(with_tables) - {schemas[0]}:
        other = f"{with_tables[-1]} has a ledger's tables too, or instead of {schemas[0]}"
        expected = f"a URL with a search_path of one schema: of {search_path}, {other}"
        raise InvalidInput("database_url", SHOWN_URL, expected)
    return bool(with_tables)
