"""Measures how fast the ledger is, compared with the limits of the machine and with the alternatives to the ledger.

`scripts/bench` runs it. Nothing here ships, and no run fails because of a figure: the table shows each figure, and
whether it reaches its target.
"""
