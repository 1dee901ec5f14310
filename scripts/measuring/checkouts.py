"""A directory with the project's code, of this version or another one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("ledger", "projections", "routing")

Figures = dict[str, str]
"""The text of each figure, by its name, in the order in which the table shows them."""

# The interpreter's cache of compiled modules, so that measuring leaves nothing in a checkout.
_compiled = tempfile.TemporaryDirectory(prefix="allowance-measure-")


@dataclass(frozen=True)
class Checkout:
    """The directory that holds `ledger`, `projections` and `routing`."""

    directory: Path

    def modules(self, package: str) -> list[Path]:
        """Return the package's source files."""
        return sorted((self.directory / package).rglob("*.py"))

    def run(self, *arguments: str) -> str:
        """Run Python with the code of this checkout, and return its standard output."""
        # A name of a third-party package is found in the environment that runs this script; the checkout comes first.
        environment = os.environ | {
            "PYTHONPATH": str(self.directory.resolve()),
            "PYTHONPYCACHEPREFIX": _compiled.name,
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
