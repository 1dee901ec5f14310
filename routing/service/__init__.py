"""`Allowance`: one ledger as callers use it, its lifecycle and its queries."""
