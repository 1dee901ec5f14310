"""The tie-break bound to the chain: its seed covers the newest block's hash, if the recorded setting says so.

Whoever chooses a job's uuid does not choose its miner unless he knows the hash of the block at which it is picked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from itertools import count
from math import gcd
from pathlib import Path
from typing import Any

import pytest

from ledger import RecordedSettings, Row
from ledger.codec import decode, row_hash
from ledger.events import AllowanceReserved, LedgerOpened, SettingsChanged
from projections import Rule
from projections.audit.tie_break import tie_break_number
from projections.tie_break import in_trial_order, tie_break_seed
from routing import Allowance, IdempotencyConflict, InvalidInput, JobRoute, Routing, Settings, restore
from tests.storage.test_old_ledgers import OLDER_LEDGERS, OldLedger, clock_after, unpacked
from tests.support.fault_cases.routes import FIRST_HASH, HASH, job_that_tries
from tests.support.log_builder import CARL, LogBuilder, audited
from tests.support.small import START, VALIDATOR, Clock, hash_of, job, miner, small_ledger
from tests.support.stories import events_of, take_snapshot

MINERS = ("5Anna", "5Bert", "5Carl", "5Dora", "5Emil")
OFFERS = dict.fromkeys(MINERS, 2)
JOBS = [f"job-{number}" for number in range(12)]
A, B = hash_of(12, "a"), hash_of(12, "b")
NO_HASH = ""
NEW_CLASS = "a-new-class"


def order(hotkeys: Sequence[str], job_uuid: str, block_hash: str) -> list[str]:
    """Return equals in the order of the rule, written down a third time: plainly, and on the printed rule only."""
    text = job_uuid.encode() + (b"\0" + bytes.fromhex(block_hash) if block_hash else b"")
    seed = int.from_bytes(blake2b(text, digest_size=16).digest(), "big")
    size = len(hotkeys)
    step = next(each for each in count((seed // size) % size) if gcd(each, size) == 1)
    return [hotkeys[(seed % size + turn * step) % size] for turn in range(size)]


def firsts(block_hash: str) -> list[str]:
    """Return the first miner that each of the jobs tries among all miners."""
    return [order(MINERS, uuid, block_hash)[0] for uuid in JOBS]


async def record(ledger: Allowance, number: int, block_hash: str | None) -> int:
    created_at, miners = START + timedelta(seconds=12 * number), list(map(miner, MINERS))
    stakes = {VALIDATOR: 1.0, "5Other": 1.0}
    return await ledger.record_block(number, created_at, miners, stakes, block_hash=block_hash)


async def picked(ledger: Allowance, uuids: Sequence[str] = JOBS) -> list[str]:
    """Pick a miner for each job while all miners are equal: each reservation is released before the next."""
    hotkeys = []
    for uuid in uuids:
        route: JobRoute = await Routing(ledger).pick_miner_for_job_request(job(uuid))
        hotkeys.append(route.miner.hotkey_ss58)
        await ledger.release(route.allowance_reservation_id or 0)
    return hotkeys


async def settings_recorded(ledger: Allowance) -> list[bytes]:
    """Return the payloads of the events that recorded settings."""
    rows = await events_of(ledger)
    return [
        row.payload for row in rows if isinstance(decode(row.position, row.payload), (LedgerOpened, SettingsChanged))
    ]


def test_the_seed_never_changes() -> None:
    """Golden numbers for both forms of the seed, in the router's code and in the audit's.

    Catches another order of the parts, a missing zero byte, and the digits of the hash in place of its bytes.
    """
    golden = {b"": 0xCC1A57FEBA378E5DC0D43066E7748187, bytes(range(32)): 0x401A58556B63E5E575F24A729650C0A7}
    for block_hash, seed in golden.items():
        assert tie_break_seed("job-1", block_hash) == tie_break_number("job-1", block_hash) == seed


def test_one_uuid_has_another_order_for_another_hash() -> None:
    """Over many hashes, one uuid starts at every miner about equally often; catches a seed that ignores the hash."""
    equals = (list(MINERS), 0, len(MINERS))
    starts = [next(in_trial_order([equals], "job", bytes.fromhex(hash_of(n)))) for n in range(500)]
    assert all(70 <= starts.count(hotkey) <= 130 for hotkey in MINERS)


async def test_whoever_chooses_the_uuid_does_not_choose_the_miner(any_url: str) -> None:
    """Two validators' logs differ in one hash only: the same uuids go to other miners, on each engine by the rule."""
    assert firsts(A) != firsts(B)
    assert firsts(A) != firsts(NO_HASH)
    async with small_ledger(url=any_url, offers=OFFERS) as ledger:
        assert await picked(ledger) == firsts(NO_HASH)
        await record(ledger, 12, A)
        assert await picked(ledger) == firsts(A)
        await record(ledger, 13, None)
        assert await picked(ledger) == firsts(NO_HASH)
        await ledger.withdraw_block(13, "a fork")
        assert await picked(ledger) == firsts(A)
        await ledger.withdraw_block(12, "a fork")
        await record(ledger, 12, B)
        assert await picked(ledger) == firsts(B)
        assert (await ledger.audit()).findings == []


