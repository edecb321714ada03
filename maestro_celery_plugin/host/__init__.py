"""The host of a session: one process that keeps its broker, and starts the conductors of its studies."""
