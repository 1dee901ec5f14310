"""`manage.py allowance …`: the command `allowance` with the project's configuration."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError, CommandParser

from routing.cli.main import main
from routing.service.config import VARIABLES
from routing.singletons import configuration

if TYPE_CHECKING:
    BaseCommand = object  # For the same reason as in `apps.py`.
else:
    from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Passes every argument on to the command line, `--help` included."""

    help = "The command `allowance` with the configuration of this project; `manage.py allowance --help` lists all."
    # `allowance health` must run when a check fails.
    requires_system_checks: Sequence[str] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Exit with the exit code of the command line. Django's own options are not read."""
        sys.exit(_run(argv[2:]))

    def add_arguments(self, parser: CommandParser) -> None:
        """Accept the arguments of `call_command("allowance", "health")`."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        """Run for `call_command`. Raises `CommandError` with the exit code as `returncode` unless it is 0."""
        code = _run(arguments)
        if code:
            raise CommandError(f"allowance {' '.join(arguments)} ended with exit code {code}", returncode=code)


def _run(arguments: list[str]) -> int:
    with _project_in_environment():
        return main(arguments)


@contextmanager
def _project_in_environment() -> Iterator[None]:
    """Name the project's database and validator where the command line looks, in the environment."""
    configured = configuration()
    before = {variable: os.environ.get(variable) for variable in VARIABLES.values()}
    os.environ.update({variable: getattr(configured, field) for field, variable in VARIABLES.items()})
    try:
        yield
    finally:
        for variable, text in before.items():
            os.environ.pop(variable)
            if text is not None:
                os.environ[variable] = text
