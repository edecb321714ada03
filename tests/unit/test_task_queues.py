"""`maestro-celery queues`: the samples of each task queue."""

from __future__ import annotations

import json

from ensembles import RELATIVE, a_study
from msgspec.structs import replace

from maestro_celery_plugin.config.settings import ResourceSettings, StepFacts, WorkerGroupSettings
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.report import task_queues
from maestro_celery_plugin.study.session import Session

TABLE = """\
Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params
sim_A.1,sim_A.1#1,sim/A.1,RUNNING,--:--:--,--:--:--,--,--,--,0,A:1
sim_A.2,sim_A.2#1,sim/A.2,RUNNING,--:--:--,--:--:--,--,--,--,0,A:2"""


def test_a_sample_waits_in_one_task_queue(tmp_path, monkeypatch):
    """Given a step with a parameter in `task_queue`, then each step record counts in its own task queue."""
    monkeypatch.setattr(task_queues, "_broker_counts", lambda session, names: {})
    plan, manifest = a_study(tmp_path / "study")
    (plan.records / RELATIVE / "manifest.json").unlink()
    groups = ResourceSettings(workers={"w": WorkerGroupSettings(task_queues=("q1", "q2"))})
    settings = replace(plan.settings, resources=groups, steps={"sim": StepFacts(queues=("q1", "q2"))})
    (plan.root / "batch.info").write_text(json.dumps(type(plan)(root=plan.root, timestamp="t", settings=settings).to_batch()))
    plan = type(plan).read(plan.root)
    Session.create(plan.session)
    ledger = LedgerWriter(plan.ledger / "coordinator.ledger", plan.number)
    for number, samples in ((1, 10), (2, 3)):
        workspace = plan.root / "sim" / f"A.{number}"
        workspace.mkdir(parents=True, exist_ok=True)
        replace(
            manifest, number=number, name=f"sim_A.{number}", step="sim", workspace=str(workspace), samples=samples,
            task_queue=f"q{number}",
        ).write(plan.records / "sim" / f"A.{number}" / "manifest.json")  # fmt: skip
        ledger.append(Kind.SENT, number, 1, 0, samples)
    ledger.close()
    (plan.root / "status.csv").write_text(TABLE)

    queues = task_queues.task_queues(plan)

    assert [(queue.name, queue.waiting, queue.messages, queue.steps) for queue in queues] == [
        ("q1", 10, 1, ("sim",)),
        ("q2", 3, 1, ("sim",)),
    ]
