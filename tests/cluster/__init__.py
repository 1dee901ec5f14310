"""Three PostgreSQL nodes under Patroni that fail over while processes use a ledger on them.

Each node has a network namespace of its own, so that the network between nodes can be cut while callers still reach
all of them. The stress test's workers, diary and judge do the rest.

    python -m tests.cluster --failovers 20 --seed 7

Needs Linux, root (for the namespaces), `ip`, `nsenter` and `setpriv`. PostgreSQL flushes nothing here: SIGKILL leaves
the page cache intact, and a power cut is not tested.
"""
