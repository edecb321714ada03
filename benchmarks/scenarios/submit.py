"""Submission: the duration of ``maestro run``, for sample tables of several sizes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes, high_water_mb
from benchmarks.rows import Goal, Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import command
from benchmarks.workloads import Study, write_table

__all__ = ["cancel", "submit", "submit_rows"]

_LIMIT_S = 120.0
_END_LIMIT_S = 60.0
_MEMORY_GOAL_MB = 250.0


@dataclasses.dataclass(frozen=True)
class Submission:
    """One submission.

    Attributes:
        time_s: Seconds from the start of the command to its end.
        memory_mb: Peak resident memory of the `maestro run` process, in 10^6 bytes.
        left: Number of processes that still ran a minute after `maestro cancel`.
    """

    time_s: float
    memory_mb: float
    left: int = 0


def submit_rows(settings: BenchSettings) -> list[Row]:
    """Measure the submission of every size and format; return a row for each."""
    rows: list[Row] = []
    for suffix in (".npy", ".csv"):
        first: float | None = None
        for size in settings.submit_rows:
            case = f"submit {size:,} samples, {suffix}"
            say(case)
            try:
                runs = [_submission(size, suffix, settings.slots) for _ in range(settings.rounds)]
            except BenchmarkError as error:
                rows.append(Row(case=case, note=str(error)))
                continue
            row = _row(case, runs, first if size == settings.submit_rows[-1] else None)
            first = first or row.time_s
            rows.append(row)
    return rows


def _row(case: str, runs: list[Submission], first_s: float | None) -> Row:
    time_s = statistics.median(run.time_s for run in runs)
    memory_mb = max(run.memory_mb for run in runs)
    left = max(run.left for run in runs)
    goals: tuple[Goal, ...] = ()
    if first_s is not None:
        goals = (
            Goal.at_most("time / time of the smallest table", time_s / first_s, 2.0),
            Goal.at_most("memory", memory_mb, _MEMORY_GOAL_MB, " MB"),
        )
    note = f"{left} processes still ran {_END_LIMIT_S:.0f} s after `maestro cancel`" if left else ""
    return Row(case=case, time_s=time_s, memory_mb=memory_mb, goals=goals, note=note)


def _submission(size: int, suffix: str, slots: int) -> Submission:
    with scratch() as directory, Processes(directory) as processes:
        submission = submit(directory, size, suffix, slots, processes)
        return dataclasses.replace(submission, left=cancel(directory / "results", processes))


def submit(directory: Path, size: int, suffix: str, slots: int, processes: Processes) -> Submission:
    """Submit a study whose samples only sleep; its workspace is ``results`` in the directory.

    Raises:
        BenchmarkError: the command is missing or fails.
    """
    specification = directory / "study.yaml"
    table = write_table(directory / f"samples{suffix}", size)
    Study(table=table, worker_args=f"--concurrency {slots}", cmd="sleep 60  # $(MERLIN_SAMPLE_ID)").write(specification)
    line = [command("maestro"), "run", "-y", "-o", directory / "results", specification]
    begin = time.perf_counter()
    process, memory_mb = processes.start(line), 0.0
    while process.poll() is None:
        memory_mb = max(memory_mb, high_water_mb(process.pid))
        if time.perf_counter() - begin > _LIMIT_S:
            raise ToolFailedError(f"maestro run has not returned after {_LIMIT_S:.0f} s")
        time.sleep(0.005)
    time_s = time.perf_counter() - begin
    if process.returncode != 0:
        raise ToolFailedError(f"maestro run: exit code {process.returncode}; {processes.last_line(line)}")
    return Submission(time_s, memory_mb)


def cancel(results: Path, processes: Processes) -> int:
    """Cancel a study and wait for its end; return the number of its processes that still run.

    Raises:
        BenchmarkError: the command is missing or fails.
    """
    processes.run([command("maestro"), "cancel", "-y", results])
    return processes.wait(_END_LIMIT_S)
