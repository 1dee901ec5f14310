"""`allowance pick`: routes one job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.command import CliCommand
from routing.cli.errors import WrongInput
from routing.cli.io.inputs import opened_input
from routing.cli.io.output import Output
from routing.cli.io.render import block_ranges, labelled, seconds_text

if TYPE_CHECKING:
    from routing import Allowance, JobRoute
    from routing.cli.files.job_request import JobRequest

LONGEST_REQUEST_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the request is."""
    parser.add_argument("request", metavar="REQUEST.json", help="the job request; `-` reads standard input")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Picks a miner, reserves what the job needs, and shows the route."""
    from routing.cli.io.documents import route_document

    route = _pick(arguments, _request(arguments.request))
    if out.json_wanted:
        out.document(route_document(route))
    else:
        _show(route, out)
    return 0


def _pick(arguments: argparse.Namespace, request: JobRequest) -> JobRoute:
    """Routes as a validator's process does: a debug or trusted miner is taken without opening any ledger."""
    import asyncio

    from routing import Routing
    from routing.cli.connection import ledger_of, refuse_absent
    from routing.service.config import configuration_from_environment

    books: list[Allowance] = []

    def ledger() -> Allowance:
        books.append(ledger_of(arguments))
        return books[-1]

    async def pick() -> JobRoute:
        configuration = configuration_from_environment()
        if configuration.debug_miner is None and not request.on_trusted_miner:
            await refuse_absent(arguments)
        router = Routing(ledger, debug_miner=configuration.debug_miner, trusted_miner=configuration.trusted_miner)
        try:
            return await router.pick_miner_for_job_request(request)
        finally:
            for opened in books:
                await opened.close()

    return asyncio.run(pick())


def _request(path: str) -> JobRequest:
    from routing.cli.files.job_request import job_request

    with opened_input(path) as stream:
        text = stream.read(LONGEST_REQUEST_BYTES + 1)
    if len(text) > LONGEST_REQUEST_BYTES:
        raise WrongInput(f"the job request is longer than {LONGEST_REQUEST_BYTES:,} bytes")
    return job_request(text)


def _show(route: JobRoute, out: Output) -> None:
    held = route.allowance_reservation_id
    pairs: list[tuple[str, object]] = [
        ("miner", route.miner.hotkey_ss58),
        ("address", f"{route.miner.address} port {route.miner.port}"),
    ]
    if held is not None:
        pairs += [
            ("reservation", held),
            ("amount", seconds_text(route.allowance_job_value or 0.0)),
            ("blocks", block_ranges(route.allowance_blocks or ())),
        ]
    for line in labelled(pairs):
        out.line(line)
    if held is None:
        out.note("nothing is reserved: this miner takes jobs unchecked")
    else:
        out.note(f"then: `allowance spend {held}` when the job ran, `allowance release {held}` when not")


COMMAND = CliCommand(
    name="pick",
    summary="Pick the miner for a job and reserve what the job needs.",
    details=(
        'The request: {"uuid":"…","executor_class":"always_on.gpu-24gb","download_time_limit":5,\n'
        '"execution_time_limit":30,"upload_time_limit":5}, "on_trusted_miner" if it should be.\n'
        "The same uuid again gives the same route."
    ),
    examples=(
        "allowance pick request.json",
        "allowance pick request.json --json | jq .allowance_reservation_id",
        "generate-request | allowance pick -",
    ),
    add_arguments=add_arguments,
    run=run,
)
