"""What moves on a terminal while a study runs: the display of `-fg`, and `status --watch`."""
