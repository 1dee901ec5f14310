"""Imports of heavy libraries on another thread, so that the event loop of the ledger's thread goes on.

SQLAlchemy takes a fifth of a second to import, and only the history and a new schema need it. On the ledger's thread
that import would delay every reservation of the process.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from importlib import import_module

_imported: set[str] = set()
_importing = threading.Lock()


async def import_in_thread(*modules: str) -> None:
    """Import modules by full name on another thread, unless that was done before; then it costs nothing.

    Not to be awaited inside a transaction or an open connection: a fork waits for both, while it holds `_importing`.
    """
    if not _imported.issuperset(modules):
        done = Future[None]()
        # Not `asyncio.to_thread`: whoever gives work to a pool of threads waits while the process forks, and the fork
        # waits until this loop has paused.
        threading.Thread(target=_import, args=(modules, done), name="allowance-import", daemon=True).start()
        await asyncio.wrap_future(done)


def _import(modules: Iterable[str], done: Future[None]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        with _importing:
            for module in modules:
                import_module(module)
            _imported.update(modules)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _wait_for_import() -> None:
    _importing.acquire()


def _allow_imports() -> None:
    _importing.release()


def _renew_lock() -> None:
    global _importing  # noqa: PLW0603 - a copy of the lock would depend on threads that a child does not have
    _importing = threading.Lock()


# A process that forked in the middle of an import would leave its child with half a module, whose import lock belongs
# to a thread that the child does not have: the child would wait for it for ever. Hence a fork waits for the import.
os.register_at_fork(before=_wait_for_import, after_in_parent=_allow_imports, after_in_child=_renew_lock)
