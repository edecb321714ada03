"""The message transport between the conductor and the workers."""
