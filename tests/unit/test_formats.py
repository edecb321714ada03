"""Readers of damaged files: each raises the error that its docstring names, or does without the file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from damages import check_damages
from ensembles import RELATIVE, a_study

from maestro_celery_plugin.batch.allocation import Allocation, last_allocation, read_allocations
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.errors import SampleError, StudyError
from maestro_celery_plugin.host.start import host_of, write_host
from maestro_celery_plugin.maestro.correction import check_complete
from maestro_celery_plugin.maestro.limits import Limits, store_update
from maestro_celery_plugin.maestro.limits import _pending as pending_update
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.samples.table import recorded_identity
from maestro_celery_plugin.states import AllocationState, MemberState, WorkerState
from maestro_celery_plugin.study.additions import Addition, AdditionFile, Additions, read_additions, write_additions
from maestro_celery_plugin.study.broken_machines import BrokenMachine, read_broken_machines, write_broken_machines
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.conductor_starts import count_start
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.notifications import Notified, notify_command, store_notify
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import Reason, read_reasons, store_refusal, write_reasons
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.study.status_csv import read_rows
from maestro_celery_plugin.study.stopped_workers import StoppedGroups, read_stopped, request_worker_stop
from maestro_celery_plugin.study.worker_facts import WorkerFacts, read_facts, write_facts
from maestro_celery_plugin.study.worker_start import read_start, write_start

pytestmark = pytest.mark.timeout(60 if "DAMAGE_EXAMPLES" not in os.environ else 45)

BEAT = Heartbeat(
    name="w-1", group="w", host="h", node="n", supervisor=(1, 2), process=(3, 4), slots=2, beat=7, state=WorkerState.BUSY,
    allocation="w/1", ends_at=5.5, out_of_time=(("0", 1),), machine="m", started_at=1.5,
)  # fmt: skip
STATUS = """\
Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params
sim_X.1,--,sim/X.1,FINISHED,1,2,3,4,5,0,X:1;Y:2
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> StudyPlan:
    """A study that has every small file."""
    plan, _ = a_study(tmp_path_factory.mktemp("formats") / "study", samples=3)
    session = Session.create(plan.session)
    session.write_broker(BrokerLocation(url="redis://localhost", supervisor=(1, 2), generation="g", machine="m"))
    session.write_broker_host("127.0.0.1")
    session.heartbeats.write(BEAT)
    session.conductors.write(1, ["w/1"], study="1", needs=["w"])
    session.write_group(GroupConfig(group="w", queues=("q",)))
    write_start(session, "w", "w-1")
    write_host(session, ProcessId(1, 2))
    write_facts(session, WorkerFacts(name="w-1", group="w", node="n", versions={"Python": "3"}))
    (session.path / "environment.json").write_text(json.dumps({"NAME_OF_TEST": "value"}))
    request_worker_stop(session.path, ["w"], "A user has stopped them.")
    members = Members(session.path)
    members.write(Member(id="1", number=1, root=str(plan.root), state=MemberState.RUNNING, groups={"w": {}}, conductor=("true",)))
    members.write_environment("1", {"NAME_OF_TEST": "value"})
    directory = plan.allocations / "w" / "1"
    directory.mkdir(parents=True)
    Allocation("w", 1, directory, job="7", state=AllocationState.RUNNING).store()
    write_reasons(plan.reasons, {"sim_X.1": Reason("It is late.")})
    store_refusal(plan.refusals, "sim_X.1", "no")
    write_broken_machines(plan.broken_machines, [BrokenMachine(node="n", worker="w-1", reason="r", samples=3)])
    CancelledSteps(plan.cancelled_steps).add(["sim_X.1"])
    NativeStepState(plan.native / "job").write_job("8", "/tmp")
    Notified(plan).add("end")
    store_notify(plan, option=None, configuration="true")
    store_update(plan, {"throttle": 3})
    count_start(plan)
    plan.update_request.write_text(yaml.safe_dump({"throttle": 2, "rlimit": 1, "sleep": 3}))
    write_additions(plan, Additions(added=(Addition(file="1.csv", rows=3, used=2, key="k"),)))
    recorded_identity(plan.info / "samples.csv", plan.info)
    (plan.root / "status.csv").write_text(STATUS)
    (plan.info / "specifications").mkdir()
    (plan.info / "specifications" / "incomplete").write_text("3\n/there/study.yaml")
    return plan


