"""The commands, one module each.

To add one, write its module and name it in `COMMANDS`, the order in which help lists them.
"""

from routing.cli.command import CliCommand

from . import (
    audit,
    demo,
    explain,
    export,
    health,
    history,
    import_facts,
    miners,
    pick,
    rebuild,
    receipts,
    replay,
    restore,
    settle,
    show,
    verify,
    why,
)

COMMANDS: tuple[CliCommand, ...] = (
    demo.COMMAND,
    import_facts.COMMAND,
    miners.COMMAND,
    pick.COMMAND,
    settle.SPEND,
    settle.RELEASE,
    history.COMMAND,
    show.COMMAND,
    explain.COMMAND,
    why.COMMAND,
    audit.COMMAND,
    replay.COMMAND,
    receipts.COMMAND,
    verify.COMMAND,
    export.COMMAND,
    restore.COMMAND,
    rebuild.COMMAND,
    health.COMMAND,
)
