"""The command line: ``python -m benchmarks [--quick] [--only NAMES] [--slots N] [--rounds N]``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from benchmarks.report import print_markdown, print_table
from benchmarks.rows import Row
from benchmarks.scenarios.control import control_rows
from benchmarks.scenarios.latency import latency_rows
from benchmarks.scenarios.null_samples import TOOLS, null_samples
from benchmarks.scenarios.plain_specification import plain_specification_rows
from benchmarks.scenarios.records import records_rows
from benchmarks.scenarios.start import start_rows
from benchmarks.scenarios.status import status_rows
from benchmarks.scenarios.steps import steps_rows
from benchmarks.scenarios.submit import submit_rows
from benchmarks.scenarios.utilisation import utilisation_rows
from benchmarks.scenarios.workers import workers_rows
from benchmarks.settings import BenchSettings
from benchmarks.tools.bare_loop import BareLoop

SCENARIOS: dict[str, Callable[[BenchSettings], list[Row]]] = {
    "null": null_samples,
    "start": start_rows,
    "records": records_rows,
    "steps": steps_rows,
    "workers": workers_rows,
    "control": control_rows,
    "plain": plain_specification_rows,
    "submit": submit_rows,
    "latency": latency_rows,
    "status": status_rows,
    "utilisation": utilisation_rows,
}
_TOOL_KEYS = tuple(tool.key for tool in TOOLS)


def main() -> int:
    """Run the selected scenarios, and print the table."""
    arguments = _parser().parse_args()
    settings = _settings(arguments)
    chosen = arguments.only or SCENARIOS
    # SIGTERM, like Ctrl-C, runs the exits of the contexts, which end processes and remove directories.
    signal.signal(signal.SIGTERM, _exit)
    rows: list[Row] = []
    for name, scenario in SCENARIOS.items():
        if name in chosen or (name == "null" and set(chosen) & set(_TOOL_KEYS)):
            try:
                rows += scenario(settings)
            except Exception as error:  # the results of the other scenarios took long to measure
                traceback.print_exc()
                rows.append(Row(case=name, note=f"the scenario has failed: {error!r}"))
    (print_markdown if arguments.markdown else print_table)(rows, settings)
    return 0


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    description = "Measure the plugin and other tools."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    names = (*SCENARIOS, *_TOOL_KEYS)
    parser.add_argument("--quick", action="store_true", help="one round with few samples")
    parser.add_argument("--only", type=_names, metavar="NAMES", help=f"comma-separated names out of: {','.join(names)}")
    parser.add_argument("--slots", type=int, default=len(os.sched_getaffinity(0)), help="samples that run in parallel")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (default: 3; 1 with --quick)")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in (*SCENARIOS, *_TOOL_KEYS):
            raise argparse.ArgumentTypeError(f"unknown name '{name}'; names are {', '.join((*SCENARIOS, *_TOOL_KEYS))}")
    return names


def _settings(arguments: argparse.Namespace) -> BenchSettings:
    quick, only = arguments.quick, arguments.only or ()
    tools = tuple(key for key in _TOOL_KEYS if key in only) or _TOOL_KEYS
    return BenchSettings(
        slots=arguments.slots,
        rounds=arguments.rounds or (1 if quick else 3),
        small=100 if quick else 1000,
        large=600 if quick else 12000,
        submit_rows=(1_000, 1_000_000) if quick else (1_000, 100_000, 1_000_000),
        chain=4 if quick else 8,
        status_rows=1_000_000,
        records=(50, 100, 200) if quick else (500, 1000, 2000),
        steps=(5, 10, 20) if quick else (20, 40, 80),
        workers=(25, 50, 100) if quick else (125, 250, 500),
        tools=tuple(dict.fromkeys((BareLoop.key, *tools))),
    )


if __name__ == "__main__":
    sys.exit(main())
