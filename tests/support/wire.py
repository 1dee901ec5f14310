"""A connection between a ledger and its PostgreSQL server that a test can cut at a chosen request."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal

from .servers import PostgresServer

Fate = Literal["request lost", "response lost", "request late", "response replaced"]

# The header of ReadyForQuery, the message that ends every response of the server.
READY = b"Z\x00\x00\x00\x05"
_OUT_OF_MEMORY = b"SERROR\0VERROR\0C53200\0Mout of memory\0\0"
# An error that a server may report at any time, also after a commit.
ERROR_RESPONSE = b"E" + (len(_OUT_OF_MEMORY) + 4).to_bytes(4, "big") + _OUT_OF_MEMORY + READY + b"I"


class Wire:
    """Forwards everything, except the first request that contains a marked text."""

    def __init__(self, server: PostgresServer, database: str, directory: str) -> None:
        self.url = server.url(database, directory)
        self.requests: list[bytes] = []
        """The requests to the server, one entry per round trip."""
        self.unreachable = False
        """If True, new connections are refused."""
        self._upstream_path = f"{server.socket_directory}/.s.PGSQL.5432"
        self._next_upstream_path: str | None = None
        self._mark: bytes | None = None
        self._fate: Fate = "request lost"
        self._late: tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self, mark: bytes, fate: Fate) -> None:
        """Cut the connection at the next request that contains the text, before it or before its response.

        A late request waits until `deliver`.
        """
        self._mark, self._fate = mark, fate

    def lead_to(self, socket_directory: str, *, only_next: bool = False) -> None:
        """Lead new connections, or only the next one, to another server; the open ones stay with theirs."""
        path = f"{socket_directory}/.s.PGSQL.5432"
        if only_next:
            self._next_upstream_path = path
        else:
            self._upstream_path = path

    def hang_up(self) -> None:
        """Close all open connections."""
        for writer in self._writers:
            writer.close()

    async def deliver(self) -> bytes:
        """Send the late request to the server and return the response, which the ledger does not get."""
        assert self._late is not None
        reader, writer, request = self._late
        writer.write(request)
        return await _response(reader)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect one connection of the ledger with one to the server."""
        self._writers.append(writer)
        if self.unreachable:
            writer.close()
            return
        path, self._next_upstream_path = self._next_upstream_path or self._upstream_path, None
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(path)
        except OSError:  # The server is down.
            writer.close()
            return
        self._writers.append(up_writer)
        responses = self.start(_pass_on(up_reader, writer))
        while request := await _read(reader):
            self.requests.append(request)
            if self._mark is not None and self._mark in request:
                self._mark = None
                responses.cancel()
                await asyncio.gather(responses, return_exceptions=True)
                await self._meet_fate(up_reader, up_writer, request, writer)
                writer.close()
                return
            up_writer.write(request)
        up_writer.close()

    async def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _meet_fate(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: bytes,
        client: asyncio.StreamWriter,
    ) -> None:
        match self._fate:
            case "request lost":
                writer.close()
            case "response lost":
                writer.write(request)
                # Only after the response: the server has then finished the request.
                await _response(reader)
                writer.close()
            case "response replaced":
                writer.write(request)
                await _response(reader)
                client.write(ERROR_RESPONSE)
                writer.close()
            case "request late":
                self._late = reader, writer, request

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task that ends with the wire."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task


@asynccontextmanager
async def wired(server: PostgresServer, database: str) -> AsyncIterator[Wire]:
    """Open a wire to a database on a server."""
    with tempfile.TemporaryDirectory(prefix="allowance-wire-") as directory:
        wire = Wire(server, database, directory)
        listening = await asyncio.start_unix_server(
            lambda reader, writer: wire.start(wire.serve(reader, writer)), f"{directory}/.s.PGSQL.5432"
        )
        try:
            yield wire
        finally:
            listening.close()
            await wire.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 20)
    except ConnectionError:
        return b""


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while response := await _read(reader):
        writer.write(response)
    writer.close()


async def _response(reader: asyncio.StreamReader) -> bytes:
    response = b""
    while READY not in response:
        more = await _read(reader)
        assert more, f"the server closed the connection: {response!r}"
        response += more
    return response
