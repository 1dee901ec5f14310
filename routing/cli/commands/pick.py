"""`allowance pick`: route one job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongInput
from routing.cli.io.inputs import opened_input
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import labelled
from routing.texts import block_ranges, seconds_text

if TYPE_CHECKING:
    from routing import Allowance, JobRoute
    from routing.cli.files.job_request import JobRequest

LONGEST_REQUEST_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the file of the request."""
    parser.add_argument("request", metavar="REQUEST.json", help="the job request; `-` reads standard input")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Pick a miner, reserve the allowance that the job needs, and show the route."""
    from routing.documents import route_document

    route = _pick(arguments, _request(arguments.request))
    if out.json_wanted:
        out.document(route_document(route))
    else:
        _show(route, arguments, out)
    return 0


def _pick(arguments: argparse.Namespace, request: JobRequest) -> JobRoute:
    """Route the job. A debug or trusted route opens no ledger, as in a validator's own process."""
    import asyncio

    from routing import Routing
    from routing.cli.named_ledger import find_validator, ledger_from_arguments, naming_options, refuse_absent_ledger
    from routing.service.config import configuration_from_environment

    opened: list[Allowance] = []

    def open_ledger() -> Allowance:
        opened.append(ledger_from_arguments(arguments))
        return opened[-1]

    async def pick() -> JobRoute:
        configuration = configuration_from_environment()
        if configuration.debug_miner is None and not request.on_trusted_miner:
            await find_validator(arguments)
            await refuse_absent_ledger(arguments)
        router = Routing(open_ledger, debug_miner=configuration.debug_miner, trusted_miner=configuration.trusted_miner)
        try:
            return await router.pick_miner_for_job_request(request)
        finally:
            for ledger in opened:
                await ledger.close()

    with naming_options(arguments):
        return asyncio.run(pick())


def _request(path: str) -> JobRequest:
    from routing.cli.files.job_request import job_request

    with opened_input(path) as stream:
        text = stream.read(LONGEST_REQUEST_BYTES + 1)
    if len(text) > LONGEST_REQUEST_BYTES:
        raise WrongInput(f"the job request must be at most {LONGEST_REQUEST_BYTES:,} bytes long")
    return job_request(text)


def _show(route: JobRoute, arguments: argparse.Namespace, out: Output) -> None:
    reservation_id = route.allowance_reservation_id
    pairs: list[tuple[str, object]] = [
        ("miner", route.miner.hotkey_ss58),
        ("address", f"{route.miner.address} port {route.miner.port}"),
    ]
    if reservation_id is not None:
        pairs += [
            ("reservation", reservation_id),
            ("amount", seconds_text(route.allowance_job_value or 0.0)),
            ("blocks", block_ranges(route.allowance_blocks or ())),
        ]
    for line in labelled(pairs):
        out.line(line)
    if reservation_id is None:
        out.note("nothing is reserved: a debug or trusted miner runs jobs without allowance")
    else:
        out.next_step(
            f"{next_command(arguments, 'spend', reservation_id)},"
            " or `release` instead of `spend` if the job did not run"
        )


COMMAND = CliCommand(
    details=(
        "The request is a JSON object; time limits are in seconds, and their sum is the amount to reserve:\n"
        '  {"uuid":"…","executor_class":"always_on.gpu-24gb","download_time_limit":5,\n'
        '   "execution_time_limit":30,"upload_time_limit":5}\n'
        'It may have "on_trusted_miner":true. Retrying with the same uuid returns the same route.'
    ),
    examples=(
        "allowance pick request.json",
        "allowance pick request.json --json | jq .allowance_reservation_id",
        "generate-request | allowance pick -",
    ),
    add_arguments=add_arguments,
    run=run,
)
