"""The wait of LSF's commands for an answer: without `LSB_NTRIES`, they repeat their request for ever."""

from __future__ import annotations

import sys
import time

import cluster


def wait_for_lsf() -> None:
    """Wait while LSF is away, and say on stderr what a command waits for."""
    if (cluster.root() / "busy").exists():
        print("LSF is processing your request. Please wait ...", file=sys.stderr)
    if cluster.is_away():
        print("LSF is down. Please wait ...", file=sys.stderr, flush=True)
    while cluster.is_away():
        time.sleep(0.05)
