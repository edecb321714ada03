"""Errors of a benchmark; the table shows the message of an error in the row of its case."""

from __future__ import annotations

__all__ = ["BenchmarkError", "MissingToolError", "ToolFailedError"]


class BenchmarkError(Exception):
    """A benchmark has no result."""


class MissingToolError(BenchmarkError):
    """The tool is not on this machine, and the benchmark cannot install it."""


class ToolFailedError(BenchmarkError):
    """The tool has failed, or has not run all samples."""
