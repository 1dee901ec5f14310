"""A ledger on a disk that fails and loses data: a sample of the faults and power cuts of `tests/storage/disk/`."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import msgspec
import pytest

from tests.storage.disk.life import Misfortune
from tests.storage.disk.plan import Task, cut_tasks, sample
from tests.storage.disk.power import Disk
from tests.storage.disk.preload import CannotRun, Fault, Operation, Record
from tests.storage.disk.run import Workers, all_tasks, workers

SAMPLED_FAULTS = 80
SAMPLED_SYNCS = 25
SAMPLED_CUTS = 200
TASKS_AT_A_TIME = 10


@pytest.fixture(scope="module")
def disk() -> Iterator[Workers]:
    try:
        with workers(os.cpu_count() or 1) as running:
            yield running
    except CannotRun as reason:
        pytest.skip(str(reason))


@pytest.fixture
def seed() -> int:
    """A seed that is shown if the test fails."""
    drawn = random.SystemRandom().randrange(10**9)
    sys.stdout.write(f"seed {drawn}\n")
    return drawn


def test_no_fault_of_a_sample_breaks_a_promise(disk, seed):
    """Whichever system call fails, is short or is the last: done is done, failed is not, and unknown can be asked.

    It fails if a change is reported as done, or as failed, although its COMMIT could not be flushed.
    """
    report = disk.run(sample(all_tasks(disk, 0, seed), SAMPLED_FAULTS, seed), seed)

    assert not report.findings, str(report)
    assert report.runs == SAMPLED_FAULTS


def test_no_failed_sync_of_a_sample_breaks_a_promise(disk, seed):
    """The same for syncs alone, which are one call of ten: each is followed by power cuts, or by a kill and cuts."""
    every = [task for task in all_tasks(disk, 0, seed) if task.cuts > 1]

    report = disk.run(sample(every, SAMPLED_SYNCS, seed), seed)

    assert not report.findings, str(report)


def test_no_power_cut_of_a_sample_loses_what_was_acknowledged(disk, seed):
    """Of what no sync covered, any part may be lost: everything acknowledged by then is there, and nothing is torn.

    It fails with `synchronous=NORMAL` and `OFF`, and if the name of a new directory is not synced.
    """
    report = disk.run(cut_tasks(SAMPLED_CUTS, seed), seed)

    assert not report.findings, str(report)
    assert report.cuts_that_lost > report.cuts / 5


def test_a_disk_that_ignores_syncs_is_found(disk):
    """The control: if a sync covers nothing, the judge must miss acknowledged changes."""
    report = disk.run([Task("alone", cuts=10, seed=1, ignores_syncs=True)], 1)

    assert any("acknowledged but absent" in violation for _, violation in report.findings), str(report)


@pytest.mark.parametrize(
    ("script", "plant"),
    [("alone", "synchronous-normal"), ("alone", "synchronous-off"), ("founding", "directories-not-flushed")],
)
def test_a_product_that_flushes_less_is_found(disk, script, plant):
    """The disk finds a product that does not flush each commit, or the name of a directory that it makes."""
    report = disk.run([Task(script, cuts=20, seed=1, plant=plant)], 1)

    assert any("acknowledged but absent" in violation for _, violation in report.findings), str(report)


def test_a_directory_whose_sync_failed_is_synced_when_the_ledger_is_founded_again(disk):
    """The directories exist by then. Whatever fails at first, each name is durable before anything is acknowledged."""
    tasks = [Task("founding", Misfortune(Fault.EIO, index), cuts=30, seed=33) for index in range(1, 13)]

    report = disk.run(tasks, 33)

    assert not report.findings, str(report)


@pytest.mark.parametrize("plant", ["answers-from-a-read", "no-fence"])
def test_a_product_that_believes_what_it_reads_after_a_failed_commit_is_found(disk, plant):
    """After a failed COMMIT a read proves nothing, whether it finds the rows or not; the ledger once answered so."""
    assert _is_found(disk, plant, most=80)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("plant", ["trusts-every-storage", "wal-not-written-again"])
def test_a_product_that_believes_the_wal_of_a_crashed_process_is_found(disk, plant):
    """A process that could not flush, and died, may leave a WAL that is only in the page cache.

    If it is not written again, it is believed although a power cut loses it, or a checkpoint copies half of it.
    """
    assert _is_found(disk, plant, most=1_000, cuts=40)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_fault_and_no_power_cut_breaks_a_promise(disk, seed):
    """Every call with every fault, and 10,000 power cuts; `python -m tests.storage.disk` does the same."""
    report = disk.run(list(all_tasks(disk, 10_000, seed)), seed)

    sys.stdout.write(f"{report}\n")
    assert not report.findings
    assert report.cuts_that_lost >= 2_000


def _is_found(disk: Workers, plant: str, most: int, cuts: int | None = None) -> bool:
    """Whether a defect breaks a promise in the lives in which a sync fails; ends with the first few that find it."""
    tasks = [task for task in all_tasks(disk, 0, 1, plant) if task.cuts > 1 and task.script in ("crashed", "query")]
    tasks = sample(tasks, most, 1)
    if cuts is not None:
        tasks = [msgspec.structs.replace(task, cuts=cuts) for task in tasks if task.misfortune.death]
    return any(disk.run(some, 1).findings for some in _batched(tasks, TASKS_AT_A_TIME))


def _batched(tasks: list[Task], size: int) -> Iterator[list[Task]]:
    """Yield the tasks in lists of at most this size."""
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def _record(operation: Operation, handle: int = 1, offset: int = 0, result: int = 0, data: bytes = b"") -> Record:
    return Record(operation, handle, offset, result, 0, False, data)


def _disk(*records: Record, ignores_syncs: bool = False) -> Disk:
    disk = Disk(ignores_syncs=ignores_syncs)
    directory = _record(Operation.OPEN, handle=9)
    for record in (directory, _record(Operation.OPEN, offset=os.O_CREAT, data=b"file"), *records):
        disk.apply(record)
    return disk


_WRITE = _record(Operation.WRITE, data=b"new")
_SYNC = _record(Operation.SYNC)
_SYNC_NAMES = _record(Operation.SYNC, handle=9)
_FAILED_SYNC = _record(Operation.SYNC, result=-5)


def _after_losing_all(disk: Disk) -> dict[str, bytes | None]:
    return disk.image(random.Random(1), "lose all")[0]


@pytest.mark.parametrize(
    ("records", "left"),
    [
        ([_WRITE, _SYNC, _SYNC_NAMES], b"new"),
        ([_WRITE, _SYNC], None),
        ([_SYNC_NAMES, _WRITE], b""),
        ([_SYNC_NAMES, _WRITE, _FAILED_SYNC], b""),
        ([_SYNC_NAMES, _WRITE, _FAILED_SYNC, _SYNC], b"\0\0\0"),
        ([_SYNC_NAMES, _WRITE, _FAILED_SYNC, _WRITE, _SYNC], b"new"),
        ([_SYNC_NAMES, _WRITE, _SYNC, _record(Operation.TRUNCATE)], b"new"),
        ([_SYNC_NAMES, _WRITE, _SYNC, _record(Operation.TRUNCATE), _SYNC], b""),
        ([_SYNC_NAMES, _WRITE, _SYNC, _record(Operation.UNLINK, data=b"file")], b"new"),
        ([_SYNC_NAMES, _WRITE, _SYNC, _record(Operation.UNLINK, data=b"file"), _SYNC_NAMES], None),
    ],
)
def test_a_power_cut_may_lose_what_no_successful_sync_covered(records, left):
    """A file's sync covers its sectors and size, a directory's its names; a failed sync leaves nothing to the next."""
    assert _after_losing_all(_disk(*records)).get("file") == left


def test_a_power_cut_may_keep_everything():
    """What was written last is on the disk if nothing is lost, even after a failed sync."""
    image, lost = _disk(_WRITE, _FAILED_SYNC).image(random.Random(1), "keep all")

    assert (image["file"], lost) == (b"new", False)


def test_a_task_names_the_command_that_repeats_it():
    """A violation is repeated by pasting its first line."""
    task = Task("two", Misfortune(Fault.EIO, 7, killed_after=True, death=9), cuts=8, seed=3)

    assert task.command == (
        "python -m tests.storage.disk --script two --fault EIO --index 7 --killed-after --death 9 --cuts 8 --seed 3"
    )
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task
