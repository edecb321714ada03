"""Imports at the start of a process, whose duration a user sees."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["one_thread"]

_THREADS = "OPENBLAS_NUM_THREADS"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let NumPy, if it is imported now, create no threads for linear algebra.

    The threads wait for work in a busy loop first, on processors that other processes need at this moment. The plugin
    uses no linear algebra.
    """
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:  # samples inherit the environment
        os.environ.pop(_THREADS) if before is None else os.environ.update({_THREADS: before})