async def test_all_equals_are_tried_in_the_order_of_the_seed(any_url: str) -> None:
    """With one executor each, the same seed gives the second and the third miner; `explain` shows the whole order."""
    async with small_ledger(url=any_url, offers=dict.fromkeys(MINERS, 1)) as ledger:
        await record(ledger, 12, A)
        await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        explained = await ledger.explain("job-1")
        assert [each.hotkey_ss58 for each in explained.candidates] == order(MINERS, "job-1", A)
        assert explained.candidates[0].verdict == "claimed"


async def test_an_explanation_uses_the_hash_of_its_own_time(any_url: str) -> None:
    """Newer blocks with other hashes, and another setting, do not change what is said about an older choice."""
    async with small_ledger(url=any_url, offers=OFFERS) as ledger:
        await record(ledger, 12, A)
        await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        before = await ledger.explain("job-1")
        await record(ledger, 13, B)
        await ledger.change_settings(tie_break="uuid")
        assert await ledger.explain("job-1") == before


async def test_a_restarted_process_breaks_ties_alike(url: str) -> None:
    """The hash comes back from the log and from a sealed snapshot."""
    async with small_ledger(url=url, offers=OFFERS) as ledger:
        await record(ledger, 12, A)
        await take_snapshot(ledger)
        if url == "sqlite://":
            return
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock(START + timedelta(seconds=150))) as ledger:
        assert await picked(ledger) == firsts(A)


# The setting


async def test_the_setting_decides_from_its_position_on(any_url: str) -> None:
    """`uuid` leaves the hash out, `uuid_and_hash` puts it in again; the audit follows."""
    async with small_ledger(url=any_url, offers=OFFERS) as ledger:
        await record(ledger, 12, A)
        assert (await ledger.settings()).tie_break == "uuid_and_hash"
        assert (await ledger.change_settings(tie_break="uuid")).tie_break == "uuid"
        assert await picked(ledger) == firsts(NO_HASH)
        assert (await ledger.change_settings(tie_break="uuid_and_hash")).tie_break == "uuid_and_hash"
        assert await picked(ledger) == firsts(A)
        changes = [each.changes for each in await ledger.settings_changes()]
        assert changes[0]["tie_break"] == (None, "uuid_and_hash")
        assert changes[1:] == [{"tie_break": ("uuid_and_hash", "uuid")}, {"tie_break": ("uuid", "uuid_and_hash")}]
        assert (await ledger.audit()).findings == []


