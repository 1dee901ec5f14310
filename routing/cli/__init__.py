"""The command line `allowance`."""
