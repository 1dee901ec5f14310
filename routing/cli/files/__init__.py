"""The file formats that commands read: chain facts, receipts, job requests, and whole ledgers."""
