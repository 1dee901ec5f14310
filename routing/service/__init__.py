"""The ledger as a service: `Allowance`, its lifecycle, its queries, its past, and whole ledgers."""
