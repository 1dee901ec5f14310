"""The stored log: its contract, its schema, export files, and the two engines."""
