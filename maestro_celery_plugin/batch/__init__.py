"""What the package knows about batch systems and their allocations."""
