"""Stored bytes: an event that was ever written must decode to the same event for ever."""

from __future__ import annotations

from typing import Any

import pytest

from ledger import RecordedSettings, Row, Settings
from ledger.codec import EVENT_TAGS, GENESIS_HASH, decode, encode, reservation_id, reservation_position, row_hash
from ledger.errors import CorruptLedger, NewerLedger
from ledger.events import (
    AllowanceReserved,
    BlockRecorded,
    BlockWithdrawn,
    CollateralRecorded,
    Event,
    ExpiryRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    MinerExcluded,
    MinerReadmitted,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    StateSealed,
)

pytestmark = pytest.mark.compatibility

GOLDEN: list[tuple[Event, bytes]] = [
    (
        LedgerOpened("5Validator", RecordedSettings()),
        b'{"type":"ledger-opened","validator_ss58":"5Validator","settings":'
        b'{"block_expiry_blocks":722,"reservation_margin_ns":100000000000,"longest_job_ns":3600000000000,'
        b'"long_block_ns":12500000000,"long_block_counts_as_ns":12000000000,"allowance_multiplier":"1",'
        b'"executors_max_per_class":{},"validation_leeway_lower_blocks":15,"validation_leeway_upper_blocks":0,'
        b'"respect_executor_count":true,"newest_block_max_age_ns":null,"newest_manifests_max_age_blocks":null}}',
    ),
    (
        SettingsChanged(
            Settings(
                allowance_multiplier="3/2", executors_max_per_class={"gpu": 2}, block_expiry_blocks=10
            ).to_recorded()
        ),
        b'{"type":"settings-changed","settings":'
        b'{"block_expiry_blocks":10,"reservation_margin_ns":100000000000,"longest_job_ns":3600000000000,'
        b'"long_block_ns":12500000000,"long_block_counts_as_ns":12000000000,"allowance_multiplier":"3/2",'
        b'"executors_max_per_class":{"gpu":2},"validation_leeway_lower_blocks":15,"validation_leeway_upper_blocks":0,'
        b'"respect_executor_count":true,"newest_block_max_age_ns":null,"newest_manifests_max_age_blocks":null,'
        b'"tie_break":"uuid_and_hash"}}',
    ),
    (
        BlockRecorded(7, 1_700_000_000_000_000_000),
        b'{"type":"block-recorded","number":7,"created_at_ns":1700000000000000000}',
    ),
    (
        BlockRecorded(8, 12, {"5Miner": ("192.0.2.1", 4, 8000)}, ["5Gone"], {"5Validator": 1_500_000_000}, ["5Left"]),
        b'{"type":"block-recorded","number":8,"created_at_ns":12,"registered":{"5Miner":["192.0.2.1",4,8000]},'
        b'"deregistered":["5Gone"],"staked":{"5Validator":1500000000},"unstaked":["5Left"]}',
    ),
    (
        ManifestsRecorded(9, {"5Miner": {"gpu": 3}}, ["5Gone"]),
        b'{"type":"manifests-recorded","block":9,"offered":{"5Miner":{"gpu":3}},"absent":["5Gone"]}',
    ),
    (
        BlockRecorded(9, 13, request="c0ffee"),
        b'{"type":"block-recorded","number":9,"created_at_ns":13,"request":"c0ffee"}',
    ),
    (ManifestsRecorded(10, request="c0ffee"), b'{"type":"manifests-recorded","block":10,"request":"c0ffee"}'),
    (
        AllowanceReserved(5_500_000_000, [(1, 3), (7, 7)], 9, 105_500_000_012),
        b'{"type":"allowance-reserved","amount_ns":5500000000,"blocks":[[1,3],[7,7]],"job_start_block":9,'
        b'"expires_at_ns":105500000012}',
    ),
    (
        AllowanceReserved(1, [(1, 1)], 1, 2, ("::1", 6, 1), kept=True, due_by_clock=True, decided_at_ns=3),
        b'{"type":"allowance-reserved","amount_ns":1,"blocks":[[1,1]],"job_start_block":1,"expires_at_ns":2,'
        b'"axon":["::1",6,1],"kept":true,"due_by_clock":true,"decided_at_ns":3}',
    ),
    (
        AllowanceReserved(1, [(1, 1)], 1, 2, ("::1", 6, 1), chosen_at=7),
        b'{"type":"allowance-reserved","amount_ns":1,"blocks":[[1,1]],"job_start_block":1,"expires_at_ns":2,'
        b'"axon":["::1",6,1],"chosen_at":7}',
    ),
    (
        AllowanceReserved(1, [(1, 1)], 1, 2, imported=True, reserved_at_ns=9),
        b'{"type":"allowance-reserved","amount_ns":1,"blocks":[[1,1]],"job_start_block":1,"expires_at_ns":2,'
        b'"imported":true,"reserved_at_ns":9}',
    ),
    (
        BlockRecorded(9, 13, block_hash="c0ffee"),
        b'{"type":"block-recorded","number":9,"created_at_ns":13,"block_hash":"c0ffee"}',
    ),
    (ReservationSpent(1_048_577), b'{"type":"reservation-spent","reservation_id":1048577}'),
    (ReservationReleased(1_048_577), b'{"type":"reservation-released","reservation_id":1048577}'),
    (ExpiryRecorded(1_048_577), b'{"type":"reservation-expired","reservation_id":1048577}'),
    (ExpiryRecorded(1_048_577, 3), b'{"type":"reservation-expired","reservation_id":1048577,"swept":3}'),
    (
        ManifestsRecorded(11, uncovered=["5Gone"], covered=["5Back"]),
        b'{"type":"manifests-recorded","block":11,"uncovered":["5Gone"],"covered":["5Back"]}',
    ),
    (
        BlockWithdrawn(8, "mistyped", 7, {"5Miner": ("192.0.2.1", 4, 8000)}, ["5Gone"], {"5Validator": 1}, ["5Left"]),
        b'{"type":"block-withdrawn","number":8,"reason":"mistyped","returns_to":7,'
        b'"registered":{"5Miner":["192.0.2.1",4,8000]},"deregistered":["5Gone"],"staked":{"5Validator":1},'
        b'"unstaked":["5Left"]}',
    ),
    (
        ManifestsWithdrawn(9, "x", {"5Miner": {"gpu": 3}}, ["5Gone"], {"5Miner\tgpu": [(1, 2)]}, {"5Miner\tgpu": 4}),
        b'{"type":"manifests-withdrawn","block":9,"reason":"x","offered":{"5Miner":{"gpu":3}},"absent":["5Gone"],'
        b'"counts":{"5Miner\\tgpu":[[1,2]]},"invalidated_below":{"5Miner\\tgpu":4}}',
    ),
    (
        SettingsChanged(RecordedSettings(), "c0ffee"),
        b'{"type":"settings-changed","settings":'
        b'{"block_expiry_blocks":722,"reservation_margin_ns":100000000000,"longest_job_ns":3600000000000,'
        b'"long_block_ns":12500000000,"long_block_counts_as_ns":12000000000,"allowance_multiplier":"1",'
        b'"executors_max_per_class":{},"validation_leeway_lower_blocks":15,"validation_leeway_upper_blocks":0,'
        b'"respect_executor_count":true,"newest_block_max_age_ns":null,"newest_manifests_max_age_blocks":null},'
        b'"request":"c0ffee"}',
    ),
    (
        StateSealed(10_000, 1, "c0ffee"),
        b'{"type":"state-sealed","position":10000,"version":1,"digest":"c0ffee"}',
    ),
    (
        ReservationSpent(1_048_577, decided_at_ns=3),
        b'{"type":"reservation-spent","reservation_id":1048577,"decided_at_ns":3}',
    ),
    (
        SettingsChanged(
            Settings(
                minimum_collateral_wei=10**19,
                routing_order="reliability",
                reliability_window_hours=0.5,
                reliability_soft_cutoff=-20,
                reliability_separation=2.5,
            ).to_recorded()
        ),
        b'{"type":"settings-changed","settings":'
        b'{"block_expiry_blocks":722,"reservation_margin_ns":100000000000,"longest_job_ns":3600000000000,'
        b'"long_block_ns":12500000000,"long_block_counts_as_ns":12000000000,"allowance_multiplier":"1",'
        b'"executors_max_per_class":{},"validation_leeway_lower_blocks":15,"validation_leeway_upper_blocks":0,'
        b'"respect_executor_count":true,"newest_block_max_age_ns":null,"newest_manifests_max_age_blocks":null,'
        b'"tie_break":"uuid_and_hash","minimum_collateral_wei":10000000000000000000,"routing_order":"reliability",'
        b'"reliability_window_ns":1800000000000,"reliability_soft_cutoff_billionths":-20000000000,'
        b'"reliability_separation_billionths":2500000000}}',
    ),
    (MinerExcluded("5Miner", "slow"), b'{"type":"miner-excluded","miner_ss58":"5Miner","reason":"slow"}'),
    (
        MinerExcluded("5Miner", "slow", 7, decided_at_ns=3),
        b'{"type":"miner-excluded","miner_ss58":"5Miner","reason":"slow","until_ns":7,"decided_at_ns":3}',
    ),
    (MinerReadmitted("5Miner", "fast"), b'{"type":"miner-readmitted","miner_ss58":"5Miner","reason":"fast"}'),
    (
        CollateralRecorded({"5Miner": 10**19, "5Other": 0}),
        b'{"type":"collateral-recorded","changed":{"5Miner":10000000000000000000,"5Other":0}}',
    ),
    (
        CollateralRecorded({"5Miner": 1}, "c0ffee"),
        b'{"type":"collateral-recorded","changed":{"5Miner":1},"request":"c0ffee"}',
    ),
    (
        JobElsewhereRecorded("theirs", 12, 60),
        b'{"type":"job-elsewhere-recorded","job_uuid":"theirs","started_at_ns":12,"ttl_ns":60}',
    ),
    (
        JobElsewhereRecorded("theirs", 12, 60, ended=True),
        b'{"type":"job-elsewhere-recorded","job_uuid":"theirs","started_at_ns":12,"ttl_ns":60,"ended":true}',
    ),
    (JobElsewhereEnded("theirs"), b'{"type":"job-elsewhere-ended","job_uuid":"theirs"}'),
    (
        IncidentReported("5Miner", "gpu", "failed", "ours"),
        b'{"type":"incident-reported","miner_ss58":"5Miner","executor_class":"gpu","kind":"failed","job_uuid":"ours"}',
    ),
]
# As earlier releases wrote them: today's release decodes these bytes, and would write others.
WRITTEN_BEFORE: list[tuple[Event, bytes]] = [
    (
        LedgerOpened("5Validator", RecordedSettings()),
        b'{"type":"ledger-opened","validator_ss58":"5Validator","settings":'
        b'{"block_expiry_blocks":722,"reservation_margin_ns":100000000000,"longest_job_ns":3600000000000,'
        b'"long_block_ns":12500000000,"long_block_counts_as_ns":12000000000,"allowance_multiplier":"1",'
        b'"executors_max_per_class":{},"validation_leeway_lower_blocks":15,"validation_leeway_upper_blocks":0,'
        b'"respect_executor_count":true,"newest_block_max_age_ns":null}}',
    ),
    (
        AllowanceReserved(1, [(1, 1)], 1, 2, ("::1", 6, 1), kept=True, decided_at_ns=3),
        b'{"type":"allowance-reserved","amount_ns":1,"blocks":[[1,1]],"job_start_block":1,"expires_at_ns":2,'
        b'"axon":["::1",6,1],"decided_at_ns":3,"kept":true}',
    ),
]


