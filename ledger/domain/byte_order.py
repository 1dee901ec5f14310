"""Arrays as little-endian bytes, so that stored bytes and digests are equal on machines of either byte order."""

from __future__ import annotations

import sys
from array import array

SWAPS = sys.byteorder == "big"
"""Whether this machine's arrays are in the other byte order."""


def little_endian(typecode: str, native: bytes) -> bytes:
    """Return the little-endian bytes of an array, given its bytes in the machine's order; or the reverse."""
    if not SWAPS:
        return native
    swapped = array(typecode, native)
    swapped.byteswap()
    return swapped.tobytes()


def little_endian_runs(packed: bytes) -> bytes:
    """Convert the bytes of a `BlockSet`, a typecode followed by an array, as `little_endian` does."""
    return packed[:1] + little_endian(packed[:1].decode(), packed[1:]) if SWAPS else packed
