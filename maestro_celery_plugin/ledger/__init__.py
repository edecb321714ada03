"""The ledger: the record of all attempts at samples, and of the leases of the workers."""
