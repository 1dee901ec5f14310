"""What a command is: its words, its arguments and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from routing.cli.io.output import Output


class CliCommand(NamedTuple):
    """A command of `allowance`, registered in `commands.COMMANDS`.

    `summary` is one sentence; `examples` are command lines; `run` gives the exit code and imports what it
    needs.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Output], int]
    details: str = ""
