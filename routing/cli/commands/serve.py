"""`allowance serve`: read-only pages of a ledger for a browser."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.output import Output

HOST, PORT = "127.0.0.1", 8377
LARGEST_PORT = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the address to listen on."""
    parser.add_argument(
        "--host",
        default=HOST,
        metavar="ADDRESS",
        help=f"the address to listen on (default: {HOST}; whoever reaches another one can read the whole ledger)",
    )
    parser.add_argument("--port", type=port, default=PORT, metavar="N", help=f"0 chooses a free one (default: {PORT})")


def port(text: str) -> int:
    """Return a port from 0 to 65,535."""
    if not (text.isascii() and text.isdigit() and int(text) <= LARGEST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to {LARGEST_PORT}")
    return int(text)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Serve the pages until the command is interrupted."""
    try:
        from routing.web.serving import serve
    except ImportError as missing:
        raise WrongUsage(
            f"the pages need {missing.name}, which is not installed; `pip install 'allowance-ledger[web]'` installs it"
        ) from missing
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection:

        def started(url: str) -> None:
            _announce(url, arguments.host, out)

        connection.run(serve(connection.ledger, arguments.host, arguments.port, started))
    return 0


def _announce(url: str, host: str, out: Output) -> None:
    from routing.web.security import LOOPBACK_HOSTS

    if out.json_wanted:
        out.document({"url": url})
    else:
        out.line(url)
    out.flush()
    out.note("serving read-only pages; press Ctrl-C to stop")
    if host not in LOOPBACK_HOSTS:
        out.note(f"whoever reaches {host} can read the whole ledger: let a proxy in front ask for a password")


COMMAND = CliCommand(
    details=(
        "The pages show the overview, the miners, the reservations, the events and the settings of a ledger, and\n"
        "audit it, now or at any moment of its past. Every page is also JSON. Nothing on them changes the ledger.\n"
        "/healthz and /metrics are for monitoring. Needs the extra `web`."
    ),
    examples=(
        "allowance serve",
        "allowance serve --database sqlite:///allowance.db --port 8400",
        "allowance serve --database postgresql://localhost/allowance --validator 5Grwva…",
    ),
    add_arguments=add_arguments,
    run=run,
)
