"""How fast the ledger is: beside what the machine can do, and beside what one would use instead.

Run by `scripts/bench`. Nothing here ships, and nothing is asserted: the figures are printed, and whether each reaches
its target.
"""
