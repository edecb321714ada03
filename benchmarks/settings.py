"""The settings of the benchmarks."""

from __future__ import annotations

import dataclasses
import sys

__all__ = ["BenchSettings", "say"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The sizes of the measurements.

    Attributes:
        slots: Number of samples that run at the same time.
        rounds: Number of repetitions of each measurement; the table shows medians.
        small: Number of samples in the small run of each tool.
        large: Number of samples in the large run.
        submit_rows: Sizes of the sample tables that are submitted.
        chain: Number of steps of the study for the latency.
        status_rows: Number of samples in the ledger that `status` reads.
        records: Numbers of step records of the studies with many of them.
        steps: Numbers of steps of the studies with many of them.
        workers: Numbers of workers at which the coordinator looks.
        tools: Keys of the tools that run null samples.
    """

    slots: int
    rounds: int
    small: int
    large: int
    submit_rows: tuple[int, ...]
    chain: int
    status_rows: int
    records: tuple[int, ...]
    steps: tuple[int, ...]
    workers: tuple[int, ...]
    tools: tuple[str, ...]


def say(text: str) -> None:
    """Print the current measurement on stderr."""
    print(text, file=sys.stderr, flush=True)
