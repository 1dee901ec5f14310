"""What all responses have in common: only reading methods, known hosts, and headers that restrict the browser."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The pages show a private ledger, and change with it.
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware: refuses methods that change something and unknown hosts, and adds the headers.

    `allowed_hosts` are names or addresses without a port; None allows every host. Without the check, the page of
    another site could read a ledger on loopback through a name of its own that points there (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] | None = None) -> None:
        self._app = app
        self._allowed_hosts = None if allowed_hosts is None else {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("These pages are read-only: use GET.\n", 405, {"Allow": "GET, HEAD"})
        host = _host(Headers(scope=scope).get("host", ""))
        if self._allowed_hosts is not None and host not in self._allowed_hosts:
            names = ", ".join(sorted(self._allowed_hosts))
            return PlainTextResponse(f"This server is {names}; ask for it by one of these names.\n", 421)
        return None


def _host(header: str) -> str:
    """Return the lower-case name or address in a Host header; empty if it is malformed."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
