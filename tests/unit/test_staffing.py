"""Staffing: the end of an allocation is that of the step records it served, and of no others."""

from __future__ import annotations

import pytest
from ensembles import a_manifest

from maestro_celery_plugin.allocations import Allocation
from maestro_celery_plugin.batch_systems import JobReport
from maestro_celery_plugin.records import Records
from maestro_celery_plugin.session import Session
from maestro_celery_plugin.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.staffing import Staffing
from maestro_celery_plugin.states import AllocationState, RecordState
from maestro_celery_plugin.study import StudyPlan
from maestro_celery_plugin.workers import WorkerGroup


@pytest.mark.parametrize(
    ("state", "becomes"),
    [(AllocationState.CANCELLED, RecordState.CANCELLED), (AllocationState.TIMED_OUT, RecordState.TIMED_OUT)],
)
def test_the_end_of_an_allocation_concerns_the_records_of_its_groups_only(tmp_path, monkeypatch, state, becomes):
    """Given a record of a group that waits on another machine, then another group's allocation decides nothing of it."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    workers = {
        "near": WorkerGroupSettings(task_queues=("a",), batch={"type": "slurm"}),
        "far": WorkerGroupSettings(task_queues=("b",), machines=("elsewhere",)),
    }
    settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers))
    plan = StudyPlan(root=tmp_path, timestamp="t", settings=settings)
    groups = [WorkerGroup(name, group, group.task_queues) for name, group in workers.items()]
    records = Records(plan, groups)
    staffing = Staffing(plan, Session.create(plan.session), records, groups)
    trackers = {}
    for number, queue in enumerate("ab", 1):
        manifest = a_manifest(tmp_path, number=number, name=queue, workspace=str(tmp_path / queue), task_queue=queue)
        trackers[queue] = records.enter(manifest, queue)
        trackers[queue].begin(cancelled=False)
        trackers[queue].touched = True
    source = staffing._pool.allocation_sources[0]
    directory = plan.allocations / "near" / "1"
    directory.mkdir(parents=True)
    source.current = Allocation("near", 1, directory, job="7", state=AllocationState.RUNNING)
    monkeypatch.setattr(source._jobs, "report", lambda job: JobReport(state))

    for ended, allocation in staffing._pool.look_at_allocations():
        staffing._take_end(ended, allocation)

    assert records.state(trackers["a"]) is becomes
    assert records.state(trackers["b"]) is RecordState.PENDING
