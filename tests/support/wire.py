"""A wire between a ledger and its PostgreSQL server, which is cut where a test says."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal

from .servers import PostgresServer

Fate = Literal["request lost", "answer lost", "request late"]

READY = b"Z\x00\x00\x00\x05"
"""How the server says that it has answered."""


class Wire:
    """Passes everything on, but for the first request that holds a marked text."""

    def __init__(self, server: PostgresServer, database: str, directory: str) -> None:
        self.url = server.url(database, directory)
        self.requests: list[bytes] = []
        """What was sent to the server, one entry a round trip."""
        self.unreachable = False
        """Set, new connections are refused."""
        self._upstream_path = f"{server.socket_directory}/.s.PGSQL.5432"
        self._mark: bytes | None = None
        self._fate: Fate = "request lost"
        self._late: tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self, mark: bytes, fate: Fate) -> None:
        """Cuts the wire at the next request that holds the text: before it, or after it was answered.

        A late request is held back until `resolve_futures`.
        """
        self._mark, self._fate = mark, fate

    async def deliver(self) -> bytes:
        """Lets the late request reach the server; the server's answer, which nobody else hears."""
        assert self._late is not None
        reader, writer, request = self._late
        writer.write(request)
        return await _answer(reader)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stands between one connection of the ledger's and one to the server."""
        self._writers.append(writer)
        if self.unreachable:
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream_path)
        self._writers.append(up_writer)
        answers = self.start(_pass_on(up_reader, writer))
        while request := await _read(reader):
            self.requests.append(request)
            if self._mark is not None and self._mark in request:
                self._mark = None
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
                await self._meet_fate(up_reader, up_writer, request)
                writer.close()
                return
            up_writer.write(request)
        up_writer.close()

    async def close(self) -> None:
        """Closes what is still open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _meet_fate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        match self._fate:
            case "request lost":
                writer.close()
            case "answer lost":
                writer.write(request)
                await _answer(reader)
                writer.close()
            case "request late":
                self._late = reader, writer, request

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does something until the wire is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task


@asynccontextmanager
async def wired(server: PostgresServer, database: str) -> AsyncIterator[Wire]:
    """A wire to a database on a server."""
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
    while answer := await _read(reader):
        writer.write(answer)
    writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    while READY not in answer:
        more = await _read(reader)
        assert more, f"the server hung up: {answer!r}"
        answer += more
    return answer
