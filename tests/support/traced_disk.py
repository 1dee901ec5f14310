"""A process whose system calls fail, and the disk that a power cut would leave behind.

`strace` lets chosen system calls of a real process fail, and records those that write and flush. `TracedDisk` repeats
the record and keeps two contents of each file: the one that processes see, and the one that a power cut leaves. It is
harsher than a kernel: nothing reaches the disk without a flush, and what was written before a failed flush never does,
unless it is written again (Linux takes such pages for clean).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_CALLS = "pwrite64,ftruncate,fdatasync,fsync,unlink"
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(.*)")
_UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")

Write = Callable[[bytearray], None]


@cache
def why_no_strace() -> str | None:
    """Return why system calls cannot be traced here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    ran = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if ran.returncode == 0 else f"strace cannot trace a process here: {ran.stderr.strip()}"


@dataclass
class _File:
    """A file as processes see it, as the disk has it, and the writes that no flush has covered."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unflushed: list[Write] = field(default_factory=list)

    def write(self, write: Write) -> None:
        write(self.seen)
        self.unflushed.append(write)

    def flush(self, *, succeeded: bool) -> None:
        for write in self.unflushed if succeeded else ():
            write(self.durable)
        self.unflushed.clear()


class TracedDisk:
    """The files of one directory."""

    def __init__(self, directory: Path) -> None:
        """Take the files that are there for durable."""
        self._directory = directory
        self._files = {
            each.name: _File(bytearray(each.read_bytes()), bytearray(each.read_bytes())) for each in directory.iterdir()
        }
        self._durable_names = dict(self._files)
        self.flushes_failed = 0

    def run(self, script: str, *faults: str) -> subprocess.CompletedProcess[str]:
        """Run a Python script in which system calls fail: each fault is an `inject` expression of strace."""
        record = self._directory.with_name("strace.txt")
        injected = [option for fault in faults for option in ("-e", f"inject={fault}")]
        options = ["-f", "-y", "-qq", "-xx", "-s", "9999999", "-e", f"trace={_CALLS}", "-e", "signal=none", *injected]
        ran = subprocess.run(
            ["strace", *options, "-o", record, sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self._repeat(record.read_text())
        return ran

    def after_power_cut(self, directory: Path) -> Path:
        """Write what the disk has into a new directory."""
        directory.mkdir()
        for name, file in self._durable_names.items():
            (directory / name).write_bytes(file.durable)
        return directory

    def _repeat(self, record: str) -> None:
        started: dict[str, str] = {}
        for line in record.splitlines():
            if match := _UNFINISHED.fullmatch(line):
                started[match[1]] = match[2]
                continue
            match = _RESUMED.fullmatch(line)
            if match := _LINE.fullmatch(started.pop(match[1]) + match[2] if match else line):
                # "?": the process was killed in the call.
                self._call(match[1], match[2], -1 if match[3] == "?" else int(match[3]))

    def _call(self, name: str, arguments: str, result: int) -> None:
        if name == "unlink":
            path = Path(_text(arguments))
            if result == 0 and path.parent == self._directory:
                self._files.pop(path.name, None)
            return
        match = re.match(r"\d+<([^>]*)>(?:, )?(.*)", arguments)
        path = Path(_text(match[1])) if match else Path()
        if match is None or path.name.endswith("-shm"):
            return
        if name in ("fsync", "fdatasync"):
            self._flush(path, succeeded=result == 0)
        elif path.parent == self._directory and result >= 0:
            self._files.setdefault(path.name, _File()).write(_write(name, match[2], result))

    def _flush(self, path: Path, *, succeeded: bool) -> None:
        self.flushes_failed += not succeeded
        if path == self._directory:
            if succeeded:
                self._durable_names = dict(self._files)
        elif path.parent == self._directory:
            self._files.setdefault(path.name, _File()).flush(succeeded=succeeded)


def _write(name: str, arguments: str, result: int) -> Write:
    """Return what a call does to a file's content."""
    if name == "ftruncate":
        size = int(arguments)

        def truncate(content: bytearray) -> None:
            content[size:] = bytes(max(0, size - len(content)))

        return truncate
    text, _, offset_text = arguments.rsplit(", ", 2)
    written, offset = _bytes(text)[:result], int(offset_text)

    def write(content: bytearray) -> None:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(written)] = written

    return write


def _bytes(quoted: str) -> bytes:
    """Return the bytes of a string that strace has written as hexadecimal digits."""
    return bytes.fromhex(quoted.strip('"').replace("\\x", ""))


def _text(quoted: str) -> str:
    return _bytes(quoted).decode() if "\\x" in quoted else quoted.strip('"')
