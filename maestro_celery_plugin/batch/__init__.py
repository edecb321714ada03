"""Batch systems and their allocations."""
