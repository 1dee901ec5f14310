"""The commands that record what a router knows about miners beside their allowance."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

from routing import Allowance
from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.inputs import moment, seconds
from routing.cli.io.output import Output

INCIDENT_KINDS = ("rejected", "failed", "horde_failed")

Fields = dict[str, object]


def _record(
    arguments: argparse.Namespace, out: Output, call: Callable[[Allowance], Awaitable[int]], fields: Fields, done: str
) -> int:
    """Record a fact, and report the position of its event."""
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments) as connection:
        position = connection.run(call(connection.ledger))
    if out.json_wanted:
        out.document({**fields, "position": position})
    else:
        out.line(f"{done}, at position {position}")
    return 0


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="retrying with the same key is safe: the change happens once"
    )


def _add_exclusion(parser: argparse.ArgumentParser) -> None:
    _add_readmission(parser)
    parser.add_argument("--until", type=moment, metavar="TIME", help="when it ends (default: when it is readmitted)")


def _exclude(arguments: argparse.Namespace, out: Output) -> int:
    miner, reason, until = arguments.miner, arguments.reason, arguments.until
    return _record(
        arguments,
        out,
        lambda ledger: ledger.exclude_miner(miner, reason, until=until, idempotency_key=arguments.idempotency_key),
        {"miner_ss58": miner, "reason": reason, "until": until},
        f"{miner} is excluded" + (f" until {until}" if until else ""),
    )


def _add_readmission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("miner", metavar="MINER", help="the miner's hotkey")
    parser.add_argument("--reason", required=True, help="why; the log keeps it")
    _add_key(parser)


def _readmit(arguments: argparse.Namespace, out: Output) -> int:
    miner, reason = arguments.miner, arguments.reason
    return _record(
        arguments,
        out,
        lambda ledger: ledger.readmit_miner(miner, reason, idempotency_key=arguments.idempotency_key),
        {"miner_ss58": miner, "reason": reason},
        f"{miner} is readmitted",
    )


def _add_collateral(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("amounts", nargs="+", metavar="MINER=WEI", help="a miner's hotkey and its collateral in wei")
    _add_key(parser)


def _collateral(arguments: argparse.Namespace, out: Output) -> int:
    amounts: dict[str, int] = {}
    for text in arguments.amounts:
        miner_ss58, _, wei = text.rpartition("=")
        if not miner_ss58 or not wei.isascii() or not wei.isdigit():
            raise WrongUsage(f"{text!r} is no MINER=WEI, such as 5Grwva…=1000000000000000000")
        if miner_ss58 in amounts:
            raise WrongUsage(f"{miner_ss58} is given twice")
        amounts[miner_ss58] = int(wei)
    return _record(
        arguments,
        out,
        lambda ledger: ledger.record_collateral(amounts, idempotency_key=arguments.idempotency_key),
        {"collateral_wei": amounts},
        f"the collateral of {len(amounts)} miner{'s' if len(amounts) > 1 else ''} is recorded",
    )


def _add_job_elsewhere(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job_uuid", metavar="JOB_UUID", help="the uuid of the other validator's job")
    parser.add_argument("--ended", action="store_true", help="record the end of the job, for good")
    parser.add_argument("--miner", metavar="SS58", help="the miner on which it runs")
    parser.add_argument("--executor-class", metavar="CLASS", help="the executor class in which it runs")
    parser.add_argument("--started-at", type=moment, metavar="TIME", help="when it started (ISO 8601 with a time zone)")
    parser.add_argument("--ttl", type=seconds, metavar="S", help="for how many seconds it counts as running")
    _add_key(parser)


def _job_elsewhere(arguments: argparse.Namespace, out: Output) -> int:
    job_uuid, key = arguments.job_uuid, arguments.idempotency_key
    given = {
        "miner_ss58": arguments.miner,
        "executor_class": arguments.executor_class,
        "started_at": arguments.started_at,
        "ttl_seconds": arguments.ttl,
    }
    if arguments.ended:
        if any(value is not None for value in given.values()):
            raise WrongUsage("--ended takes only the job's uuid")
        return _record(
            arguments,
            out,
            lambda ledger: ledger.end_job_elsewhere(job_uuid, idempotency_key=key),
            {"job_uuid": job_uuid, "ended": True},
            f"job {job_uuid} elsewhere has ended",
        )
    if any(value is None for value in given.values()):
        raise WrongUsage("give --miner, --executor-class, --started-at and --ttl, or --ended")
    return _record(
        arguments,
        out,
        lambda ledger: ledger.record_job_elsewhere(
            arguments.miner,
            arguments.executor_class,
            job_uuid,
            arguments.started_at,
            arguments.ttl,
            idempotency_key=key,
        ),
        {"job_uuid": job_uuid, "ended": False, **given},
        f"job {job_uuid} runs elsewhere on {arguments.miner}",
    )


def _add_incident(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("miner", metavar="MINER", help="the miner's hotkey")
    parser.add_argument("executor_class", metavar="CLASS", help="the executor class of the job")
    parser.add_argument("kind", choices=INCIDENT_KINDS, help="what went wrong")
    parser.add_argument("job_uuid", metavar="JOB_UUID", help="the job's uuid")
    _add_key(parser)


def _incident(arguments: argparse.Namespace, out: Output) -> int:
    subject = arguments.miner, arguments.executor_class, arguments.kind, arguments.job_uuid
    return _record(
        arguments,
        out,
        lambda ledger: ledger.report_incident(*subject, idempotency_key=arguments.idempotency_key),
        dict(zip(("miner_ss58", "executor_class", "kind", "job_uuid"), subject, strict=True)),
        f"an incident of {arguments.miner} is reported",
    )


EXCLUDE = CliCommand(
    details=(
        "From the event on, no router of this ledger chooses the miner, until it is readmitted or until a time.\n"
        "Running jobs go on. Another exclusion of the miner replaces the one in force."
    ),
    examples=(
        'allowance exclude 5Grwva… --reason "wrong results"',
        'allowance exclude 5Grwva… --reason "maintenance" --until 2024-01-01T12:00:00Z',
    ),
    add_arguments=_add_exclusion,
    run=_exclude,
)
READMIT = CliCommand(
    details="Ends the exclusion that is in force. Exit code 1: the miner was never excluded.",
    examples=('allowance readmit 5Grwva… --reason "it was our mistake"',),
    add_arguments=_add_readmission,
    run=_readmit,
)
COLLATERAL = CliCommand(
    details=(
        "Miners that are not named keep their amount. It counts if the setting minimum_collateral_wei is above 0:\n"
        "miners below it are not chosen."
    ),
    examples=("allowance collateral 5Grwva…=2000000000000000000 5FHneW…=0",),
    add_arguments=_add_collateral,
    run=_collateral,
)
JOB_ELSEWHERE = CliCommand(
    details=(
        "A job of another validator counts as running on the miner from its start for its time, unless it is ended,\n"
        "so that a miner whose executors are all in use is skipped. The end of a job may be recorded first."
    ),
    examples=(
        "allowance job-elsewhere job-17 --miner 5Grwva… --executor-class gpu --started-at 2024-01-01T12:00Z --ttl 60",
        "allowance job-elsewhere 6f1c0a52-27c3-4d0e-9d3b-5f3f5b1f0c11 --ended",
    ),
    add_arguments=_add_job_elsewhere,
    run=_job_elsewhere,
)
INCIDENT = CliCommand(
    details=(
        "Incidents count if the setting routing_order is reliability: a miner with many of them per executor is\n"
        "rarely chosen. One per job and miner."
    ),
    examples=("allowance incident 5Grwva… gpu-24gb failed 6f1c0a52-27c3-4d0e-9d3b-5f3f5b1f0c11",),
    add_arguments=_add_incident,
    run=_incident,
)
