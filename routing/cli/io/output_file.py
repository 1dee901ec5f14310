"""Files that a command writes: found writable before the work begins, put in their place once they are whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, cast

from routing.cli.errors import UnwritableOutput

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FOR_ALL = 0o666
"""What the user's mask leaves of it."""
FOR_OWNER = 0o600


class OutputFile:
    """A file beside the one that was named, which takes its place by `keep`; otherwise what was there stays.

    `may_replace` says which files may be taken the place of, `expected` the same in words. Raises
    `UnwritableOutput`, already when it is made.
    """

    def __init__(
        self, name: str, *, expected: str, may_replace: Callable[[Path], bool] = lambda _: False, mode: int = FOR_ALL
    ) -> None:
        self._name = name
        self._expected = expected
        self._may_replace = may_replace
        with named_errors(name):
            # Through a link, the file that it leads to is meant.
            self._target = Path(os.path.realpath(name))
            self._refuse_what_is_there()
            self._partial = self._target.with_name(f".{secrets.token_hex(8)}.partial")
            descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            self._file = os.fdopen(descriptor, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._partial.unlink()

    @property
    def stream(self) -> IO[bytes]:
        """Where the bytes go."""
        return named_stream(self._file, self._name)

    def keep(self) -> None:
        """Puts the file, whole, in its place."""
        with named_errors(self._name):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._refuse_what_is_there()
            os.replace(self._partial, self._target)

    def _refuse_what_is_there(self) -> None:
        if os.path.lexists(self._target) and not (self._target.is_file() and self._may_replace(self._target)):
            raise UnwritableOutput(self._name, f"something is there already; expected {self._expected}")


def named_stream(stream: IO[bytes], name: str) -> IO[bytes]:
    """The stream, but that what keeps it from being written is told as `UnwritableOutput`, by whoever writes to it."""
    return cast("IO[bytes]", _NamedStream(stream, name))


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Inside, what the file system refuses is told by the name that was given."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnwritableOutput(name, getattr(error, "strerror", None) or str(error)) from error


class _NamedStream(RawIOBase):
    """Raises no `OSError`: a ledger that is read meanwhile would take it for its database's."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._name = name

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        with named_errors(self._name):
            return self._stream.write(data)