@pytest.mark.parametrize("given", [None, Settings(), Settings(block_expiry_blocks=500)])
async def test_a_new_ledger_records_uuid_and_hash(url: str, given: Settings | None) -> None:
    """Also without settings; catches the default of old logs in a new one."""
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=given) as ledger:
        assert (await ledger.settings()).tie_break == "uuid_and_hash"
        (opened,) = await settings_recorded(ledger)
        assert opened.endswith(b'"tie_break":"uuid_and_hash"}}')


async def test_uuid_is_stored_by_leaving_the_field_out(url: str) -> None:
    """So the bytes and digests of settings in old logs are those of today, and older logs mean `uuid`."""
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=Settings(tie_break="uuid")) as ledger:
        assert (await ledger.settings()).tie_break == "uuid"
        (opened,) = await settings_recorded(ledger)
        assert b"tie_break" not in opened


@pytest.mark.parametrize(("founded", "given"), [("uuid", "uuid_and_hash"), ("uuid_and_hash", "uuid")])
async def test_opening_with_settings_keeps_the_recorded_tie_break(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, founded: str, given: str
) -> None:
    """Other fields are recorded, this one is not; if only this one differs, nothing is recorded and nothing logged.

    Catches code that opens ledgers of every age with its `Settings`: it would change the order of all old ones.
    """
    url = f"sqlite:///{tmp_path}/a.db"
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=Settings(tie_break=founded)) as ledger:
        head = await ledger.head()
    with caplog.at_level(logging.WARNING):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=Settings(tie_break=given)) as ledger:
            assert (await ledger.settings()).tie_break == founded
            assert await ledger.head() == head
        assert "settings changed" not in caplog.text
        changed = Settings(tie_break=given, block_expiry_blocks=500)
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=changed) as ledger:
            settings = await ledger.settings()
            assert (settings.tie_break, settings.block_expiry_blocks) == (founded, 500)
        assert "block_expiry_blocks: 722 -> 500" in caplog.text
        assert "tie_break" not in caplog.text


@pytest.mark.parametrize("wrong", ["hash", "UUID", "", None, True, b"uuid", ["uuid"], 1])
async def test_a_wrong_tie_break_is_refused_by_name(wrong: Any) -> None:
    """It is refused in a call and in `Settings`, and nothing is recorded."""
    async with small_ledger() as ledger:
        head = await ledger.head()
        with pytest.raises(InvalidInput) as refused:
            await ledger.change_settings(tie_break=wrong)
        assert refused.value.field == "tie_break"
        assert await ledger.head() == head
    with pytest.raises(InvalidInput):
        Settings(tie_break=wrong)


async def test_a_change_of_the_tie_break_is_made_once_per_key() -> None:
    """The key's content tells the two values apart, although one of them is stored by leaving the field out."""
    async with small_ledger() as ledger:
        await ledger.change_settings(tie_break="uuid", idempotency_key="k")
        head = await ledger.head()
        await ledger.change_settings(tie_break="uuid", idempotency_key="k")
        assert await ledger.head() == head
        with pytest.raises(IdempotencyConflict):
            await ledger.change_settings(tie_break="uuid_and_hash", idempotency_key="k")


async def test_a_restored_export_keeps_its_tie_break(tmp_path: Path, any_url: str) -> None:
    """Restored and opened with default settings, a ledger with `uuid` still has it."""
    async with small_ledger(offers=OFFERS, settings=Settings(tie_break="uuid")) as ledger:
        await record(ledger, 12, A)
        await ledger.export(tmp_path / "export.jsonl.gz")
    await restore(tmp_path / "export.jsonl.gz", any_url)
    clock = Clock(START + timedelta(seconds=150))
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=Settings(), clock_ns=clock) as ledger:
        assert await picked(ledger) == firsts(NO_HASH)


# Edited logs


