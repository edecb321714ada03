"""The ledger: what has run, what runs, and who holds what."""
