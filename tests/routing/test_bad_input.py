"""Bad input at every public call: a typed error that names the wrong value, and an unchanged log."""

from __future__ import annotations

import io
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact, localcontext
from enum import IntEnum, StrEnum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

import routing.sync
from routing import Allowance, AllowanceException, InvalidInput, Miner, ReservationNotFound, Routing, Settings
from routing.cli.main import main as cli

START = datetime(2024, 1, 1, tzinfo=UTC)
NAMES: list[Any] = [
    "",
    "x" * 129,
    "x" * 100_000,
    "nul\x00",
    "new\nline",
    "tab\t",
    "\ud800",
    None,
    7,
    True,
    b"bytes",
    ["x"],
]
AMOUNTS: list[Any] = [
    0,
    0.0,
    -1,
    -100,
    1e-10,
    math.nan,
    math.inf,
    -math.inf,
    10**30,
    1e300,
    3600.0000001,
    True,
    "5",
    None,
    [],
    10**400,
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
]
BLOCKS: list[Any] = [0, -1, -100, 10**30, 2**63, True, 1.0, "7", None]
COUNTS: list[Any] = [-1, -100, 10**30, True, 1.5, "2", None]
STAKES: list[Any] = [-1.0, -100, math.nan, math.inf, 10**30, 1e300, True, "1", None, [], Decimal("sNaN"), 10**400]


def miner(hotkey_ss58: Any = "5Miner", address: Any = "192.0.2.1", ip_version: Any = 4, port: Any = 8000) -> Miner:
    return Miner(address, ip_version, port, hotkey_ss58)


@pytest.fixture
async def ledger() -> AsyncIterator[Allowance]:
    """A ledger of three blocks with one miner."""
    clock = int((START + timedelta(seconds=60)).timestamp() * 10**9)
    async with Allowance.open("sqlite://", validator_ss58="5Validator", clock_ns=lambda: clock) as ledger:
        await ledger.record_manifests(1, {"5Miner": {"gpu": 2}})
        for number in (1, 2, 3):
            await ledger.record_block(number, START + timedelta(seconds=12 * number), [miner()], {"5Validator": 1.0})
        yield ledger


async def refused(ledger: Allowance, call: Callable[[], Awaitable[Any]]) -> AllowanceException:
    """Return the error of a refused call; assert that the log's head did not change."""
    before = await ledger.head()
    with pytest.raises(AllowanceException) as error:
        await call()
    assert await ledger.head() == before
    return error.value


@pytest.mark.parametrize("bad", NAMES, ids=repr)
async def test_an_invalid_name_is_refused(ledger: Allowance, bad: Any) -> None:
    """Every call expects names of 1 to 128 printable characters."""
    keyed: Any = {} if isinstance(bad, list) else {bad: 1}
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: ledger.find_miners(1.0, bad, 3),
        lambda: ledger.reserve(bad, "gpu", 1.0, 3),
        lambda: ledger.reserve("5Miner", bad, 1.0, 3),
        lambda: ledger.record_block(4, START + timedelta(seconds=48), [miner(hotkey_ss58=bad)], {}),
    ]
    if keyed:
        calls += [
            lambda: ledger.record_manifests(2, {bad: {"gpu": 1}}),
            lambda: ledger.record_manifests(2, {"5Miner": keyed}),
            lambda: ledger.record_block(4, START + timedelta(seconds=48), [], keyed),
        ]
    if bad is not None:
        calls += [
            lambda: ledger.reserve("5Miner", "gpu", 1.0, 3, job_uuid=bad),
            lambda: ledger.history(miner_ss58=bad),
            lambda: ledger.history(executor_class=bad),
            lambda: ledger.history(job_uuid=bad),
        ]
        with pytest.raises(InvalidInput):
            Allowance.open("sqlite://", validator_ss58=bad)
    for call in calls:
        assert isinstance(await refused(ledger, call), InvalidInput)
    if bad not in (None, "x" * 129):
        assert isinstance(
            await refused(ledger, lambda: ledger.reserve("5Miner", "gpu", 1.0, 3, idempotency_key=bad)), InvalidInput
        )


@pytest.mark.parametrize("bad", AMOUNTS, ids=repr)
async def test_an_invalid_amount_is_refused(ledger: Allowance, bad: Any) -> None:
    """Amounts are finite numbers of seconds, above 0 and at most the longest job."""
    request = SimpleNamespace(
        uuid="job", executor_class="gpu", download_time_limit=bad, execution_time_limit=0,
        upload_time_limit=0, on_trusted_miner=False,
    )  # fmt: skip
    for call in (
        lambda: ledger.find_miners(bad, "gpu", 3),
        lambda: ledger.reserve("5Miner", "gpu", bad, 3),
        lambda: Routing(ledger).pick_miner_for_job_request(request),
    ):
        error = await refused(ledger, call)
        assert isinstance(error, InvalidInput)
        assert isinstance(error, ValueError)
        if isinstance(bad, int | float) and not isinstance(bad, bool) and 3600 < bad < math.inf:
            assert str(error) == "Required allowance cannot be greater than 3600.0 seconds"


