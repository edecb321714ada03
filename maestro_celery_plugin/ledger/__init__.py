"""The ledger: all attempts at samples, the claims of messages, and the leases of slots."""
