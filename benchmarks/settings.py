"""Settings of a run of the benchmarks."""

from __future__ import annotations

import dataclasses
import sys

__all__ = ["BenchSettings", "say"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How much is measured.

    Attributes:
        slots: Samples that run at a time.
        rounds: How often everything is measured; medians are reported.
        small: Samples of the small run of each tool.
        large: Samples of the large run.
        submit_rows: Sizes of the sample tables that are submitted.
        chain: Steps of the study in which latency is measured.
        status_rows: Samples in the ledger that `status` reads.
        tools: Keys of the tools that run null samples.
    """

    slots: int
    rounds: int
    small: int
    large: int
    submit_rows: tuple[int, ...]
    chain: int
    status_rows: int
    tools: tuple[str, ...]


def say(text: str) -> None:
    """Tell on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)
