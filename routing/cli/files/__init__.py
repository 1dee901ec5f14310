"""File formats that commands read: facts, receipts, job requests, whole ledgers."""