def an_edited_log(*, hashed_again: bool) -> list[Row]:
    """Return a log in which the hash of block 12 was replaced after a job had been routed by it."""
    log = LogBuilder(RecordedSettings(tie_break="uuid_and_hash"))
    at = log.block(12, block_hash=FIRST_HASH).position - 1
    job_uuid = job_that_tries(2, FIRST_HASH, rightly=0, under=HASH)
    log.route(job_uuid, CARL, 6, (1, 1), start=12)
    payload = log.rows[at].payload.replace(FIRST_HASH.encode(), HASH.encode())
    assert payload != log.rows[at].payload
    log.rows[at] = log.rows[at]._replace(payload=payload)
    for index in range(at, len(log.rows) if hashed_again else at):
        log.rows[index] = log.rows[index]._replace(hash=row_hash(log.rows[index - 1].hash, log.rows[index]))
    return log.rows


async def test_an_edited_hash_is_found_by_the_hash_chain(tmp_path: Path) -> None:
    """Catches a hash of a block that the hashes of the rows do not cover."""
    found = (await audited(tmp_path, an_edited_log(hashed_again=False))).findings
    assert (found[0].position, found[0].rule) == (14, Rule.HASH_CHAIN)


async def test_an_edited_hash_under_a_new_hash_chain_is_found_by_the_choice(tmp_path: Path) -> None:
    """Whoever rewrites the chain's hash together with all rows after it must also have routed by it."""
    (found,) = (await audited(tmp_path, an_edited_log(hashed_again=True))).findings
    assert (found.position, found.rule) == (15, Rule.ROUTING_DECISION)


# Old ledgers


@pytest.mark.compatibility
@pytest.mark.parametrize("old", OLDER_LEDGERS, ids=lambda old: old.files.name)
async def test_an_old_ledger_goes_on_choosing_as_it_did(old: OldLedger, tmp_path: Path) -> None:
    """Opened with today's default settings, it keeps `uuid`, also once its newest block has a hash.

    Catches an opening that moves an old ledger to the new rule, and a fold in which a missing setting means it. Each
    choice is compared with the order of equals by the uuid alone, and the audit repeats the old choices and the new.
    """
    url = f"sqlite:///{unpacked('ledger.db.gz', tmp_path, old.files)}"
    clock = clock_after(old.head)
    async with Allowance.open(url, validator_ss58=old.validator_ss58, read_only=True) as ledger:
        assert (await ledger.settings()).tie_break == "uuid"
    async with Allowance.open(url, validator_ss58=old.validator_ss58, settings=Settings(), clock_ns=clock) as ledger:
        miners, newest = await ledger.miners(), await ledger.current_block() or 0
        # All miners offer a class that is new, so they are equal in it.
        offers = {each.hotkey_ss58: {NEW_CLASS: 2} for each in miners}
        await ledger.record_manifests(newest + 1, offers, confirm=True)
        for number in (newest + 1, newest + 2):
            created_at = START + timedelta(seconds=10**7 + 12 * number)
            stakes = {old.validator_ss58: 1.0}
            await ledger.record_block(number, created_at, miners, stakes, block_hash=hash_of(number), confirm=True)
        assert (await ledger.settings()).tie_break == "uuid"
        for uuid in [f"new-{number}" for number in range(20)]:
            route = await Routing(ledger).pick_miner_for_job_request(job(uuid, 1.0, NEW_CLASS))
            explained = await ledger.explain(uuid)
            best = [each for each in explained.candidates if _rank(each) == _rank(explained.candidates[0])]
            by_available = sorted(best, key=lambda each: (-each.available_seconds, each.hotkey_ss58))
            expected = order([each.hotkey_ss58 for each in by_available], uuid, NO_HASH)
            assert [each.hotkey_ss58 for each in best] == expected
            assert len(best) == len(miners) > 1
            await ledger.release(route.allowance_reservation_id or 0)
        assert (await ledger.audit()).findings == []


def _rank(considered: Any) -> tuple[int, int]:
    return considered.earliest_block, int(considered.share * 10**9)


def test_claims_carry_no_seed() -> None:
    """The seed follows from the log, so no event stores it: a stored one could be forged."""
    assert not {name for name in AllowanceReserved.__struct_fields__ if "seed" in name or "hash" in name}
