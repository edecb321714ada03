"""What can go wrong in a benchmark; each error becomes the text of a row."""

from __future__ import annotations

__all__ = ["BenchmarkError", "MissingToolError", "ToolFailedError"]


class BenchmarkError(Exception):
    """A benchmark has no result."""


class MissingToolError(BenchmarkError):
    """The tool is not on this machine and cannot be installed by the benchmark."""


class ToolFailedError(BenchmarkError):
    """The tool ran and did not do its work."""
