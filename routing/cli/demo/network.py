"""A made-up chain for the demo, the tests and the benchmarks, as lines of a `FACTS.jsonl`.

The seed determines everything. The chain has the events that a ledger must handle: block times jitter and some
blocks are late; stakes change from time to time; every 25 blocks there is a manifest sync, in which some miners offer
fewer executors than before; some miners leave and return.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

STARTED_AT = datetime(2024, 1, 1, 12, tzinfo=UTC)
SYNC_EVERY_BLOCKS = 25
STAKES_CHANGE_EVERY_BLOCKS = 360
LATE_BLOCKS = 0.02
"""The share of blocks that are late."""
COUNT_CHANGES_PER_SYNC = 0.01
"""The probability that a miner changes an executor count at a sync."""
LEAVES_PER_BLOCK = 0.04
"""The probability that a miner leaves at a block."""
IPV6_EVERY = 10
"""Every tenth miner has an IPv6 address."""

_EXECUTOR_CLASSES = (
    "always_on.gpu-24gb",
    "spin_up-4min.gpu-24gb",
    "always_on.gpu-80gb",
    "always_on.llm.a6000",
    "spin_up-4min.cpu-16gb",
)
# Addresses reserved for documentation, so that no real machine is addressed. Source: RFC 5737 and RFC 3849.
_IPV4_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")
_IPV6_NETWORK = "2001:db8::"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

MinerEntry = dict[str, object]
Line = dict[str, Any]


def hotkeys(seed: int, role: str, count: int) -> list[str]:
    """Return ss58 addresses of 48 characters each with valid checksums, the same for the same seed and role."""
    return [
        _ss58(hashlib.blake2b(f"{seed}/{role}/{index}".encode(), digest_size=32).digest()) for index in range(count)
    ]


def executor_classes(count: int) -> list[str]:
    """Return the names of that many executor classes."""
    further = [f"always_on.kind-{number}" for number in range(len(_EXECUTOR_CLASSES) + 1, count + 1)]
    return [*_EXECUTOR_CLASSES, *further][:count]


def generate(
    seed: int = 1,
    *,
    miners: int = 250,
    validators: int = 6,
    classes: int = 5,
    blocks: int = 1100,
    first_block: int = 1000,
    started_at: datetime = STARTED_AT,
    sync_every: int = SYNC_EVERY_BLOCKS,
    validator_ss58: str | None = None,
) -> Iterator[Line]:
    """Yield the lines of a `FACTS.jsonl`; the same arguments yield the same lines.

    A block line has `miners` and `stakes` only if they changed. `validator_ss58` is the owner of the ledger; by
    default, it is the first of `hotkeys(seed, "validator", …)`.
    """
    own, *others = hotkeys(seed, "validator", validators)
    network = _Network(
        Random(f"network {seed}"),
        miners=hotkeys(seed, "miner", miners),
        validators=[validator_ss58 or own, *others],
        classes=executor_classes(classes),
    )
    created_at = started_at
    for age in range(blocks):
        number = first_block + age
        if age:
            network.advance_one_block(age)
            created_at += network.draw_block_time()
        if age % sync_every == 0:
            if age:
                network.change_offers()
            yield {"type": "manifests", "block": number, "manifests": network.sync()}
        line: Line = {"type": "block", "number": number, "created_at": _utc_text(created_at)}
        yield line | network.changes()


class _Network:
    """The state of the network at one block."""

    def __init__(self, random: Random, *, miners: list[str], validators: list[str], classes: list[str]) -> None:
        self._random = random
        self._entries = {hotkey: _miner_entry(hotkey, index) for index, hotkey in enumerate(miners)}
        self._offers = {hotkey: self._draw_offer(classes) for hotkey in self._entries}
        # For each absent miner, the number of blocks until it returns.
        self._back_in: dict[str, int] = {}
        self._stakes = {hotkey: round(random.uniform(10_000, 40_000), 3) for hotkey in validators}
        # The fields that the next block line must have; the first line has both.
        self._changed = {"miners", "stakes"}

    def advance_one_block(self, age: int) -> None:
        """Change stakes, and let miners leave and return."""
        if age % STAKES_CHANGE_EVERY_BLOCKS == 0:
            self._stakes = {
                hotkey: round(stake * self._random.uniform(0.9, 1.1), 3) for hotkey, stake in self._stakes.items()
            }
            self._changed.add("stakes")
        self._bring_back()
        # At least half of the miners stay, so that there is always somebody to route to.
        if self._random.random() < LEAVES_PER_BLOCK and len(self._back_in) < len(self._entries) // 2:
            self._let_one_leave()

    def draw_block_time(self) -> timedelta:
        """Return the time to the next block: about 12 s, for a late block up to three times as long."""
        late = self._random.random() < LATE_BLOCKS
        seconds = self._random.uniform(13, 36) if late else self._random.gauss(12, 0.12)
        return timedelta(milliseconds=round(1000 * max(seconds, 1)))

    def change_offers(self) -> None:
        """Let some miners offer one executor more or fewer."""
        for offer in self._offers.values():
            if self._random.random() < COUNT_CHANGES_PER_SYNC:
                executor_class = self._random.choice(list(offer))
                offer[executor_class] = max(0, offer[executor_class] + self._random.choice((-1, 1)))

    def sync(self) -> dict[str, dict[str, int]]:
        """Return the manifests of the registered miners."""
        return {hotkey: dict(self._offers[hotkey]) for hotkey in self._entries if hotkey not in self._back_in}

    def changes(self) -> Line:
        """Return the fields of the block line that differ from the previous line."""
        changed, self._changed = self._changed, set()
        fields: Line = {}
        if "miners" in changed:
            fields["miners"] = [entry for hotkey, entry in self._entries.items() if hotkey not in self._back_in]
        if "stakes" in changed:
            fields["stakes"] = dict(self._stakes)
        return fields

    def _bring_back(self) -> None:
        if not self._back_in:
            return
        still_away = {hotkey: blocks - 1 for hotkey, blocks in self._back_in.items() if blocks > 1}
        if len(still_away) < len(self._back_in):
            self._changed.add("miners")
        self._back_in = still_away

    def _let_one_leave(self) -> None:
        leaver = self._random.choice([hotkey for hotkey in self._entries if hotkey not in self._back_in])
        self._back_in[leaver] = self._random.randint(5, 60)
        self._changed.add("miners")

    def _draw_offer(self, classes: list[str]) -> dict[str, int]:
        offered = self._random.sample(classes, self._random.randint(1, min(3, len(classes))))
        return {executor_class: self._random.randint(1, 4) for executor_class in sorted(offered)}


def _miner_entry(hotkey: str, index: int) -> MinerEntry:
    # The three networks have 762 addresses, so a new port per 700 miners makes every axon unique.
    port = 8000 + index // 700
    if index % IPV6_EVERY == IPV6_EVERY - 1:
        return {"hotkey_ss58": hotkey, "address": f"{_IPV6_NETWORK}{index:x}", "ip_version": 6, "port": port}
    network = _IPV4_NETWORKS[index % len(_IPV4_NETWORKS)]
    host = 1 + index // len(_IPV4_NETWORKS) % 254
    return {"hotkey_ss58": hotkey, "address": f"{network}.{host}", "ip_version": 4, "port": port}


def _utc_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ss58(public_key: bytes) -> str:
    """Return the address of a public key: network 42, the key, and two bytes of checksum, in base 58.

    Source: the SS58 address format of Substrate.
    """
    payload = bytes([42]) + public_key
    checksum = hashlib.blake2b(b"SS58PRE" + payload).digest()[:2]
    number = int.from_bytes(payload + checksum, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return digits