@dataclasses.dataclass(frozen=True)
class Format:
    """A file, and its reader.

    Attributes:
        file: The path of the file, below the study.
        read: Reads the file, and uses what it has read as the package does.
        errors: What may be raised.
    """

    file: str
    read: Callable[[StudyPlan], Any]
    errors: tuple[type[Exception], ...] = ()


def session_of(plan: StudyPlan) -> Session:
    return Session(plan.session)


def read_manifest(plan: StudyPlan) -> None:
    (manifest,) = Manifest.read_all(plan.records) or (None,)
    if manifest is not None:
        assert type(manifest.samples) is int and manifest.samples >= 0
        assert len(manifest.paths.glob) < 1000
        if manifest.samples:
            manifest.paths.of(manifest.samples - 1)
        assert manifest.retry_delay_s >= 0


def read_plan(plan: StudyPlan) -> None:
    found = StudyPlan.read(plan.root)
    assert isinstance(found.number, int)
    assert 0 <= found.rows <= found.hierarchy
    json.dumps([str(found.session), str(found.specification_files), str(found.table), found.timestamp, found.overrides.variables])


def read_heartbeats(plan: StudyPlan) -> None:
    heartbeats = session_of(plan).heartbeats
    beats, _ = heartbeats.read()
    for beat in beats:
        assert beat.name == "w-1"  # the name of the file: a worker is never taken for another one
        assert beat.slots >= 0
        assert beat.place and beat.is_here in (True, False) and beat.is_in_numbered_allocation in (True, False)
        assert ProcessId(*beat.process).is_alive in (True, False)
        assert all(pid >= 0 for pid in (beat.process[0], beat.supervisor[0]))
    heartbeats.fresh(beats)
    assert heartbeats.exists("w-1") in (True, False)


def read_conductors(plan: StudyPlan) -> None:
    conductors = session_of(plan).conductors
    conductors.read_all()
    conductors.live_elsewhere("1")
    for names in (conductors.read("1").working, conductors.read("1").needs):
        assert names is None or all(isinstance(name, str) for name in names)


def read_members(plan: StudyPlan) -> None:
    members = Members(plan.session)
    found = members.all()
    assert [member.id for member in found] in ([], ["1"])
    members.living()
    for member in found:
        assert not any("\0" in word for word in (*member.conductor, member.directory, member.log, member.root))
        assert 0 <= member.number < 2**63
        assert members.next_number() == member.number + 1


def read_environments(plan: StudyPlan) -> None:
    for variables in (session_of(plan).apply_environment(), Members(plan.session).read_environment("1")):
        assert variables in ({}, {"NAME_OF_TEST": "value"}) or all(map(is_variable, variables.items()))


def is_variable(item: tuple[str, str]) -> bool:
    name, value = item
    return bool(name) and "=" not in name and "\0" not in name + value


def read_allocation_files(plan: StudyPlan) -> None:
    for allocation in (*read_allocations(plan.allocations), last_allocation(plan.allocations, "w")):
        if allocation is not None:
            assert allocation.is_open in (True, False) and allocation.output == "" and allocation.slots >= 0


def read_native(plan: StudyPlan) -> None:
    state = NativeStepState(plan.native / "job")
    assert isinstance(state.read_job(), str | int | None)
    assert state.directory is None or "\0" not in str(state.directory)
    assert state.is_interrupted in (True, False)


def read_limits(plan: StudyPlan) -> None:
    for limits in (Limits().merged(store_update(plan, {})), pending_limits(plan)):
        assert all(value is None or 0 <= value < 2**31 for value in vars(limits).values())


def pending_limits(plan: StudyPlan) -> Limits:
    from maestro_celery_plugin.maestro.limits import _from

    return _from(pending_update(plan))


def read_notified(plan: StudyPlan) -> None:
    assert "reallocation w/1" not in Notified(plan)


