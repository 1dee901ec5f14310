"""Files that a command writes: checked before the work begins, and moved to their final name once complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, cast

from routing.cli.io.errors import UnwritableOutput

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FOR_ALL = 0o666
"""The mode of an ordinary file, before the user's umask."""
FOR_OWNER = 0o600
"""The mode of a file that only its owner may read, such as an export of a whole ledger."""


class OutputFile:
    """A temporary file in the directory of the file `name`; `put_in_place` renames it to `name`.

    Without `put_in_place`, leaving the context deletes the temporary file, and an existing file stays as it was.
    `may_replace` returns whether an existing file may be replaced; `expected` says the same in words, for the
    error. Raise `UnwritableOutput`, already in the constructor, so that a wrong name costs no long work.
    """

    def __init__(
        self, name: str, *, expected: str, may_replace: Callable[[Path], bool] = lambda _: False, mode: int = FOR_ALL
    ) -> None:
        self._name = name
        self._expected = expected
        self._may_replace = may_replace
        with raising_unwritable_output(name):
            # `os.replace` would replace a link itself; the user means the file that it points to.
            self._target = Path(os.path.realpath(name))
            self._refuse_existing_file()
            self._partial = self._target.with_name(f".{secrets.token_hex(8)}.partial")
            # O_EXCL: never write into a file that somebody else created under this name.
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
        """The stream to write to; it raises `UnwritableOutput`."""
        return output_stream(self._file, self._name)

    def put_in_place(self) -> None:
        """Rename the file to its final name."""
        with raising_unwritable_output(self._name):
            self._file.flush()
            # Before the rename: after a power loss, the final name must not hold a part of the content.
            os.fsync(self._file.fileno())
            self._file.close()
            # Checked again, because the work may have taken long and the file may be new.
            self._refuse_existing_file()
            os.replace(self._partial, self._target)

    def _refuse_existing_file(self) -> None:
        if os.path.lexists(self._target) and not (self._target.is_file() and self._may_replace(self._target)):
            raise UnwritableOutput(self._name, f"it exists already; expected {self._expected}")


def output_stream(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return a stream that writes to this one and raises `UnwritableOutput` with this name if that fails."""
    return cast("IO[bytes]", _OutputStream(stream, name))


@contextmanager
def raising_unwritable_output(name: str) -> Iterator[None]:
    """Raise `UnwritableOutput` with this name instead of an error of the file system."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnwritableOutput(name, getattr(error, "strerror", None) or str(error)) from error


class _OutputStream(RawIOBase):
    """A stream that raises no `OSError`: the code that exports a ledger would blame its database for one."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._name = name

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        with raising_unwritable_output(self._name):
            return self._stream.write(data)
