"""If a user's module is named `ledger` or `projections`, importing the library names its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "raise SystemExit('the code of the other module ran')\n"

pytestmark = pytest.mark.compatibility


def python(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory that comes first in `sys.path`, with the library behind it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, cwd=directory, env=environment
    )


@pytest.mark.parametrize("package", ["ledger", "projections"])
@pytest.mark.parametrize("file", ["{}.py", "{}/__init__.py"])
@pytest.mark.parametrize("imported", ["routing", "routing.sync", "routing.cli.main"])
def test_importing_names_the_file_that_shadows(tmp_path: Path, package: str, file: str, imported: str) -> None:
    """The error names the file and the place of our package, and none of the other module's code runs."""
    other = tmp_path / file.format(package)
    other.parent.mkdir(exist_ok=True)
    other.write_text(SCRIPT)
    ran = python(tmp_path, "-c", f"import {imported}")

    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        f"ImportError: {other} shadows the package {package!r} of allowance-ledger, which is in {ROOT}: "
        f"rename that file, or let its directory come after {ROOT} in sys.path"
    )


def test_a_script_of_that_name_is_named_when_it_is_run(tmp_path: Path) -> None:
    """`python ledger.py`, whose first line imports the library: the commonest way to shadow it."""
    script = tmp_path / "ledger.py"
    script.write_text("from routing import Allowance\n")
    ran = python(tmp_path, str(script))

    assert ran.returncode == 1
    assert f"ImportError: {script} shadows the package 'ledger'" in ran.stderr


def test_a_module_that_was_imported_before_is_named(tmp_path: Path) -> None:
    """Another `projections` that is loaded already, from a directory that has left `sys.path` since."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "projections.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(elsewhere)!r}); import projections; del sys.path[0]; import routing"
    ran = python(tmp_path, "-c", code)

    assert f"ImportError: {elsewhere / 'projections.py'} shadows" in ran.stderr


def test_the_error_carries_the_file(tmp_path: Path) -> None:
    """A program that handles the error finds the name and the file in its fields, without reading the message."""
    (tmp_path / "ledger.py").write_text(SCRIPT)
    code = "try:\n import routing\nexcept ImportError as error:\n print(error.name, error.path)"
    assert python(tmp_path, "-c", code).stdout == f"ledger {tmp_path / 'ledger.py'}\n"


@pytest.mark.parametrize("path", [".", "link", "relative"])
def test_the_library_itself_is_not_taken_for_another_module(tmp_path: Path, path: str) -> None:
    """The same packages through a symbolic link, through a relative path, or beside folders without code are ours."""
    (tmp_path / "ledger").mkdir()  # A folder without an `__init__.py` loses against a package behind it.
    (tmp_path / "link").symlink_to(ROOT)
    (tmp_path / "relative").symlink_to(ROOT)
    code = f"import sys; sys.path.insert(1, {path!r}); import routing, routing.sync; print(routing.Allowance.__name__)"
    ran = python(tmp_path, "-c", code)
    assert (ran.stdout, ran.stderr) == ("Allowance\n", "")
