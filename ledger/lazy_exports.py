"""Lazy exports: a package offers names at its top level, and imports a name's module when the name is first used.

`import routing` and `allowance --help` must not wait for modules that they do not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package.

    `modules` maps the full name of each module to the names that the package exports from it, separated by spaces.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}
    # Constants, then classes, then functions: the order in which the linter sorts names.
    exported = sorted(module_of, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))

    def load(name: str) -> Any:
        module = module_of.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return load, lambda: exported, exported
