"""Benchmarks of the plugin beside its peers: ``python -m benchmarks`` from the project's root."""
