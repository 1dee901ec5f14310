"""The audit repeats the rules of the ledger on purpose, and so must not import the code that applied them first.

The import contracts in `pyproject.toml` see modules. These tests check the names that the audit imports through the
doors of the packages, behind which any module may be.
"""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
AUDIT_MODULES = sorted((ROOT / "projections" / "audit").rglob("*.py"))
DOORS = ("ledger", "projections")
DECIDING_MODULES = {
    "ledger.domain.commands",
    "ledger.domain.fact_commands",
    "ledger.domain.fact_validation",
    "ledger.domain.renumbering",
    "ledger.domain.unit_of_work",
    "ledger.deciding",
    "ledger.locked_append",
    "ledger.optimistic_append",
    "ledger.writer",
    "projections.availability",
    "projections.candidates",
    "projections.draw_table",
    "projections.draws",
    "projections.measured",
    "projections.rank_levels",
    "projections.ranking",
    "projections.reliability",
    "projections.tie_break",
}


def exported_by(module: ModuleType) -> set[str]:
    """The names that a module defines itself."""
    return {name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}


def door_names(path: Path) -> set[tuple[str, str]]:
    """`(package, name)` of all that a module imports through the door of a package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {(str(node.module), alias.name) for node in imports if node.module in DOORS for alias in node.names}


def deciding_names() -> set[str]:
    """All names that the deciding modules define."""
    return set().union(*(exported_by(importlib.import_module(name)) for name in DECIDING_MODULES))


@pytest.mark.parametrize("path", AUDIT_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_audit_module_imports_deciding_code(path: Path) -> None:
    """No name that an audit module imports through a door is defined by a deciding module."""
    assert not {name for _, name in door_names(path)} & deciding_names()


def test_deciding_names_are_recognized() -> None:
    """The check above compares with names that exist: `Reserve` and `Availability` are among them."""
    assert {"Reserve", "RecordFacts", "FactValidator", "UnitOfWork", "Availability"} <= deciding_names()


def test_import_contract_forbids_the_same_modules() -> None:
    """The import contract of the audit lists exactly the deciding modules."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    forbidden = [each["forbidden_modules"] for each in contracts if each.get("source_modules") == ["projections.audit"]]
    assert [set(each) for each in forbidden] == [DECIDING_MODULES]
