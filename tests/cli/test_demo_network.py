"""The made-up chain: equal for equal seeds, realistic, and without any real address."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from routing import BlockFact
from routing.cli.demo import network
from routing.cli.files.facts import Fact, numbered_facts

DOCUMENTATION = [
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return list(network.generate(1))


@pytest.fixture(scope="module")
def facts(lines: list[dict[str, Any]]) -> list[Fact]:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return [numbered.fact for batch in numbered_facts(io.BytesIO(text.encode())) for numbered in batch]


@pytest.fixture(scope="module")
def syncs(lines: list[dict[str, Any]]) -> list[dict[str, dict[str, int]]]:
    return [line["manifests"] for line in lines if line["type"] == "manifests"]


def blocks(facts: list[Fact]) -> Iterator[BlockFact]:
    return (fact for fact in facts if isinstance(fact, BlockFact))


def test_the_same_seed_gives_the_same_chain() -> None:
    """A demo, a test or a benchmark can be repeated."""
    small: dict[str, Any] = {"miners": 9, "validators": 3, "classes": 2, "blocks": 60}

    assert list(network.generate(7, **small)) == list(network.generate(7, **small))
    assert list(network.generate(7, **small)) != list(network.generate(8, **small))


def test_blocks_are_dense_and_12_seconds_apart(facts: list[Fact]) -> None:
    """Numbers are dense, times increase, most blocks take about 12 s, and some are late."""
    known = list(blocks(facts))
    durations = [(after.created_at - before.created_at).total_seconds() for before, after in pairwise(known)]

    assert [fact.number for fact in known] == list(range(1000, 2100))
    assert min(durations) > 0
    assert sum(11.5 < duration < 12.5 for duration in durations) > 0.95 * len(durations)
    assert 5 < sum(duration > 12.5 for duration in durations) < 60


def test_lines_have_only_changed_fields(lines: list[dict[str, Any]]) -> None:
    """A block line has miners or stakes only if they changed; miners leave and return, stakes change."""
    of_blocks = [line for line in lines if line["type"] == "block"]
    with_miners = [line for line in of_blocks if "miners" in line]

    assert {"miners", "stakes"} <= of_blocks[0].keys()
    assert 10 < len(with_miners) < 150
    assert [line["number"] for line in of_blocks if "stakes" in line] == [1000, 1360, 1720, 2080]
    assert all(before["miners"] != after["miners"] for before, after in pairwise(with_miners))
    assert {len(line["miners"]) for line in with_miners} != {250}


def test_a_manifest_sync_precedes_every_25th_block(lines: list[dict[str, Any]]) -> None:
    """The first block has a sync, too, so that it grants allowance."""
    assert lines[0]["type"] == "manifests"
    assert [line["block"] for line in lines if line["type"] == "manifests"] == list(range(1000, 2100, 25))


def test_some_syncs_drop_executors_but_none_drops_most(syncs: list[dict[str, dict[str, int]]]) -> None:
    """There are drops to be handled, and no sync looks like a failed poll."""
    drops = 0
    for before, after in pairwise(syncs):
        drops += sum(
            after.get(hotkey, {}).get(name, 0) < count for hotkey, of in before.items() for name, count in of.items()
        )
        assert total(after) > total(before) / 10

    assert 10 < drops < 300


def total(sync: dict[str, dict[str, int]]) -> int:
    return sum(count for offer in sync.values() for count in offer.values())


def test_executor_counts_are_plausible(syncs: list[dict[str, dict[str, int]]]) -> None:
    """Miners offer a few executors of a few classes, and every class is offered."""
    classes = set(network.executor_classes(5))

    assert {name for offer in syncs[0].values() for name in offer} == classes
    assert {count for offer in syncs[0].values() for count in offer.values()} == {1, 2, 3, 4}
    assert all(1 <= len(offer) <= 3 for offer in syncs[0].values())


def test_the_validator_has_a_useful_share_of_the_stake(lines: list[dict[str, Any]]) -> None:
    """The share pays for jobs of a usual length."""
    stakes = next(line["stakes"] for line in lines if "stakes" in line)

    assert next(iter(stakes)) == network.hotkeys(1, "validator", 1)[0]
    assert all(0.03 < stake / sum(stakes.values()) < 0.5 for stake in stakes.values())


def test_the_validator_can_be_chosen() -> None:
    """A demo in an existing database uses the validator of that ledger."""
    lines = network.generate(1, miners=2, validators=2, blocks=1, validator_ss58="me")

    assert next(next(iter(line["stakes"])) for line in lines if "stakes" in line) == "me"


def base58_decoded(text: str) -> bytes:
    number = 0
    for sign in text:
        number = number * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(sign)
    return number.to_bytes(35, "big")


def test_hotkeys_have_valid_checksums() -> None:
    """Made-up hotkeys pass every check that real ones pass."""
    hotkeys = network.hotkeys(1, "miner", 300)

    assert len(set(hotkeys)) == 300
    for hotkey in hotkeys:
        raw = base58_decoded(hotkey)
        assert len(hotkey) == 48
        assert raw[0] == 42
        assert hashlib.blake2b(b"SS58PRE" + raw[:33]).digest()[:2] == raw[33:]


def test_axons_are_unique_and_reserved_for_documentation() -> None:
    """No address belongs to a real machine, and no two miners share an axon."""
    lines = network.generate(1, miners=2000, blocks=1)
    (miners,) = [line["miners"] for line in lines if "miners" in line]
    axons = set()
    for miner in miners:
        address = ipaddress.ip_address(miner["address"])
        assert any(address in range_ for range_ in DOCUMENTATION if range_.version == address.version)
        assert address.version == miner["ip_version"]
        axons.add((miner["address"], miner["port"]))

    assert len(axons) == 2000


def test_any_number_of_executor_classes_has_names() -> None:
    """Benchmarks can use more classes than real networks have."""
    assert len(set(network.executor_classes(40))) == 40


def test_the_smallest_network_is_valid() -> None:
    """One miner, one validator and one class are enough."""
    lines = list(network.generate(1, miners=1, validators=1, classes=1, blocks=2))

    assert [line["type"] for line in lines] == ["manifests", "block", "block"]


def test_first_block_and_start_time_can_be_chosen() -> None:
    """A test can continue its own chain."""
    started_at = datetime(2025, 6, 1, tzinfo=UTC)
    lines = list(network.generate(1, miners=1, blocks=2, first_block=77, started_at=started_at))

    assert [line.get("number") for line in lines] == [None, 77, 78]
    assert lines[1]["created_at"] == "2025-06-01T00:00:00.000Z"
    assert datetime.fromisoformat(str(lines[2]["created_at"])) - started_at < timedelta(minutes=1)
