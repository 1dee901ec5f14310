"""The command line `allowance`: `main` is its one public name.

Nothing heavy is imported here: each command imports what it needs when it runs, so that `--help` answers at
once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from routing.cli.io.output import Output

from .errors import STORAGE_UNAVAILABLE, WrongUsage, report
from .interrupts import watched_interrupts
from .parser import build_parser

__all__ = ["main"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and answers with its exit code.

    0: done. 1: the answer is no. 2: wrong usage or input. 3: storage unavailable. 130: interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output(json_wanted="--json" in words)
    try:
        code = _run_reporting_errors(words, out)
        out.flush()
    except BrokenPipeError:
        # The reader has seen enough (`allowance history | head`): nothing went wrong.
        out.abandon()
        return 0
    except OSError as error:
        out.note(f"allowance: cannot write the answer: {error.strerror}")
        out.abandon()
        return STORAGE_UNAVAILABLE
    return code


def _run_reporting_errors(words: Sequence[str], out: Output) -> int:
    try:
        with watched_interrupts() as came:
            code = _run(words, out)
            if came():
                raise KeyboardInterrupt
        return code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        out.note("allowance: interrupted")
        return INTERRUPTED
    except Exception as error:
        return report(error, out)


def _run(words: Sequence[str], out: Output) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(words)
    except SystemExit as asked_for_help:
        return int(asked_for_help.code or 0)
    if arguments.command is None:
        raise WrongUsage("a command is needed, such as `allowance demo`; `allowance --help` lists them")
    code: int = arguments.run(arguments, out)
    return code
