"""Steps: a study of many independent steps with ten step records each, beside plain Maestro, at three sizes."""

from __future__ import annotations

import statistics
import time

from benchmarks.errors import BenchmarkError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import run_in_foreground
from benchmarks.workloads import PlainStudy, Study, write_table

__all__ = ["steps_rows"]

_VALUES = 10
_CMD = "echo $(P)"


def steps_rows(settings: BenchSettings) -> list[Row]:
    """Run studies of each size with plain Maestro and with the plugin in turn; return two rows per size."""
    rows: list[Row] = []
    for count in settings.steps:
        case = f"{count} steps x {_VALUES} step records"
        say(case)
        try:
            times = [
                (_seconds(count, settings, is_plain=True), _seconds(count, settings)) for _ in range(settings.rounds)
            ]
        except BenchmarkError as error:
            rows.append(Row(case=case, note=str(error)))
            continue
        plain, ensemble = (statistics.median(column) for column in zip(*times, strict=True))
        rows += [
            Row(case=f"{case}: plain Maestro", time_s=plain),
            Row(case=f"{case}: this plugin", time_s=ensemble),
        ]
    return rows


def _seconds(count: int, settings: BenchSettings, *, is_plain: bool = False) -> float:
    with scratch() as directory, Processes(directory) as processes:
        specification = directory / "study.yaml"
        if is_plain:
            PlainStudy(cmd=_CMD, values=_VALUES, steps=count).write(specification)
        else:
            table, args = write_table(directory / "samples.npy", 1), f"--concurrency {settings.slots}"
            study = Study(table=table, worker_args=args, cmd=_CMD, steps=count, values=_VALUES, is_chain=False)
            study.write(specification)
        begin = time.perf_counter()
        run_in_foreground(specification, directory / "results", processes)
        return time.perf_counter() - begin
