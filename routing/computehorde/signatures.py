"""Signatures of the chain's keys, sr25519, checked by the package of the extra `signatures`."""

from __future__ import annotations

from hashlib import blake2b

from ledger.errors import InvalidInput

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_KEY_BYTES, _CHECKSUM_BYTES, _SIGNATURE_BYTES = 32, 2, 64
LONGEST_ADDRESS = 60
"""An ss58 address of a key has 47 to 50 characters."""


def public_key(ss58: object) -> bytes:
    """Return the 32 bytes of the key that an ss58 address names. Raises `InvalidInput`."""
    if isinstance(ss58, str) and 0 < len(ss58) <= LONGEST_ADDRESS and set(ss58) <= set(_ALPHABET):
        decoded = _decoded(ss58)
        prefixed_key, checksum = decoded[:-_CHECKSUM_BYTES], decoded[-_CHECKSUM_BYTES:]
        is_right = blake2b(b"SS58PRE" + prefixed_key).digest()[:_CHECKSUM_BYTES] == checksum
        # The number of the chain before the key has one byte or two.
        if is_right and len(prefixed_key) - _KEY_BYTES in (1, 2):
            return prefixed_key[-_KEY_BYTES:]
    raise InvalidInput("ss58", ss58, "an ss58 address of a key, with its checksum")


def _decoded(base58: str) -> bytes:
    number = 0
    for character in base58:
        number = number * len(_ALPHABET) + _ALPHABET.index(character)
    zeros = len(base58) - len(base58.lstrip(_ALPHABET[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def is_signed_by(ss58: str, message: bytes, signature: str) -> bool:
    """Return whether the key of an address has signed the message; `signature` is hexadecimal, with or without `0x`.

    Raises `InvalidInput` for an address or a signature that is malformed, and if the extra is not installed.
    """
    try:
        import sr25519
    except ModuleNotFoundError as cause:
        expected = "left unchecked, or the extra is installed: pip install 'allowance-ledger[signatures]'"
        raise InvalidInput("signature", "sr25519", expected) from cause
    return bool(sr25519.verify(_signature_bytes(signature), message, public_key(ss58)))


def _signature_bytes(signature: str) -> bytes:
    expected = f"{2 * _SIGNATURE_BYTES} hexadecimal digits"
    try:
        signed = bytes.fromhex(signature.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise InvalidInput("signature", signature, expected) from None
    if len(signed) != _SIGNATURE_BYTES:
        raise InvalidInput("signature", signature, expected)
    return signed
