"""The read-only pages of a ledger, for a browser. Needs the extra `web`, except for the audit page."""