def read_additions_file(plan: StudyPlan) -> None:
    additions = read_additions(plan)
    assert all(0 <= addition.used <= addition.rows and Path(addition.file).name == addition.file for addition in additions.added)
    assert AdditionFile(plan).total() == plan.rows + additions.count


def read_note(plan: StudyPlan) -> None:
    with contextlib.suppress(StudyError):  # it says what to do
        check_complete(plan)


def read_stops(plan: StudyPlan) -> None:
    stopped = read_stopped(plan.session)
    if stopped is not None:
        assert isinstance(stopped, StoppedGroups)
        assert stopped.sentence and stopped.advice(plan.root) and json.dumps(stopped.to_json(), allow_nan=False)


FORMATS = (
    Format("batch.info", read_plan, (StudyError,)),
    Format("status.csv", lambda plan: read_rows(plan.root), (StudyError, OSError)),
    Format(f"merlin_info/records/{RELATIVE}/manifest.json", read_manifest, (StudyError, OSError)),
    Format("merlin_info/allocations/w/1/allocation.json", read_allocation_files, (StudyError, OSError)),
    Format("merlin_info/reasons.json", lambda plan: read_reasons(plan.reasons)),
    Format("merlin_info/refusals.json", lambda plan: read_reasons(plan.refusals)),
    Format("merlin_info/broken_machines.json", lambda plan: [m.sentence for m in read_broken_machines(plan.broken_machines)]),
    Format("merlin_info/cancelled_steps.json", lambda plan: CancelledSteps(plan.cancelled_steps).names(), (OSError,)),
    Format("merlin_info/plain/job/job.json", read_native, (OSError,)),
    Format("merlin_info/notified.json", read_notified, (OSError,)),
    Format("merlin_info/limits.json", read_limits, (OSError,)),
    Format(".study.update.lock", pending_limits, (OSError,)),
    Format("merlin_info/specifications/incomplete", read_note, (OSError,)),
    Format("merlin_info/conductor.starts", lambda plan: count_start(plan)),
    Format("merlin_info/additions.json", read_additions_file, (StudyError, OSError)),
    Format("merlin_info/workers/w-1.json", lambda plan: read_facts(session_of(plan))),
    Format("merlin_info/session/secret", lambda plan: (session_of(plan).id, session_of(plan).queue("q")), (StudyError,)),
    Format("merlin_info/session/broker.json", lambda plan: session_of(plan).read_broker(), (OSError,)),
    Format("merlin_info/session/broker_host", lambda plan: session_of(plan).broker_host, (StudyError, OSError)),
    Format("merlin_info/session/environment.json", read_environments, (StudyError,)),
    Format("merlin_info/session/studies/1.environment.json", read_environments, (StudyError, OSError)),
    Format("merlin_info/session/groups/w.json", lambda plan: session_of(plan).read_group("w").walltime_s, (StudyError,)),
    Format("merlin_info/session/groups/w.start", lambda plan: getattr(read_start(session_of(plan), "w"), "is_under_way", None), (OSError,)),
    Format("merlin_info/session/host.json", lambda plan: host_of(session_of(plan)), (OSError,)),
    Format("merlin_info/session/workers/w-1.json", read_heartbeats, (OSError,)),
    Format("merlin_info/session/workers_stopped", read_stops, (OSError,)),
    Format("merlin_info/session/conductors/1.json", read_conductors, (OSError,)),
    Format("merlin_info/session/studies/1.json", read_members, (OSError,)),
    Format("merlin_info/session/notify/0.json", notify_command, (StudyError, OSError)),
    Format("merlin_info/samples.csv.*.json", lambda plan: recorded_identity(plan.info / "samples.csv", plan.info), (StudyError, SampleError, OSError)),
)  # fmt: skip


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.file)
def test_a_damaged_file_is_an_error_of_its_reader_or_is_ignored(plan, form, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (path,) = plan.root.glob(form.file)
    form.read(plan)

    def check() -> None:
        try:
            form.read(plan)
        except form.errors as error:
            assert str(error)

    check_damages(path, check)