@pytest.mark.parametrize("bad", BLOCKS, ids=repr)
async def test_an_invalid_block_number_is_refused(ledger: Allowance, bad: Any) -> None:
    """Block numbers are integers from 1 on."""
    for call in (
        lambda: ledger.find_miners(1.0, "gpu", bad),
        lambda: ledger.reserve("5Miner", "gpu", 1.0, bad),
        lambda: ledger.record_block(bad, START, [miner()], {}),
        lambda: ledger.record_manifests(bad, {}, confirm=True),
    ):
        assert isinstance(await refused(ledger, call), InvalidInput)
    if bad is not None:
        assert isinstance(await refused(ledger, lambda: ledger.history(block=bad)), InvalidInput)


@pytest.mark.parametrize("bad", COUNTS, ids=repr)
async def test_an_invalid_executor_count_is_refused(ledger: Allowance, bad: Any) -> None:
    """Counts are integers from 0 on, in syncs and in caps."""
    assert isinstance(await refused(ledger, lambda: ledger.record_manifests(2, {"5Miner": {"gpu": bad}})), InvalidInput)
    with pytest.raises(InvalidInput):
        Settings(executors_max_per_class={"gpu": bad})


@pytest.mark.parametrize(
    "bad", [1.5, -1, "-1", "x", "1/0", "nan", "1001", "1e999999999", "1e-999999999", None], ids=repr
)
def test_an_invalid_multiplier_is_refused(bad: Any) -> None:
    """Multipliers are exact, from 0 to 1000; a huge exponent is refused before it is expanded to digits."""
    with pytest.raises(InvalidInput):
        Settings(allowance_multiplier=bad)


@pytest.mark.parametrize("bad", STAKES, ids=repr)
async def test_an_invalid_stake_is_refused(ledger: Allowance, bad: Any) -> None:
    """Stakes are finite numbers, 0 or more."""
    at = START + timedelta(seconds=48)
    assert isinstance(await refused(ledger, lambda: ledger.record_block(4, at, [], {"5Validator": bad})), InvalidInput)


@pytest.mark.parametrize(
    "bad",
    [
        miner(ip_version=5), miner(ip_version=True), miner(ip_version="4"), miner(ip_version=4.0),
        miner(port=-1), miner(port=65_536), miner(port=True), miner(port="80"), miner(address=""),
        miner(address="x" * 254), miner(address="a\x00"),
        miner(address=None), miner(hotkey_ss58=["x"]), "5Miner", None, {"hotkey_ss58": "5Miner"},
    ],
    ids=repr,
)  # fmt: skip
async def test_an_invalid_miner_is_refused(ledger: Allowance, bad: Any) -> None:
    """A miner has an address, ip version 4 or 6, and a port."""
    at = START + timedelta(seconds=48)
    assert isinstance(await refused(ledger, lambda: ledger.record_block(4, at, [bad], {})), InvalidInput)


async def test_a_repeated_hotkey_is_refused(ledger: Allowance) -> None:
    """Two miners with one hotkey contradict each other."""
    at = START + timedelta(seconds=48)
    error = await refused(ledger, lambda: ledger.record_block(4, at, [miner(), miner(port=9)], {}))
    assert isinstance(error, InvalidInput)
    assert error.expected == "an iterable that names each hotkey once"


@pytest.mark.parametrize(
    "bad",
    [
        START.replace(tzinfo=None),
        None,
        "2024-01-01",
        0,
        datetime(1969, 1, 1, tzinfo=UTC),
        datetime(9999, 1, 1, tzinfo=UTC),
    ],
    ids=repr,
)
async def test_an_invalid_time_is_refused(ledger: Allowance, bad: Any) -> None:
    """Times are aware datetimes that fit into 64 bits of nanoseconds."""
    assert isinstance(await refused(ledger, lambda: ledger.record_block(4, bad, [], {})), InvalidInput)
    if bad is not None:
        assert isinstance(await refused(ledger, lambda: ledger.history(reserved_from=bad)), InvalidInput)


@pytest.mark.parametrize("bad", [0, -1, 2**63, 10**30, 5, 1 << 62])
async def test_an_unknown_reservation_id_is_not_found(ledger: Allowance, bad: int) -> None:
    """An integer that is no id of this ledger raises `ReservationNotFound`."""
    for call in (lambda: ledger.spend(bad), lambda: ledger.release(bad), lambda: ledger.reservation(bad)):
        assert isinstance(await refused(ledger, call), ReservationNotFound)


