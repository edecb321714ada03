"""Benchmarks of the plugin and of other tools: ``python -m benchmarks`` in the root directory of the project."""
