"""Chaos: a study is broken at random, and what its samples have recorded is compared with the ledger."""