@pytest.mark.parametrize(
    ("event", "stored"), GOLDEN, ids=lambda each: type(each).__name__ if not isinstance(each, bytes) else ""
)
def test_every_event_has_these_stored_bytes_for_ever(event: Event, stored: bytes) -> None:
    """The event encodes to these bytes, and these bytes decode to the event."""
    assert encode(event) == stored
    assert decode(1, stored) == event


@pytest.mark.parametrize(("event", "stored"), WRITTEN_BEFORE, ids=["ledger-opened", "allowance-reserved"])
def test_bytes_of_earlier_releases_decode_for_ever(event: Event, stored: bytes) -> None:
    """Bytes that only an earlier release wrote still decode to the same event."""
    assert decode(1, stored) == event


def test_every_tag_has_golden_bytes() -> None:
    """No event type lacks golden bytes."""
    import json

    assert {json.loads(stored)["type"] for _, stored in GOLDEN} == set(EVENT_TAGS)


def test_the_hash_of_a_row_never_changes() -> None:
    """Golden hashes of a row with every column set, and of one without the optional ones."""
    full = Row(2, "5Miner\tgpu", 1, 99, "key", "job", 1, 7, b"{}", b"")
    bare = Row(2, "chain", 1, 99, None, None, None, None, b"{}", b"")
    assert row_hash(GENESIS_HASH, full).hex() == "e68838b8bf202ffd89dcc4aba4e4d24b4e228f8b6f8ad567cb9aeb89acac8297"
    assert row_hash(GENESIS_HASH, bare).hex() == "2515906213111a506c7732effbc3d2b0ebea17f55c14a8a13d582b1f319de200"


