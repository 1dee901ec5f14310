"""Fact validation remembers the last metagraph; what it remembers never changes a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum
from hashlib import blake2b
from random import Random
from threading import Thread
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

import ledger.domain.canonical
from ledger import FactValidator, Miner
from ledger.domain.canonical import EntryCache, content_digest
from ledger.errors import InvalidInput

STAKES = {"5Validator": 1.0}
MINERS = [Miner("192.0.2.7", 4, 8000 + number, f"5Miner{number}") for number in range(100)]


class Text(StrEnum):
    """A string that is not a plain one."""

    ADDRESS = "192.0.2.7"


def test_equal_miners_are_the_same_metagraph(monkeypatch: pytest.MonkeyPatch) -> None:
    """New but equal `Miner` objects give the same object as before, and no miner is validated again.

    Catches a validation of every miner at every block.
    """
    validator = FactValidator()
    first = validator.metagraph(MINERS, STAKES)
    monkeypatch.setattr("ledger.domain.fact_validation._axon", None)

    assert validator.metagraph([Miner(*msgspec.to_builtins(each).values()) for each in MINERS], STAKES) is first
    assert validator.metagraph(iter(MINERS), STAKES) is first


@pytest.mark.parametrize(
    "changes",
    [{"port": 8000.0}, {"port": True}, {"ip_version": 4.0}, {"address": ""}, {"hotkey_ss58": "5Miner1"}, {"port": []}],
)
def test_a_malformed_miner_is_refused_after_a_good_one(changes: dict[str, Any]) -> None:
    """A value that only equals the last one, such as 8000.0, is refused as if nothing was remembered."""
    validator = FactValidator()
    miners = [replace(MINERS[0], port=1) if changes.get("port") is True else MINERS[0], *MINERS[1:]]
    validator.metagraph(miners, STAKES)
    with pytest.raises(InvalidInput):
        validator.metagraph([replace(miners[0], **changes), *miners[1:]], STAKES)


def test_what_is_no_miner_is_refused_after_good_ones() -> None:
    """Something with the fields of a miner is no `Miner`."""

    class Similar:
        address, ip_version, port, hotkey_ss58 = "192.0.2.7", 4, 8000, "5Miner0"

    validator = FactValidator()
    validator.metagraph(MINERS, STAKES)
    with pytest.raises(InvalidInput):
        validator.metagraph([Similar(), *MINERS[1:]], STAKES)  # type: ignore[list-item]  # the point of the test


@pytest.mark.parametrize("count", [0, 50, 100])
def test_a_miner_more_or_fewer_is_noticed(count: int) -> None:
    """The miners of a block may be the first ones of the last block, or all of them and one more."""
    validator = FactValidator()
    validator.metagraph(MINERS[:count], STAKES)
    for given in (MINERS[: count + 1], MINERS[: count // 2]):
        assert len(validator.metagraph(given, STAKES).miners) == len(given)


def test_refused_stakes_leave_nothing_behind() -> None:
    """After a refusal, the next call is not mistaken for a repeat of what was refused.

    Catches miners that are remembered before the stakes are validated.
    """
    validator, moved = FactValidator(), [replace(MINERS[0], port=9), *MINERS[1:]]
    validator.metagraph(MINERS, STAKES)
    with pytest.raises(InvalidInput):
        validator.metagraph(moved, {"5Validator": -1.0})
    assert validator.metagraph(moved, STAKES).miners["5Miner0"] == ("192.0.2.7", 4, 9)


def test_a_string_of_another_type_counts_as_its_value() -> None:
    """The metagraph has plain strings, whichever came first."""
    validator = FactValidator()
    first = validator.metagraph([replace(MINERS[0], address=Text.ADDRESS)], STAKES)
    assert validator.metagraph(MINERS[:1], STAKES) is first
    assert type(first.miners["5Miner0"][0]) is str


def test_metagraphs_digested_one_after_the_other_have_the_digests_of_each() -> None:
    """A digest is that of the whole content as canonical JSON, whatever was digested before. Stored digests rely on it.

    Catches an entry that is left behind, put at the wrong place, or encoded in another way.
    """
    draw = Random(1)
    cache, keys = EntryCache(), [f"5Miner{n}" for n in range(600)] + ['"', "\\", "ü", "語", "𝔘", "é", "5Miner"]
    mapping: dict[str, Any] = {}
    for _ in range(300):
        mapping = dict(mapping)
        for _ in range(draw.choice([0, 1, 1, 3, 60, 500])):
            key = draw.choice(keys)
            if key in mapping and draw.random() < 0.5:
                del mapping[key]
            else:
                mapping[key] = draw.choice([("192.0.2.7", 4, draw.randrange(9)), {"b": 1, "a": draw.randrange(3)}])
        whole = msgspec.json.encode(mapping, order="deterministic")
        assert b"".join(cache.pieces(mapping)) == whole
        assert content_digest(cache.pieces(mapping)) == blake2b(whole, digest_size=16).digest()


def test_one_changed_miner_encodes_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 miners, one moves, one leaves and one is new: two entries are encoded.

    Catches a digest that encodes all miners again.
    """
    validator, encoded = FactValidator(), []
    validator.metagraph(MINERS, STAKES)
    original = ledger.domain.canonical._entry

    def entry(key: str, value: Any) -> bytes:
        encoded.append(key)
        return original(key, value)

    monkeypatch.setattr("ledger.domain.canonical._entry", entry)
    moved, new = replace(MINERS[3], port=9), replace(MINERS[4], hotkey_ss58="5New")
    changed = validator.metagraph([*MINERS[:3], moved, new, *MINERS[5:]], STAKES)
    assert sorted(encoded) == ["5Miner3", "5New"]
    assert changed.digest == FactValidator().metagraph([new, moved, *MINERS[:3], *MINERS[5:]], STAKES).digest


