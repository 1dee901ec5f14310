"""Receipts of ComputeHorde: four signatures, two payloads of one job, one receipt."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from routing import BadReceiptSignature, InvalidInput, Receipt
from routing.computehorde.receipts import signed_receipt, signed_text
from routing.computehorde.signatures import is_signed_by, public_key
from tests.support.cli import command_line, configure_ledger
from tests.support.small import GPU, VALIDATOR, small_ledger

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
ALICE_KEY = bytes.fromhex("d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d")
BOB = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
BOB_KEY = bytes.fromhex("8eaf04151687736326c9fea17e25fc5287613693c912909cb226aa4794f26a48")
SIGNED_BY_ALICE = (
    "b8314aee4ea566fc165c9cb07c76a874f763005e022d09aa49deb64a3c204b40"
    "62ae45375355b462d04be739cd3e04691a88ac117b635affe436733f1ecfcd83"
)
"""Of `hello world`, from the documentation of ink, the chain's language for contracts."""

TIMES = {"timestamp": "2024-01-01T00:00:48Z"}
SAME = {"job_uuid": "job", "validator_hotkey": ALICE, "miner_hotkey": BOB}
STARTED = {"receipt_type": "JobStartedReceipt", "executor_class": GPU, "is_organic": True, "ttl": 60} | SAME | TIMES
FINISHED = {"receipt_type": "JobFinishedReceipt", "score_str": "12.5", "block_numbers": [2, 3]} | SAME | TIMES


def fake_signature(key: bytes, message: bytes) -> bytes:
    """Return what the stand-in below takes for a signature: a digest of key and text."""
    from hashlib import sha512

    return sha512(key + message).digest()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the package, which need not be installed; `test_a_known_signature_is_verified` uses the real one."""

    def verify(signature: bytes, message: bytes, key: bytes) -> bool:
        return signature == fake_signature(key, message)

    monkeypatch.setitem(sys.modules, "sr25519", SimpleNamespace(verify=verify))


def signed(payload: dict[str, Any]) -> dict[str, Any]:
    text = signed_text(payload)
    return {
        "payload": payload,
        "validator_signature": "0x" + fake_signature(ALICE_KEY, text).hex(),
        "miner_signature": "0x" + fake_signature(BOB_KEY, text).hex(),
    }


def test_an_address_names_its_key() -> None:
    """The two best-known keys of the chain's developers."""
    assert public_key(ALICE) == ALICE_KEY
    assert public_key(BOB) == BOB_KEY


@pytest.mark.parametrize("address", ["", ALICE[:-1], ALICE[:-1] + "Z", ALICE.replace("w", "0"), "1" * 48, 7, "5" * 99])
def test_a_malformed_address_is_refused(address: Any) -> None:
    """A wrong checksum, a letter that base58 does not have, a wrong length."""
    with pytest.raises(InvalidInput):
        public_key(address)


def test_a_known_signature_is_verified() -> None:
    """With the real package: the published signature is right, and none of another text or key."""
    pytest.importorskip("sr25519", reason="the extra `signatures` is not installed")
    assert is_signed_by(ALICE, b"hello world", SIGNED_BY_ALICE)
    assert not is_signed_by(ALICE, b"hello World", SIGNED_BY_ALICE)
    assert not is_signed_by(BOB, b"hello world", SIGNED_BY_ALICE)


@pytest.mark.usefixtures("stand_in")
def test_two_signed_receipts_of_a_job_are_one_receipt() -> None:
    """Class and time are from the start, blocks and cost from the end."""
    assert signed_receipt(signed(STARTED), signed(FINISHED)) == Receipt(
        ALICE, BOB, GPU, datetime(2024, 1, 1, 0, 0, 48, tzinfo=UTC), [2, 3], 12.5
    )


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("receipt", ["started", "finished"])
@pytest.mark.parametrize("signer", ["validator", "miner"])
def test_each_of_the_four_signatures_counts(receipt: str, signer: str) -> None:
    """Catches: a signature that nobody checks."""
    receipts = {"started": signed(STARTED), "finished": signed(FINISHED)}
    receipts[receipt][f"{signer}_signature"] = "0x" + bytes(64).hex()
    with pytest.raises(BadReceiptSignature) as refused:
        signed_receipt(**receipts)
    assert refused.value.signer == signer


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("field", ["block_numbers", "score_str", "timestamp"])
def test_a_changed_field_has_no_signature(field: str) -> None:
    """Blocks, cost and time are under the signature."""
    changed = copy.deepcopy(signed(FINISHED))
    changed["payload"][field] = [7] if field == "block_numbers" else "1"
    with pytest.raises(BadReceiptSignature):
        signed_receipt(signed(STARTED), changed)


MALFORMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another job": (signed(STARTED), signed(FINISHED | {"job_uuid": "other"})),
    "two starts": (signed(STARTED), signed(STARTED)),
    "no payload": ({}, signed(FINISHED)),
    "no signature": ({"payload": STARTED}, signed(FINISHED)),
    "no blocks": (signed(STARTED), signed({k: v for k, v in FINISHED.items() if k != "block_numbers"})),
    "no number": (signed(STARTED), signed(FINISHED | {"score_str": "much"})),
    "no time": (signed(STARTED | {"timestamp": "now"}), signed(FINISHED)),
    "no hotkey": (signed(STARTED | {"miner_hotkey": ""}), signed(FINISHED)),
}


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("started", "finished"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_receipts_are_refused(started: dict[str, Any], finished: dict[str, Any]) -> None:
    """`InvalidInput`, never another error: they come from other validators."""
    with pytest.raises(InvalidInput):
        signed_receipt(started, finished)


def test_without_the_package_nothing_counts_as_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(sys.modules, "sr25519", None)
    with pytest.raises(InvalidInput, match=r"allowance-ledger\[signatures\]"):
        is_signed_by(ALICE, b"hello world", SIGNED_BY_ALICE)


@pytest.mark.usefixtures("stand_in")
def test_the_command_checks_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with all signatures is spent, one without is refused and spends nothing; a bad line is named."""

    async def stocked() -> None:
        async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db", offers={BOB: 1}, stakes={ALICE: 1.0}):
            pass

    asyncio.run(stocked())
    configure_ledger(monkeypatch, f"sqlite:///{tmp_path}/ledger.db", VALIDATOR)
    forged = copy.deepcopy(signed(FINISHED))
    forged["payload"]["block_numbers"] = [1, 2]
    file = tmp_path / "receipts.jsonl"
    lines = [{"started": signed(STARTED), "finished": finished} for finished in (forged, signed(FINISHED))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    result = command_line(capsys)("receipts", file, "--signed", "--json")

    assert result.code == 1
    refused, spent = result.documents
    assert (refused["spent"], refused["receipt"], refused["error"]["type"]) == (False, None, "BadReceiptSignature")
    assert (spent["spent"], spent["blocks"], spent["receipt"]["miner_ss58"]) == (True, [2, 3], BOB)
    assert refused.keys() == spent.keys()
    file.write_text('{"started":{}}\n')
    assert command_line(capsys)("receipts", file, "--signed", "--json").error["fields"]["line"] == 1
