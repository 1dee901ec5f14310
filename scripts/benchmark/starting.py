"""How long a process needs to start: the command line, and the import."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE

from .figures import MS, Report, at_most, interleaved
from .prepared import ROOT
from .workspace import Workspace

_IMPORT = "import time; started = time.perf_counter(); import routing; print(time.perf_counter() - started)"


async def starting(workspace: Workspace, report: Report) -> None:
    """Measure `allowance --help` as a whole, and `import routing` inside a process; both with compiled modules."""
    await _help()  # Compiles the modules.
    helped, nothing, imported = await interleaved(2 * workspace.sizes.repeat, _help, _nothing, _imported)
    report.add("allowance --help", "ms", helped, ("python -c pass", nothing), at_most(300))
    report.add("import routing", "ms", imported, target=at_most(150))


async def _help() -> float:
    return await _run("-m", "routing.cli", "--help")


async def _nothing() -> float:
    return await _run("-c", "pass")


async def _run(*arguments: str) -> float:
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=DEVNULL)
    if await process.wait():
        raise RuntimeError(f"python {' '.join(arguments)} failed")
    return (time.perf_counter() - started) * MS


async def _imported() -> float:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _IMPORT, cwd=ROOT, stdout=PIPE)
    output, _ = await process.communicate()
    return float(output) * MS
