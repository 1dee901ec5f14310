"""The simulator, the comparison with the reference model, and the short stress test."""
