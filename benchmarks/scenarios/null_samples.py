"""Null samples with every tool, in interleaved rounds."""

from __future__ import annotations

import statistics

from benchmarks.errors import BenchmarkError
from benchmarks.measure import Round, measure
from benchmarks.rows import Goal, Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools import Tool
from benchmarks.tools.bare_loop import BareLoop
from benchmarks.tools.hyperqueue import HyperQueue
from benchmarks.tools.merlin import Merlin
from benchmarks.tools.parsl import Parsl
from benchmarks.tools.plugin import Plugin, SyncedPlugin
from benchmarks.tools.shell import GnuParallel, Xargs
from benchmarks.tools.snakemake import Snakemake

__all__ = ["TOOLS", "null_samples"]

TOOLS: tuple[Tool, ...] = (
    *(BareLoop(), Plugin(), SyncedPlugin(), Xargs(), GnuParallel()),
    *(HyperQueue(), Parsl(), Snakemake(), Merlin()),
)
# More samples of a tool would only take longer.
_MOST = {Snakemake.key: 2000}

_Rounds = dict[str, list[Round]]


def null_samples(settings: BenchSettings) -> list[Row]:
    """Measure every tool in every round; return a row per tool.

    The order of the tools rotates between rounds, so that no tool always follows the same other tool.
    """
    tools = [tool for tool in TOOLS if tool.key in settings.tools]
    rounds: _Rounds = {tool.key: [] for tool in tools}
    failures: dict[str, str] = {}
    for number in range(settings.rounds):
        first = number % len(tools)
        for tool in tools[first:] + tools[:first]:
            if tool.key in failures:
                continue
            say(f"round {number + 1} of {settings.rounds}: {tool.title}")
            try:
                rounds[tool.key].append(_round(tool, settings))
            except BenchmarkError as error:
                failures[tool.key] = str(error)
    return [_row(tool, rounds, failures.get(tool.key)) for tool in tools]


def _round(tool: Tool, settings: BenchSettings) -> Round:
    counts = settings.small, min(settings.large, _MOST.get(tool.key, settings.large))
    small, large = (measure(tool, count, settings.slots) for count in counts)
    return Round(small, large)


def _row(tool: Tool, rounds: _Rounds, failure: str | None) -> Row:
    measured = rounds[tool.key]
    if failure is not None or not measured:
        return Row(case=tool.title, note=failure or "not measured")
    return Row(
        case=f"{measured[0].large.count} null samples: {tool.title}",
        time_s=statistics.median(one.large.whole_s for one in measured),
        whole_ms=Round.middle(measured, "whole_ms"),
        marginal_ms=Round.middle(measured, "marginal_ms"),
        ratio=_ratio(rounds, tool.key, BareLoop.key),
        memory_mb=max(one.large.memory_mb for one in measured),
        entries=Round.middle(measured, "entries"),
        goals=_goals(rounds) if tool.key == Plugin.key else (),
    )


def _ratio(rounds: _Rounds, key: str, other: str) -> float | None:
    """Return the median over the rounds: the marginal time of a tool, divided by that of another tool."""
    pairs = list(zip(rounds[key], rounds.get(other, []), strict=False))
    return statistics.median(a.marginal_ms / b.marginal_ms for a, b in pairs) if pairs else None


def _goals(rounds: _Rounds) -> tuple[Goal, ...]:
    key = Plugin.key
    return (
        Goal.at_most("marginal / bare loop", _ratio(rounds, key, BareLoop.key), 1.15),
        Goal.at_most("marginal / HyperQueue", _ratio(rounds, key, HyperQueue.key), 1.0),
        Goal.at_most("marginal / Merlin", _ratio(rounds, key, Merlin.key), 0.2),
        Goal.at_most("files and directories", Round.middle(rounds[key], "entries"), 4.0),
    )
