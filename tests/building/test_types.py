"""Type checkers: the public face is typed completely, and the README's code passes them as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_PYTHON = re.compile(r"^```python\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pyright() -> str:
    """The program, if it runs: the package on PyPI fetches pyright itself from npm when it first runs."""
    program = shutil.which("pyright", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("pyright is not installed; the extra `integrations` has it")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=120, check=False)
    if version.returncode:
        pytest.skip(f"pyright cannot run, perhaps because npm's registry is out of reach: {version.stderr[-300:]}")
    return program


def run_pyright(program: str, arguments: list[str], directory: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [program, "--outputjson", "--pythonpath", sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def test_every_public_name_has_a_known_type(pyright: str) -> None:
    """Whatever a user's type checker infers from, it is declared. Types of other packages are not ours to complete.

    It fails for a public attribute without annotation whose type checkers could infer differently.
    """
    report = run_pyright(pyright, ["--verifytypes", "routing", "--ignoreexternal"], ROOT)
    completeness = report["typeCompleteness"]
    incomplete = [
        (symbol["name"], each["message"])
        for symbol in completeness["symbols"]
        if symbol["isExported"]
        for each in symbol["diagnostics"]
        if each["severity"] == "error"
    ]
    assert incomplete == []
    assert completeness["completenessScore"] == 1


@pytest.fixture
def examples(tmp_path: Path) -> list[str]:
    """The Python code of the README, a file per block."""
    names = []
    for index, block in enumerate(_PYTHON.finditer((ROOT / "README.md").read_text())):
        names.append(f"example_{index}.py")
        (tmp_path / names[-1]).write_text(block["text"])
    assert names
    return names


def test_the_readme_passes_pyright(pyright: str, examples: list[str], tmp_path: Path) -> None:
    """In strict mode, as editors run it. `tests/project/test_documents.py` runs mypy on it."""
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}))
    report = run_pyright(pyright, ["--project", "pyrightconfig.json"], tmp_path)
    assert report["summary"]["filesAnalyzed"] == len(examples)
    assert [(each["range"]["start"]["line"], each["message"]) for each in report["generalDiagnostics"]] == []
