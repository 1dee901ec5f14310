"""Refuses to import this package beside another module named `ledger` or `projections`.

Both names are ordinary, and the first one on `sys.path` wins. Without this check the first symptom would be an
`AttributeError` or a missing submodule deep inside of the library. This module imports nothing of the library, since
that may be what is shadowed.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

DISTRIBUTION = "allowance-ledger"


def refuse_shadowed_packages() -> None:
    """Raise `ImportError`, with the file as `path`, if Python finds another module in the place of a package of ours.

    The other module is searched for and not imported, so none of its code runs.
    """
    root = os.path.dirname(os.path.dirname(__file__))
    for package in ("ledger", "projections"):
        found = _file_of(package)
        # Without the ending, which is another one for compiled files.
        if found is not None and os.path.splitext(found)[0] != os.path.join(root, package, "__init__"):
            raise ImportError(
                f"{found} shadows the package {package!r} of {DISTRIBUTION}, which is in {root}: rename that file, or "
                f"let its directory come after {root} in sys.path",
                name=package,
                path=found,
            )


def _file_of(module: str) -> str | None:
    """Return the file that `import module` uses; None if it is no file, as in a frozen program."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None)
    spec = PathFinder.find_spec(module)
    return spec.origin if spec is not None and spec.has_location else None
