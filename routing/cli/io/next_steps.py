"""The command lines that a command suggests as the next step."""

from __future__ import annotations

import argparse
import shlex


def next_command(arguments: argparse.Namespace, *words: object) -> str:
    """Return a command line in backquotes, with the options that name this command's ledger.

    A URL that may hold a password is shown without it.
    """
    from ledger.store.urls import redacted_url

    options: list[object] = []
    if arguments.database:
        options += ["--database", redacted_url(arguments.database)]
    if arguments.validator:
        options += ["--validator", arguments.validator]
    return f"`allowance {' '.join(shlex.quote(str(word)) for word in (*words, *options))}`"
