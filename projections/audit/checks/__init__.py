"""One module per group of audit rules."""
