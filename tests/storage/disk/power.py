"""What a power cut can leave of a disk.

The model is as strict as the interfaces are: a successful sync of a file settles its sectors and its size; a successful
sync of a directory settles its names. Of everything else any version may be on the disk, sector by sector. A failed
sync settles nothing, and marks the sectors as clean: a later successful sync does not cover them unless they are
written again (as Linux does since 4.13, known as "fsyncgate").
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from .preload import Operation, Record

SECTOR = 512
SECTORS_PER_PAGE = 8


class _File:
    """The contents and sizes that a file may have on the disk."""

    def __init__(self) -> None:
        self.cache = bytearray()
        self.sectors: dict[int, list[bytes]] = {}
        """The sectors that are not settled: their possible contents, the newest last."""
        self.dirty: set[int] = set()
        self.sizes = [0]

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        first, last = offset // SECTOR, (max(end, offset + 1) - 1) // SECTOR
        before = [self._sector(each) for each in range(first, last + 1)]
        if len(self.cache) < end:
            self.cache.extend(bytes(end - len(self.cache)))
            self.sizes.append(end)
        self.cache[offset:end] = data
        self._changed(range(first, last + 1), before)

    def truncate(self, size: int) -> None:
        affected = range(size // SECTOR, -(-len(self.cache) // SECTOR))
        before = [self._sector(each) for each in affected]
        del self.cache[size:]
        self.cache.extend(bytes(size - len(self.cache)))
        self.sizes.append(size)
        self._changed(affected, before)

    def sync(self, *, succeeded: bool) -> None:
        if succeeded:
            for each in self.dirty:
                del self.sectors[each]
            self.sizes = [len(self.cache)]
        self.dirty.clear()

    def at_cut(self, choose: Callable[[object, int], int]) -> bytes:
        """Return one of the contents that the disk may hold."""
        size = self.sizes[choose("size", len(self.sizes))]
        image = self.cache[:size].ljust(size, b"\0")
        for number, versions in sorted(self.sectors.items()):
            version = versions[choose(number, len(versions))]
            if (start := number * SECTOR) < size:
                image[start : start + SECTOR] = version
        return bytes(image[:size])

    def _sector(self, number: int) -> bytes:
        return bytes(self.cache[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")

    def _changed(self, numbers: Iterable[int], before: list[bytes]) -> None:
        for number, content in zip(numbers, before, strict=True):
            self.sectors.setdefault(number, [content]).append(self._sector(number))
            self.dirty.add(number)


class Disk:
    """A disk that follows the record of a run; `ignores_syncs` is the control that must lose what was promised."""

    def __init__(self, *, ignores_syncs: bool = False) -> None:
        self._ignores_syncs = ignores_syncs
        self._opened: dict[int, _File | str] = {}
        """By handle: the file, or the path of a directory."""
        self._names: dict[str, list[_File | None]] = {}
        """What a name may refer to on the disk, the newest last; None: there is no such name."""
        self._directories: dict[str, list[bool]] = {"": [True]}
        """Whether a directory may exist on the disk; the watched one always does."""

    def apply(self, record: Record) -> None:
        """Follow one call."""
        if record.operation is Operation.SYNC:
            self._sync(record)
        elif record.result >= 0:
            self._change(record)

    def image(self, rng: random.Random, strategy: str) -> tuple[dict[str, bytes | None], bool]:
        """Return the files on the disk after a cut (None: a directory), and whether anything was lost."""
        image: dict[str, bytes | None] = {}
        lost = False
        for path, exists in sorted(self._directories.items()):
            choose = _chooser(rng, strategy)
            kept = exists[choose("directory", len(exists))]
            lost |= not kept
            if kept and (not path or _parent(path) in image):
                image[path] = None
        for path, versions in sorted(self._names.items()):
            choose = _chooser(rng, strategy)
            file = versions[choose("name", len(versions))]
            lost |= file is not versions[-1]
            if file is None or _parent(path) not in image:
                continue
            content = file.at_cut(choose)
            lost |= content != file.cache
            image[path] = content
        return image, lost

    def _change(self, record: Record) -> None:
        match record.operation:
            case Operation.OPEN:
                self._open(record)
            case Operation.WRITE:
                self._file(record).write(record.offset, record.data)
            case Operation.TRUNCATE:
                self._file(record).truncate(record.offset)
            case Operation.UNLINK:
                self._names.setdefault(os.fsdecode(record.data), [None]).append(None)
            case Operation.MKDIR:
                self._directories.setdefault(os.fsdecode(record.data), [False]).append(True)

    def _open(self, record: Record) -> None:
        path = os.fsdecode(record.data)
        if path in self._directories:
            self._opened[record.handle] = path
            return
        versions = self._names.setdefault(path, [None])
        file = versions[-1]
        if file is None:
            file = _File()
            versions.append(file)
        elif record.offset & os.O_TRUNC:
            file.truncate(0)
        self._opened[record.handle] = file

    def _file(self, record: Record) -> _File:
        file = self._opened[record.handle]
        assert isinstance(file, _File)
        return file

    def _sync(self, record: Record) -> None:
        if self._ignores_syncs:
            return
        opened, succeeded = self._opened[record.handle], record.result == 0
        if isinstance(opened, _File):
            opened.sync(succeeded=succeeded)
        elif succeeded:
            for names in (self._names, self._directories):
                for path, versions in names.items():
                    if path and _parent(path) == opened:
                        del versions[:-1]


STRATEGIES = ("lose all", "keep all", "sectors", "pages", "few lost", "few kept", "files")
"""What a cut loses: all, nothing, sectors, pages of eight sectors, one in ten, all but one in ten, files."""
_CHANGED_SHARE = {"lose all": 0.0, "keep all": 0.0, "few lost": 0.1, "few kept": 0.1}


def _chooser(rng: random.Random, strategy: str) -> Callable[[object, int], int]:
    """Return a function that chooses one of so many versions of each part of one file; 0 is the oldest."""
    is_kept = strategy in ("keep all", "few lost") or (strategy == "files" and rng.random() < 0.5)
    changed_share = 0.0 if strategy == "files" else _CHANGED_SHARE.get(strategy, 1.0)
    pages: dict[object, float] = {}

    def choose(part: object, versions: int) -> int:
        if strategy == "pages" and isinstance(part, int):
            return int(pages.setdefault(part // SECTORS_PER_PAGE, rng.random()) * versions)
        if rng.random() < changed_share:
            return rng.randrange(versions)
        return versions - 1 if is_kept else 0

    return choose


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def lay_out(image: dict[str, bytes | None], directory: Path) -> None:
    """Write the files of an image into an empty directory."""
    for path, content in image.items():
        if content is None:
            (directory / path).mkdir(exist_ok=True)
        else:
            (directory / path).write_bytes(content)
