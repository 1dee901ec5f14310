"""The preloaded library from the side of Python: builds it, arms a fault, reads the record."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("shim.c")
_RECORD = struct.Struct("=IIqqqII")


class Operation(IntEnum):
    """What a record is about; the numbers are those of `shim.c`."""

    OPEN = 1
    READ = 2
    WRITE = 3
    SYNC = 4
    TRUNCATE = 5
    UNLINK = 6
    RENAME = 7
    MKDIR = 8
    BEGIN = 9
    END = 10


class Fault(IntEnum):
    """What happens to the call with the chosen index; the numbers are those of `shim.c`."""

    NONE = 0
    EIO = 1
    ENOSPC = 2
    SHORT = 3
    """Half of a write, and no space for the rest; or half of a read."""
    KILL = 4
    TORN = 5
    """Half of a write, and then the process is killed."""
    SYNCS_FAIL = 6
    """EIO for this sync and for all later ones."""


class Record(NamedTuple):
    """One call on the ledger's files, or the begin or end of a call of the library."""

    operation: Operation
    handle: int
    """Of the open file; of a begin or an end, the number of the library's call."""
    offset: int
    """Of a read or write; the size of a truncation; the flags of an open."""
    result: int
    """Below 0: minus the error number."""
    number: int
    """The index of the call, from 1."""
    faulted: bool
    data: bytes
    """What was written, or the path below the watched directory."""


class CannotRun(Exception):
    """The disk under test needs Linux and a C compiler."""


def build(directory: Path) -> Path:
    """Compile the library into a directory; raise `CannotRun` with the reason if that is impossible."""
    if not sys.platform.startswith("linux"):
        raise CannotRun("the disk under test needs Linux, for LD_PRELOAD")
    compiler = _compiler()
    if compiler is None:
        raise CannotRun("the disk under test needs a C compiler: install cc, gcc or clang, or `pip install ziglang`")
    library = directory / "shim.so"
    command = [*compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise CannotRun(f"{' '.join(command)} failed: {built.stderr}")
    return library


def _compiler() -> list[str] | None:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


class Recorder:
    """The control of the library in a process that was started with it, and in the children that it forks."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.disk_used.restype = ctypes.c_uint64
        self._library.disk_log.restype = ctypes.c_void_p

    def begin(self, directory: Path, fault: Fault = Fault.NONE, index: int = 0, death: int = 0) -> None:
        """Forget the last record, and watch the files below a directory.

        The call `index` meets the fault; the process that makes the call `death`, if not 0, is killed before it.
        """
        numbers = (ctypes.c_uint32(each) for each in (index, fault, death))
        self._library.disk_begin(os.fsencode(directory), *numbers)

    def end(self) -> list[Record]:
        """Stop watching; return the record."""
        self._library.disk_end()
        log = ctypes.string_at(self._library.disk_log(), self._library.disk_used())
        return list(_records(log))

    @property
    def fired(self) -> bool:
        """Whether the fault has happened."""
        return bool(self._library.disk_fired())

    def mark(self, operation: Operation, number: int) -> None:
        """Record that a call of the library begins or ends."""
        self._library.disk_mark(ctypes.c_uint32(operation), ctypes.c_int64(number))


def _records(log: bytes) -> Iterator[Record]:
    position = 0
    while position < len(log):
        size, operation, handle, offset, result, number, faulted = _RECORD.unpack_from(log, position)
        position += _RECORD.size
        data = log[position : position + size]
        position += (size + 7) & ~7
        yield Record(Operation(operation), handle, offset, result, number, bool(faulted), data)
