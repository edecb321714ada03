"""Step records: a study of many step records with a few samples each, beside plain Maestro, at three sizes."""

from __future__ import annotations

import statistics
import time

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import measure, scratch
from benchmarks.processes import Processes
from benchmarks.rows import Goal, Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.bare_loop import BareLoop
from benchmarks.tools.plugin import command
from benchmarks.workloads import PlainStudy, Study, write_table

__all__ = ["records_rows"]

_SAMPLES = 5


def records_rows(settings: BenchSettings) -> list[Row]:
    """Run studies of each size with plain Maestro and with the plugin in turn; return the rows."""
    rows: list[Row] = []
    for count in settings.records:
        say(f"{count} step records")
        try:
            rows += _rows(count, settings)
        except BenchmarkError as error:
            rows.append(Row(case=f"{count} step records", note=str(error)))
    return rows


def _rows(count: int, settings: BenchSettings) -> list[Row]:
    plain_s, ensemble_s, status_s, loop_s = [], [], [], []
    for _ in range(settings.rounds):
        plain_s.append(_plain(count))
        run_s, look_s = _ensemble(count, settings.slots)
        ensemble_s.append(run_s)
        status_s.append(look_s)
        loop_s.append(measure(BareLoop(), _SAMPLES * count, settings.slots).whole_s)
    plain, ensemble, loop = map(statistics.median, (plain_s, ensemble_s, loop_s))
    is_goal = count == settings.records[-1]
    goal = Goal.at_most("time", ensemble, 2 * plain + loop, " s (2 x plain Maestro + the bare loop)")
    status = statistics.median(status_s)
    return [
        Row(case=f"{count} step records: plain Maestro", time_s=plain),
        Row(
            case=f"{count} step records x {_SAMPLES} samples: this plugin",
            time_s=ensemble,
            goals=(goal,) if is_goal else (),
        ),
        Row(
            case=f"status of {count} step records",
            time_s=status,
            goals=(Goal.at_most("time", status, 1.0, " s"),) if is_goal else (),
        ),
    ]


def _plain(count: int) -> float:
    with scratch() as directory, Processes(directory) as processes:
        PlainStudy(cmd="echo $(P)", values=count).write(directory / "study.yaml")
        begin = time.perf_counter()
        processes.run([command("maestro"), "run", "-fg", "-y", "-o", directory / "results", directory / "study.yaml"])
        return time.perf_counter() - begin


def _ensemble(count: int, slots: int) -> tuple[float, float]:
    """Return the seconds of the study, and those of its status."""
    with scratch() as directory, Processes(directory) as processes:
        table = write_table(directory / "samples.npy", _SAMPLES)
        cmd = "echo $(P) $(MERLIN_SAMPLE_ID)"
        study = Study(table=table, worker_args=f"--concurrency {slots}", cmd=cmd, values=count)
        study.write(directory / "study.yaml")
        begin = time.perf_counter()
        processes.run([command("maestro"), "run", "-fg", "-y", "-o", directory / "results", directory / "study.yaml"])
        end = time.perf_counter()
        outputs = sum(1 for _ in (directory / "results").rglob("null0*.out"))
        if outputs != _SAMPLES * count:
            raise ToolFailedError(f"{outputs} of {_SAMPLES * count} samples have output")
        looked = time.perf_counter()
        processes.run([command("maestro-celery"), "status", directory / "results"])
        return end - begin, time.perf_counter() - looked