@pytest.mark.parametrize("column", range(9))
def test_every_stored_column_is_hashed(column: int) -> None:
    """A change of any column except `hash` changes the hash."""
    row = Row(2, "5Miner\tgpu", 1, 99, "key", "job", 1, 7, b"{}", b"")
    changed = list(row)
    other: dict[type, Any] = {int: 3, str: "other", bytes: b"[]"}
    changed[column] = other[type(row[column])]
    assert row_hash(GENESIS_HASH, row) != row_hash(GENESIS_HASH, Row._make(changed))


def test_columns_are_hashed_with_their_lengths() -> None:
    """Moving a character from one column to the next changes the hash; so does an empty key instead of none."""
    one = Row(2, "ab", 1, 99, "c", "d", 1, 7, b"{}", b"")
    other = Row(2, "a", 1, 99, "bc", "d", 1, 7, b"{}", b"")
    assert row_hash(GENESIS_HASH, one) != row_hash(GENESIS_HASH, other)
    assert row_hash(GENESIS_HASH, one._replace(key=None)) != row_hash(GENESIS_HASH, one._replace(key=""))


def test_a_newer_event_and_damaged_bytes_raise_different_errors() -> None:
    """An unknown tag or field raises `NewerLedger` with position and type; other bytes raise `CorruptLedger`."""
    with pytest.raises(NewerLedger, match="position 5 of type allowance-lent"):
        decode(5, b'{"type":"allowance-lent"}')
    with pytest.raises(NewerLedger, match="reservation-spent"):
        decode(5, b'{"type":"reservation-spent","reservation_id":1,"note":"x"}')
    for damage in (b"", b"\xff", b"[]", b'{"type":1}', b'{"type":"reservation-spent"}', b'{"reservation_id":1}'):
        with pytest.raises(CorruptLedger) as refused:
            decode(5, damage)
        assert refused.value.position == 5


def test_a_reservation_of_too_many_blocks_is_damage() -> None:
    """A forged log may name any number of blocks, and a reader that lists them would run out of memory."""

    def reserved(*runs: tuple[int, int]) -> bytes:
        return encode(AllowanceReserved(6, list(runs), 1, 2))

    most = 2**24
    decode(5, reserved((1, most), (most + 2, most + 2)))
    for runs in ([(1, most + 2)], [(1, most), (9, 11)], [(7, 2**62), (2**62, 7)]):
        with pytest.raises(CorruptLedger, match="position 5: a reservation of more than 16,777,216 blocks"):
            decode(5, reserved(*runs))


def test_a_reservation_id_has_a_position_and_bits_of_the_hash() -> None:
    """Ids ascend with positions, and differ if the events' hashes differ."""
    one, other = reservation_id(7, b"\x00" * 32), reservation_id(7, b"\xff" * 32)
    assert one != other
    assert reservation_position(one) == reservation_position(other) == 7
    assert other < reservation_id(8, b"\x00" * 32)
