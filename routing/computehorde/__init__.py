"""Moving from ComputeHorde's validator: its tables, read once, and compared with the ledger that takes over."""
