"""Workers: one look of the coordinator at the heartbeats and ledgers of many workers, at three sizes.

The benchmark writes the files of the workers, because a machine has no room for the workers themselves.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Row
from benchmarks.scenarios.status import wait_for_manifest
from benchmarks.scenarios.submit import cancel, submit
from benchmarks.settings import BenchSettings, say

__all__ = ["workers_rows"]

_SAMPLES = 100_000
_LOOKS = 30


def workers_rows(settings: BenchSettings) -> list[Row]:
    """Measure a look for each number of workers; each worker has ended one more sample since the last look."""
    rows: list[Row] = []
    for count in settings.workers:
        case = f"a look of the coordinator at {count} workers"
        say(case)
        try:
            with scratch() as directory, Processes(directory) as processes:
                submit(directory, _SAMPLES, ".npy", settings.slots, processes)
                wait_for_manifest(directory / "results")
                cancel(directory / "results", processes)
                rows.append(Row(case=case, time_s=statistics.median(_looks(directory / "results", count))))
        except BenchmarkError as error:
            rows.append(Row(case=case, note=str(error)))
    return rows


def _looks(root: Path, count: int) -> list[float]:
    try:
        from maestro_celery_plugin.conductor.step_records import StepRecords
        from maestro_celery_plugin.conductor.worker_pool import WorkerPool
        from maestro_celery_plugin.config.groups import serving_groups
        from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
        from maestro_celery_plugin.ledger.writer import LedgerWriter
        from maestro_celery_plugin.study.manifest import Manifest
        from maestro_celery_plugin.study.plan import StudyPlan
        from maestro_celery_plugin.study.session import Session
    except ImportError as cause:
        raise ToolFailedError(f"the plugin is not installed here: {cause}") from cause
    plan = StudyPlan.read(root)
    session, groups = Session.create(plan.session), serving_groups(plan.settings)
    pool, records = WorkerPool(session, groups, {}), StepRecords(plan, groups)
    records.live_writers = pool.alive
    (group,) = groups
    beats = [_heartbeat(f"w-{number}", group) for number in range(count)]
    writers = [LedgerWriter(plan.ledger / f"{beat.name}{SUFFIX}", plan.number) for beat in beats]
    record = Manifest.read_all(plan.records)[0].number
    times = []
    for look in range(_LOOKS):
        for number, (beat, writer) in enumerate(zip(beats, writers, strict=True)):
            session.heartbeats.write(beat)
            sample = look * count + number
            writer.append(Kind.STARTED, record, 1, sample)
            writer.append(Kind.ENDED, record, 1, sample, 1000)
            writer.flush()
        begin = time.perf_counter()
        pool.refresh()
        records.follow()
        times.append(time.perf_counter() - begin)
    for writer in writers:
        writer.close()
    return times


def _heartbeat(name: str, group: str) -> Any:
    from maestro_celery_plugin.states import WorkerState
    from maestro_celery_plugin.study.heartbeats import Heartbeat

    return Heartbeat(
        name=name, group=group, host="elsewhere", node="elsewhere", supervisor=(1, 1), process=(1, 1), slots=64, beat=1,
        state=WorkerState.BUSY,
    )  # fmt: skip
