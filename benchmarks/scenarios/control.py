"""Control of a large study: what a conductor costs while its step records wait, and how soon a cancellation ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Goal, Row
from benchmarks.scenarios.submit import cancel
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import command
from benchmarks.workloads import Study, write_table

__all__ = ["control_rows"]

_SAMPLES = 5
_CMD = "sleep 600  # $(P) $(MERLIN_SAMPLE_ID)"
_OBSERVED_S = 30.0
_SETTLE_S = 10.0
_LIMIT_S = 300.0
_CPU_GOAL = 0.05
_CANCEL_GOAL_S = 10.0


def control_rows(settings: BenchSettings) -> list[Row]:
    """Submit studies whose samples wait; return a row for the conductor and one for each cancellation."""
    count = settings.records[-1]
    say(f"control of {count} step records")
    rows: list[Row] = []
    for measure in (_waiting, _cancelled_while_submitting):
        try:
            with scratch() as directory, Processes(directory) as processes:
                _submit(directory, count, settings.slots, processes)
                rows += measure(directory / "results", count, processes)
        except BenchmarkError as error:
            rows.append(Row(case=f"control of {count} step records", note=str(error)))
    return rows


def _submit(directory: Path, count: int, slots: int, processes: Processes) -> None:
    table = write_table(directory / "samples.npy", _SAMPLES)
    study = Study(table=table, worker_args=f"--concurrency {slots}", cmd=_CMD, values=count)
    study.write(directory / "study.yaml")
    processes.run([command("maestro"), "run", "-y", "-s", "60", "-o", directory / "results", directory / "study.yaml"])


def _waiting(study: Path, count: int, processes: Processes) -> list[Row]:
    _await(lambda: _submitted(study) >= count, "all step records")
    time.sleep(_SETTLE_S)
    conductor = _conductor(study)
    begin, before = time.perf_counter(), sum(conductor.cpu_times()[:2])
    time.sleep(_OBSERVED_S)
    share = (sum(conductor.cpu_times()[:2]) - before) / (time.perf_counter() - begin)
    goal = Goal.at_most("share of a core", share, _CPU_GOAL)
    return [
        Row(case=f"conductor of {count} waiting step records: {100 * share:.1f} % of a core", goals=(goal,)),
        _cancel(f"maestro cancel of {count} waiting step records", study, processes),
    ]


def _cancelled_while_submitting(study: Path, count: int, processes: Processes) -> list[Row]:
    _await(lambda: _submitted(study) >= count // 4, "a quarter of the step records")
    return [_cancel(f"maestro cancel while {count} step records are submitted", study, processes)]


def _cancel(case: str, study: Path, processes: Processes) -> Row:
    """Cancel a study; measure until its conductor and its samples have ended."""
    begin = time.perf_counter()
    cancel(study, processes)
    _await(lambda: not processes.pids(), "the end of all processes")
    time_s = time.perf_counter() - begin
    return Row(case=case, time_s=time_s, goals=(Goal.at_most("time", time_s, _CANCEL_GOAL_S, " s"),))


def _submitted(study: Path) -> int:
    records = study / "merlin_info" / "records"
    return sum("manifest.json" in files for _, _, files in os.walk(records))


def _conductor(study: Path) -> psutil.Process:
    for process in psutil.process_iter():
        if any(Path(word).name == "conductor" for word in process.cmdline()[:2]) and str(study) in process.cmdline():
            return process
    raise ToolFailedError("the study has no conductor")


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise ToolFailedError(f"no sign of {what} after {_LIMIT_S:.0f} s")
        time.sleep(0.1)
