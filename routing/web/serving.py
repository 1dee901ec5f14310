"""Serves the pages of one ledger with uvicorn until the process is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette

from ledger.errors import InvalidInput

from .application import app
from .security import LOOPBACK_HOSTS

if TYPE_CHECKING:
    from routing import Allowance

SECONDS_TO_FINISH = 5
"""How long requests under way may take after an interrupt."""


class _Server(uvicorn.Server):
    """A server that ends its live connections before it waits for all connections to end."""

    def __init__(self, config: uvicorn.Config, pages: Starlette) -> None:
        super().__init__(config)
        self._pages = pages

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for source in self._pages.state.sources:
            source.live.close()
        await super().shutdown(sockets)


async def serve(ledger: Allowance, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve the pages of a ledger on an address; call `started` with their URL once they can be reached.

    Raises `InvalidInput` if the address cannot be listened on. On a loopback address only requests for that host are
    answered.
    """
    listening = _listen(host, port)
    await ledger.head()  # A ledger that cannot be read is an error of the command, and no page.
    is_loopback = host in LOOPBACK_HOSTS
    pages = app(ledger, allowed_hosts=LOOPBACK_HOSTS if is_loopback else None)
    config = uvicorn.Config(
        pages,
        log_level="warning",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    shown = f"[{host}]" if ":" in host else host
    with listening:
        started(f"http://{shown}:{listening.getsockname()[1]}/")
        await _Server(config, pages).serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InvalidInput("--host and --port", f"{host}:{port}", f"free to listen on ({error.strerror})") from error
