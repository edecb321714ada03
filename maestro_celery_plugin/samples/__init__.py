"""Sample tables, and the paths of samples."""
