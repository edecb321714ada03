"""A simulated cluster that runs the real code of conductor and workers in one process, driven by a seed (README.md)."""