class _Stalling(list[Miner]):
    """Miners that run a function on a thread of its own once validation has gone through them `passes` times."""

    def __init__(self, miners: list[Miner], passes: int, on_thread: Callable[[], object]) -> None:
        super().__init__(miners)
        self._passes_left, self._on_thread = passes, on_thread

    def __iter__(self) -> Iterator[Miner]:
        self._passes_left -= 1
        if self._passes_left == -1:
            other = Thread(target=self._on_thread)
            other.start()
            other.join()
        return super().__iter__()


@pytest.mark.parametrize("passes", range(6))
def test_threads_do_not_share_a_cache_at_the_same_time(passes: int) -> None:
    """Another thread validates other miners in the middle of a validation; each gets the metagraph of its own miners.

    Catches a metagraph of one thread beside the fields of the other's miners: the next block of the one would have been
    recorded with the miners of the other.
    """
    validator = FactValidator()
    others = [replace(each, port=1) for each in MINERS]
    stalling = _Stalling(MINERS, passes, lambda: validator.metagraph(others, STAKES))
    expected, expected_other = (FactValidator().metagraph(each, STAKES) for each in (MINERS, others))

    found = [validator.metagraph(each, STAKES) for each in (stalling, MINERS, others, MINERS)]

    wanted = [expected, expected, expected_other, expected]
    assert [each.miners for each in found] == [each.miners for each in wanted]
    assert [each.digest for each in found] == [each.digest for each in wanted]


def test_a_cache_is_not_used_again_after_an_interrupted_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache that Ctrl-C has left between two metagraphs: every later digest would be wrong."""
    validator = FactValidator()
    validator.metagraph(MINERS, STAKES)
    changed = [replace(MINERS[0], port=1), *MINERS[1:]]
    with monkeypatch.context() as interrupted:
        interrupted.setattr("ledger.domain.canonical._entry", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            validator.metagraph(changed, STAKES)

    assert validator.metagraph(changed, STAKES).digest == FactValidator().metagraph(changed, STAKES).digest