@pytest.mark.parametrize("bad", [True, None, "5", 1.0])
async def test_an_invalid_reservation_id_is_refused(ledger: Allowance, bad: Any) -> None:
    """Reservation ids are integers."""
    for call in (lambda: ledger.spend(bad), lambda: ledger.release(bad), lambda: ledger.reservation(bad)):
        assert isinstance(await refused(ledger, call), InvalidInput)


@pytest.mark.parametrize(
    "bad",
    [
        {"limit": 0}, {"limit": True}, {"limit": 10**9}, {"status": "open"}, {"after": "x"}, {"after": "é"},
        {"after": 5}, {"newest_first": "no"},
    ],
)  # fmt: skip
async def test_an_invalid_history_page_is_refused(ledger: Allowance, bad: dict[str, Any]) -> None:
    """Limits, statuses, cursors and the order are checked."""
    assert isinstance(await refused(ledger, lambda: ledger.history(**bad)), InvalidInput)


@pytest.mark.parametrize(
    "url",
    ["", "mysql://x", "sqlite:x", "sqlite://x", "sqlite://a:secret@b/c", "sqlite:////\x00", None, 5, "x" * 10_000],
)
def test_an_invalid_database_url_is_refused(url: Any) -> None:
    """The error shows no credentials."""
    with pytest.raises(InvalidInput) as error:
        Allowance.open(url, validator_ss58="5Validator")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/app:Secret@h/led", "postgresql:app:Secret", "postgresql//app:Secret@h/led",
        "host=h PASSWORD='Secret'", "host=h password = Secret", "Postgresql://app:Secret@h/led",
        "postgresql+asyncpg://h/led?passwd=Secret",
        "app:Secret@h/led", b"postgresql://app:Secret@h/led", "sqlite:///x?password@Secret\0",
        "sqlite:///x?password=Secret\0", "sqlite://app:Secret@h",
    ],
)  # fmt: skip
def test_a_mistyped_database_url_shows_no_password(url: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the library nor the command line prints the password of a URL that it refuses."""
    with pytest.raises(InvalidInput) as error:
        Allowance.open(url, validator_ss58="5Validator")
    assert "Secret" not in str(error.value) + repr(error.value) + str(error.value.value)
    if isinstance(url, str) and "\0" not in url:
        for arguments in (["verify", url], ["verify", url, "--json"], ["health", "--databse", url], ["health", url]):
            assert cli(arguments) != 0
            assert "Secret" not in "".join(capsys.readouterr())


async def test_subclasses_of_str_count_as_their_value(ledger: Allowance) -> None:
    """A string enum, a `str` subclass and a `UUID` work like their plain text."""

    class Classes(StrEnum):
        GPU = "gpu"

    class Old(str):
        def __str__(self) -> str:
            return "something else"

    job = UUID("12345678-1234-5678-1234-567812345678")
    request = SimpleNamespace(
        uuid=job, executor_class=Classes.GPU, download_time_limit=1, execution_time_limit=1,
        upload_time_limit=1, on_trusted_miner=False,
    )  # fmt: skip
    route = await Routing(ledger).pick_miner_for_job_request(request)
    assert (await ledger.reservation_for_job(str(job))).reservation_id == route.allowance_reservation_id
    assert [each.hotkey_ss58 for each in await ledger.find_miners(1.0, Old("gpu"), 3)] == ["5Miner"]


async def test_subclasses_of_int_count_as_their_value(ledger: Allowance) -> None:
    """Miners are returned with plain integers, whatever type they were recorded with."""

    class Version(IntEnum):
        IPV4 = 4

    at = START + timedelta(seconds=48)
    await ledger.record_block(4, at, [miner(ip_version=Version.IPV4, port=Version.IPV4)], {"5Validator": 1.0})
    (recorded,) = await ledger.miners()
    assert (type(recorded.ip_version), type(recorded.port)) == (int, int)


@pytest.mark.parametrize("context", [Context(prec=3), Context(traps=[Inexact])], ids=["rounds", "raises"])
async def test_the_callers_decimal_context_does_not_change_an_amount(ledger: Allowance, context: Context) -> None:
    """An amount is exact, whatever precision and traps the calling thread has set.

    Catches scaling in the thread's own context, which rounded 1.23456789 s to three digits.
    """
    with localcontext(context):
        reservation = await ledger.reserve("5Miner", "gpu", 1.23456789, 3)
    assert reservation.allowance_seconds == 1.23456789


async def test_a_long_decimal_is_rounded_once(ledger: Allowance) -> None:
    """Slightly more than half a nanosecond rounds up; rounding to 28 digits first would make it exactly half."""
    amount: Any = Decimal("1.2345678905" + "0" * 30 + "1")
    reservation = await ledger.reserve("5Miner", "gpu", amount, 3)
    assert reservation.allowance_seconds == 1.234567891


async def test_an_invalid_confirm_flag_is_refused(ledger: Allowance) -> None:
    """`confirm="no"` does not confirm."""
    confirm: Any = "no"
    at = START + timedelta(days=100)
    error = await refused(ledger, lambda: ledger.record_block(200_000, at, [], {}, confirm=confirm))
    assert isinstance(error, InvalidInput)


@pytest.mark.parametrize("bad", ["false", "no", [0], 1.0], ids=repr)
async def test_an_invalid_trusted_flag_is_refused(ledger: Allowance, bad: Any) -> None:
    """A text such as "false" does not send a job to the trusted miner without any check."""
    request = SimpleNamespace(
        uuid="job", executor_class="gpu", download_time_limit=1, execution_time_limit=1,
        upload_time_limit=1, on_trusted_miner=bad,
    )  # fmt: skip
    error = await refused(ledger, lambda: Routing(ledger).pick_miner_for_job_request(request))
    assert isinstance(error, InvalidInput)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"clock_ns": time.time}, "clock_ns"),
        ({"clock_ns": lambda: "now"}, "clock_ns"),
        ({"clock_ns": lambda: -5}, "clock_ns"),
        ({"clock_ns": lambda: 2**64}, "clock_ns"),
        ({"clock_ns": 5}, "clock_ns"),
        ({"read_only": "no"}, "read_only"),
        ({"settings": {}}, "settings"),
    ],
)
def test_invalid_arguments_of_open_are_refused(bad: dict[str, Any], field: str) -> None:
    """A clock in seconds, above all, is refused by `open`, and not only when its first time is stored."""
    with pytest.raises(InvalidInput) as refused:
        Allowance.open("sqlite://", validator_ss58="5Validator", **bad)
    assert refused.value.field == field


@pytest.mark.parametrize("bad", [None, 5, [5], "abc", [None], [{}]], ids=repr)
async def test_invalid_facts_are_refused(ledger: Allowance, bad: Any) -> None:
    """The error names the facts, and nothing is recorded."""
    with pytest.raises(InvalidInput, match=r"^facts must be .*BlockFact"):
        await ledger.record_facts(bad)


async def test_an_invalid_ledger_or_bookkeeper_is_refused(ledger: Allowance) -> None:
    """`Routing` checks its ledger when it is created, and `routing.sync.Routing` says which class it expects."""
    invalid: Any
    for invalid in (None, 5, "ledger"):
        with pytest.raises(InvalidInput, match=r"^ledger must be .*an Allowance"):
            Routing(invalid)
    other: Any = ledger
    with pytest.raises(InvalidInput, match=r"^ledger must be .*routing\.sync"):
        routing.sync.Routing(other)
    invalid = 5
    with pytest.raises(InvalidInput, match=r"^keeper must be .*Bookkeeper"):
        await ledger.receipts(invalid)


@pytest.mark.parametrize("bad", [None, 5, "", b"", io.StringIO()], ids=repr)
async def test_an_invalid_export_target_is_refused(ledger: Allowance, bad: Any) -> None:
    """The target is checked before anything is read, and the error does not blame the database."""
    with pytest.raises(InvalidInput, match=r"^target must be .*stream of bytes"):
        await ledger.export(bad)


@pytest.mark.parametrize("bad", [None, 5, [5], ["1:ab"]], ids=repr)
async def test_invalid_heads_are_refused(ledger: Allowance, bad: Any) -> None:
    """`verify` expects `Head` objects."""
    with pytest.raises(InvalidInput, match=r"^heads must be .*Head"):
        await ledger.verify(bad)


def test_an_invalid_debug_or_trusted_miner_is_refused(ledger: Allowance) -> None:
    """Jobs go to a debug or trusted miner without any check, so it must be a `Miner`."""
    text: Any = "5Debug"
    with pytest.raises(InvalidInput):
        Routing(ledger, debug_miner=text)
    with pytest.raises(InvalidInput):
        Routing(ledger, trusted_miner=text)


async def test_a_request_without_an_attribute_is_refused(ledger: Allowance) -> None:
    """The error names the missing attribute."""
    error = await refused(ledger, lambda: Routing(ledger).pick_miner_for_job_request(SimpleNamespace(uuid="x")))
    assert isinstance(error, InvalidInput)
    assert "executor_class" in error.expected
