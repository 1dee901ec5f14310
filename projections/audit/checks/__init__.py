"""The audit's checks, one module for each group of rules."""
