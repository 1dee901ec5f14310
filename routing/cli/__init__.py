"""The command line `allowance`. The entry point is `main.main`; the commands are listed in `commands`."""
