"""Hotkeys and executor classes that the ledger has never seen: named, with what was probably meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from routing.cli.connection import Connection
from routing.cli.io.errors import NO, CommandError

MOST_LISTED = 20


class UnknownMiner(CommandError):
    """No block has registered a miner of this hotkey, and no manifest sync has named it."""

    exit_code = NO

    def __init__(self, miner_ss58: str, known: Sequence[str]) -> None:
        meant = _meant(miner_ss58, known)
        hint = f"did you mean {meant}?" if meant else "`allowance miners` lists those that are registered now"
        super().__init__(f"the ledger has never seen the miner {miner_ss58}; {hint}", miner_ss58=miner_ss58)


class UnknownExecutorClass(CommandError):
    """No manifest sync has named this executor class."""

    exit_code = NO

    def __init__(self, executor_class: str, known: Sequence[str]) -> None:
        meant = _meant(executor_class, known)
        hint = f"did you mean {meant}?" if meant else f"it knows {', '.join(known[:MOST_LISTED]) or 'none'}"
        super().__init__(
            f"the ledger has never seen the executor class {executor_class}; {hint}", executor_class=executor_class
        )


def refuse_unknown_names(
    connection: Connection, *, miner_ss58: str | None = None, executor_class: str | None = None
) -> None:
    """Raise for a miner or an executor class that the ledger has never seen; None is not checked.

    A command calls this if it found nothing. Otherwise a mistyped hotkey would look like a miner without reservations.
    """
    if miner_ss58 is not None:
        miners = connection.run(connection.ledger.known_miners())
        if miner_ss58 not in miners:
            raise UnknownMiner(miner_ss58, miners)
    if executor_class is not None:
        classes = connection.run(connection.ledger.executor_classes())
        if executor_class not in classes:
            raise UnknownExecutorClass(executor_class, classes)


def _meant(text: str, known: Sequence[str]) -> str | None:
    """Return the only name that begins with the text, or has the two ends that tables show of it; else a close one."""
    beginning, _, end = text.partition("…")
    matching = [name for name in known if name.startswith(beginning) and name.endswith(end)]
    if len(matching) == 1:
        return matching[0]
    return next(iter(get_close_matches(text, known, 1, cutoff=0.8)), None)
