"""The status of a study, read from its files."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, new_directory
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    StepFacts,
    WorkerGroupSettings,
)
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import shared_lock
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.machine import host_name, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.report import failed_samples, status_view, steps_table
from maestro_celery_plugin.report.broker_check import BrokerCheck
from maestro_celery_plugin.report.exit_codes import StudyCode, code_of
from maestro_celery_plugin.report.explain import explain
from maestro_celery_plugin.report.model import StepStatus, StudyState
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_status import RecordSamples, SampleStatus, values_of
from maestro_celery_plugin.report.terminal import command_words, duration_words, shortened
from maestro_celery_plugin.states import AllocationState, WorkerState, cannot_run_code
from maestro_celery_plugin.study import conductor_beats, conductor_lock
from maestro_celery_plugin.study.conductor_beats import CONDUCTOR_LIMIT_S
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S, Heartbeat, Heartbeats
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.study.status_csv import read_rows

HEADER = (
    "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,"
    "Number Restarts,Params"
)
SETTINGS = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers={"w": WorkerGroupSettings()}))


class Study:
    """The directory of a study as `maestro run` and a conductor leave it."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.plan = StudyPlan(root=root, timestamp="20260101-000000", settings=SETTINGS)
        (root / "batch.info").write_text(yaml.safe_dump(self.plan.to_batch()))
        (root / "demo.study.pkl").touch()
        self.plan.info.mkdir()
        self.session = Session.create(self.plan.session)
        (self.plan.info / "samples.csv").write_text("".join(f"{i / 10},[b]name {i}\n" for i in range(10)))

    def submit(self, number: int = 1, samples: int = 10, *, sampled: bool = True) -> Manifest:
        """Write the manifest of a step record ``sim_X.<number>``, and the ledger entry of its messages."""
        name = f"sim_X.{number}"
        manifest = Manifest(
            number=number,
            name=name,
            step="sim",
            workspace=str(self.plan.root / "sim" / f"X.{number}"),
            script=name,
            cmd="true",
            restart="true",
            shell="/bin/bash",
            sampled=sampled,
            samples=samples,
            labels=["A", "NAME"] if sampled else [],
            table=str(self.plan.info / "samples.csv") if sampled else None,
            index_cache=str(self.plan.info),
            level_max_dirs=5,
            task_queue="merlin",
            max_retries=2,
            retry_delay_s=1.0,
        )
        manifest.write(self.plan.records / "sim" / f"X.{number}" / "manifest.json")
        self.write("coordinator", (Kind.SENT, number, 1, 0, samples))
        return manifest

    def write(self, writer: str, *entries: tuple[Kind, int, int, int, int], code: int = 0) -> None:
        """Append entries (kind, record, epoch, start, stop) to the ledger of a writer."""
        ledger = LedgerWriter(self.plan.ledger / f"{writer}.ledger")
        for entry in entries:
            ledger.append(*entry, code=code)
        ledger.close()

    def run(self, sample: int, code: int = 0, *, record: int = 1, duration_us: int = 1000) -> None:
        """Write the ledger entries of an attempt of worker ``w-1``."""
        self.write("w-1", (Kind.STARTED, record, 1, sample, 0))
        self.write("w-1", (Kind.ENDED, record, 1, sample, duration_us), code=code)

    def write_table(self, *rows: str) -> None:
        """Write ``status.csv`` as Maestro does: without a line end after the last row."""
        (self.plan.root / "status.csv").write_text("\n".join([HEADER, *rows]))

    def beat(
        self, name: str, process: ProcessId, state: str = "busy", host: str | None = None, **values: object
    ) -> None:
        """Write the heartbeat of a worker."""
        pid = process.pid, process.start
        host = host or host_name()
        values |= {"name": name, "group": "w", "host": host, "node": host, "slots": 1, "beat": 1, "state": WorkerState(state)}
        self.session.heartbeats.write(Heartbeat(supervisor=pid, process=pid, **values))

    def conductor_lock(self) -> FileLock:
        """Return the lock of a live conductor; each call opens the file again."""
        return FileLock(self.plan.info / "conductor.lock")

    @property
    def reader(self) -> StatusReader:
        return StatusReader(self.plan.root)


def row(number: int, state: str, restarts: int = 0) -> str:
    job = "--" if state == "INITIALIZED" else f"sim_X.{number}#1"
    return f"sim_X.{number},{job},sim/X.{number},{state},--:--:--,--:--:--,--,--,--,{restarts},X:{number}"


DEAD = ProcessId(2**22 + 1, 1)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "study")


# --- before, during and after a run ---


def test_before_the_first_submission_every_step_record_is_listed_without_samples(study: Study) -> None:
    study.write_table(row(1, "INITIALIZED"), row(2, "INITIALIZED"))
    status = study.reader.read()
    assert status.state is StudyState.PENDING
    assert [(s.name, s.step, s.params, s.state) for s in status.steps] == [
        ("sim_X.1", "sim", {"X": "1"}, "INITIALIZED"),
        ("sim_X.2", "sim", {"X": "2"}, "INITIALIZED"),
    ]
    assert status.steps[0].samples == Counts(0, 0, 0, 0, 0)


def test_a_study_without_a_file_of_a_conductor_is_pending(study: Study) -> None:
    assert study.reader.read().state is StudyState.PENDING


def test_while_the_conductor_is_alive_the_ledger_has_priority_over_status_csv(study: Study) -> None:
    """Given Maestro has not polled since the submission, when samples run, then the step record is RUNNING."""
    study.submit()
    study.write_table(row(1, "PENDING"))
    study.run(0)
    study.run(1, code=3)
    study.write("w-1", (Kind.STARTED, 1, 1, 2, 0))
    study.beat("w-1", ProcessId.of(os.getpid()))
    with study.conductor_lock():
        status = study.reader.read()
    assert status.state is StudyState.RUNNING
    assert status.steps[0].state == "RUNNING"
    assert status.steps[0].samples == Counts(total=10, finished=1, failed=1, running=1, pending=7)


def test_the_lock_of_another_reader_is_not_a_conductor(study: Study) -> None:
    study.submit()
    study.write_table(row(1, "RUNNING"))
    study.conductor_lock().acquire().lock.release()
    with shared_lock(study.plan.info / "conductor.lock") as is_free:
        assert is_free
        assert study.reader.read().state is StudyState.INTERRUPTED


def test_a_native_step_has_maestros_state_and_no_samples(study: Study) -> None:
    """Given step records without a manifest, then the status has Maestro's state; without a conductor, RUNNING is INTERRUPTED."""
    native = [f"p{n},{job},p{n},{state},--:--:--,--:--:--,--,--,--,0," for n, job, state in
             ((1, "77", "RUNNING"), (2, "78", "FINISHED"), (3, "--", "INITIALIZED"))]  # fmt: skip
    study.write_table(*native)
    study.session.conductors.write(1)
    with study.conductor_lock():
        status = study.reader.read()
    assert status.state is StudyState.RUNNING
    assert [step.state for step in status.steps] == ["RUNNING", "FINISHED", "INITIALIZED"]
    assert {step.samples for step in status.steps} == {Counts(total=0, finished=0, failed=0, running=0, pending=0)}
    status = study.reader.read()
    assert status.state is StudyState.INTERRUPTED
    assert [step.state for step in status.steps] == ["INTERRUPTED", "FINISHED", "INITIALIZED"]


def test_a_conductor_whose_lock_this_machine_cannot_see_lives_while_its_heartbeat_is_fresh(study: Study, monkeypatch) -> None:
    """Given a file system with locks for each machine alone, then no second conductor starts on another machine."""
    study.write_table(row(1, "RUNNING"))
    study.session.conductors.write(1)
    path = study.plan.session / "conductors" / "0.json"
    path.write_text(path.read_text().replace(machine_id(), "elsewhere"))
    written_at = path.stat().st_mtime
    monkeypatch.setattr(conductor_beats, "file_system_now", lambda directory: written_at + CONDUCTOR_LIMIT_S - 1)
    assert study.reader.read().state is StudyState.RUNNING
    with pytest.raises(StudyError, match="Another conductor runs the study"):
        conductor_lock.acquire(study.plan)

    os.utime(path, (written_at - 2, written_at - 2))
    assert study.reader.read().state is StudyState.INTERRUPTED
    os.utime(path, (written_at, written_at))
    study.session.conductors.end("0")
    assert study.reader.read().state is StudyState.INTERRUPTED


def test_a_study_of_native_steps_ends_without_a_ledger(study: Study) -> None:
    study.write_table("p,--,p,FINISHED,--:--:--,--:--:--,--,--,--,0,")
    assert study.reader.read().state is StudyState.PENDING
    study.session.conductors.write(1)
    assert study.reader.read().state is StudyState.FINISHED


def test_without_a_conductor_samples_of_dead_workers_are_pending(study: Study) -> None:
    """Given an attempt of a live worker and one of a dead worker, then only the sample of the live worker is running."""
    study.submit()
    study.write_table(row(1, "RUNNING"))
    study.write("w-1", (Kind.STARTED, 1, 1, 0, 0))
    study.write("w-2", (Kind.STARTED, 1, 1, 1, 0))
    study.beat("w-1", ProcessId.of(os.getpid()))
    study.beat("w-2", DEAD)
    status = study.reader.read()
    assert status.state is StudyState.INTERRUPTED
    assert status.steps[0].state == "INTERRUPTED"
    assert status.steps[0].samples == Counts(total=10, finished=0, failed=0, running=1, pending=9)
    assert [(w.name, w.state) for w in status.workers] == [("w-1", "busy"), ("w-2", "dead")]


def test_a_sample_that_a_second_worker_has_started_counts_for_the_second_worker(study: Study) -> None:
    study.submit()
    study.write_table(row(1, "RUNNING"))
    study.write("w-2", (Kind.STARTED, 1, 2, 0, 0))
    study.write("w-1", (Kind.STARTED, 1, 1, 0, 0))
    study.beat("w-2", ProcessId.of(os.getpid()))
    assert study.reader.read().steps[0].samples.running == 1


@pytest.mark.parametrize("name", ["w-1", "w-1.77"], ids=["threads", "a process of a pool"])
def test_a_held_worker_is_shown_with_the_reason(study: Study, name: str) -> None:
    """Given a worker whose last samples have failed at once, then a user sees why it takes no samples."""
    study.submit()
    study.write_table(row(1, "RUNNING"))
    group = WorkerGroupSettings(task_queues=("merlin",))
    settings = replace(
        SETTINGS, resources=ResourceSettings(workers={"w": group}), steps={"sim": StepFacts(queues=("merlin",))}
    )
    plan = dataclasses.replace(study.plan, settings=settings)
    (study.plan.root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    here = ProcessId.of(os.getpid())
    for worker, state in {"w-1": WorkerState.IDLE, "w-1.78": WorkerState.BUSY, name: WorkerState.HELD}.items():
        study.beat(worker, here, state)
    with study.conductor_lock():
        assert [(w.name, w.state) for w in study.reader.read().workers] == [("w-1", "held")]
        console = Console(width=120, record=True)
        status_view.show(study.reader, console)
        ((_, sentences),) = explain(study.plan.root)

    assert "held  its last samples have failed; `maestro-celery explain`" in console.export_text()
    assert "w-1 (held, its last samples have failed; some of them run on another machine" in " ".join(sentences)


def test_a_heartbeat_that_is_removed_meanwhile_is_no_error(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.write_table()
    study.beat("w-1", DEAD, host="elsewhere")
    beats = study.session.heartbeats.all()
    study.session.heartbeats.remove("w-1")
    monkeypatch.setattr(Heartbeats, "all", lambda self: beats)

    assert [w.state for w in study.reader.read().workers] == ["dead"]


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_without_a_conductor_the_clock_of_this_machine_does_not_decide_which_workers_live(study: Study, monkeypatch, ahead_s):
    """Given a clock that differs from that of the file server, then only the times of files are compared."""
    study.beat("w-1", DEAD, host="elsewhere")
    study.beat("w-2", DEAD, host="elsewhere")
    path = study.session.heartbeats.path_of("w-2")
    before = path.stat().st_mtime - SILENCE_LIMIT_S - 1
    os.utime(path, (before, before))
    right = clock.now
    monkeypatch.setattr(clock, "now", lambda: right() + ahead_s)

    assert [w.state for w in study.reader.read().workers] == ["busy", "dead"]


def test_without_a_conductor_a_worker_of_another_machine_without_a_heartbeat_is_dead(study: Study) -> None:
    study.beat("w-1", DEAD, host="elsewhere")
    study.beat("w-2", DEAD, host="elsewhere")
    os.utime(study.plan.session / "workers" / "w-2.json", (1, 1))
    workers = study.reader.read().workers
    assert [(w.node, w.state) for w in workers] == [("elsewhere", "busy"), ("elsewhere", "dead")]
    with study.conductor_lock():
        assert [w.state for w in study.reader.read().workers] == ["busy", "busy"]


def test_the_processes_of_a_pool_count_as_their_worker(study: Study) -> None:
    study.beat("w-1", ProcessId.of(os.getpid()), state="idle")
    study.beat("w-1.77", ProcessId.of(os.getpid()), state="busy")
    assert [(w.name, w.state) for w in study.reader.read().workers] == [("w-1", "busy")]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["FINISHED", "FINISHED"], StudyState.FINISHED),
        (["FINISHED", "FAILED"], StudyState.FAILED),
        (["FINISHED", "TIMEDOUT"], StudyState.FAILED),
        (["FINISHED", "CANCELLED"], StudyState.CANCELLED),
        (["CANCELLED", "INITIALIZED"], StudyState.CANCELLED),
        (["CANCELLED", "RUNNING"], StudyState.INTERRUPTED),
        (["FINISHED", "INITIALIZED"], StudyState.INTERRUPTED),
        (["FINISHED", "PENDING"], StudyState.INTERRUPTED),
        ([], StudyState.INTERRUPTED),
    ],
)
def test_without_a_conductor_the_step_records_give_the_state_of_the_study(
    study: Study, states: list[str], expected: StudyState
) -> None:
    study.submit()
    study.write_table(*(row(number, state) for number, state in enumerate(states, 1)))
    assert study.reader.read().state is expected


def test_a_second_read_applies_new_entries(study: Study) -> None:
    study.submit()
    study.write_table(row(1, "RUNNING"))
    reader = study.reader
    study.run(0)
    assert reader.read().steps[0].samples.finished == 1
    study.run(1)
    study.submit(2, samples=3)
    study.run(0, record=2)
    status = reader.read()
    assert [(s.name, s.samples.finished, s.samples.total) for s in status.steps] == [
        ("sim_X.1", 2, 10),
        ("sim_X.2", 1, 3),
    ]


def test_entries_of_several_step_records_in_one_ledger_are_separated(study: Study) -> None:
    for number in (1, 2, 3):
        study.submit(number)
    study.write_table(*(row(number, "RUNNING", restarts=number) for number in (3, 2, 1)))
    for sample in range(3):
        for number in range(sample + 1, 4):
            study.run(sample, record=number)
    steps = study.reader.read().steps
    assert [(s.name, s.samples.finished, s.restarts) for s in steps] == [
        ("sim_X.3", 3, 3),
        ("sim_X.2", 2, 2),
        ("sim_X.1", 1, 1),
    ]


# --- status.csv ---


@pytest.mark.parametrize("job", ["--", "s_X.a,b#1"])
def test_values_with_commas_colons_and_semicolons_are_read_from_status_csv(study: Study, job: str) -> None:
    study.write_table(f"s_X.a,b,{job},s/X.ab,RUNNING,--,--,--,--,--,2,X:a,b;c;URL:http://x:1;Y:")
    (only,) = read_rows(study.plan.root)
    assert (only.name, only.step, only.state, only.restarts) == ("s_X.a,b", "s", "RUNNING", 2)
    assert only.params == {"X": "a,b;c", "URL": "http://x:1", "Y": ""}


def test_an_incomplete_status_csv_does_not_hide_a_submitted_step_record(study: Study) -> None:
    study.submit()
    study.write_table("sim_X.1,sim_X")
    assert [s.name for s in study.reader.read().steps] == ["sim_X.1"]


# --- rate ---


def ends(times: list[float], codes: int | list[int] = 0, *, duration_s: float = 1.0) -> np.ndarray:
    from maestro_celery_plugin.ledger.entries import ENTRY

    entries = np.zeros(len(times), ENTRY)
    entries["kind"], entries["epoch"], entries["time"], entries["code"] = Kind.ENDED, 1, times, codes
    entries["start"], entries["stop"] = np.arange(len(times)), duration_s * 1e6
    return entries


def test_the_rate_is_that_of_the_last_minute(study: Study) -> None:
    """Given 1 sample/s for 100 s, a day's pause, and 5 samples/s for 20 s, then the rate is 5/s."""
    record = RecordSamples(study.submit(samples=500))
    times = [*np.arange(100.0), *(86400 + np.arange(100) / 5)]
    record.apply(ends(times), np.zeros(len(times), int))
    assert record.rate() == pytest.approx(5.0)


def test_the_rate_of_few_long_samples_uses_more_than_the_last_minute(study: Study) -> None:
    record = RecordSamples(study.submit(samples=500))
    record.apply(ends([*(np.arange(30) * 100.0)], duration_s=100.0), np.zeros(30, int))
    assert record.rate() == pytest.approx(0.01)


def test_the_rate_is_that_of_live_workers(study: Study) -> None:
    """Given 12 samples of a dead worker, an hour later 4 samples of a live worker in 8 s, then the rate is 0.5/s."""
    record = RecordSamples(study.submit(samples=50))
    started = ends([0.0, 3600.0])
    started["kind"] = Kind.STARTED
    record.apply(started, np.array([0, 1]))
    record.apply(ends([*np.arange(12.0), *(3600 + np.array([2.0, 4.0, 6.0, 8.0]))], duration_s=2.0), np.repeat([0, 1], [12, 4]))
    assert record.rate(np.array([False, True])) == pytest.approx(0.5)
    assert record.rate(np.array([False, False])) == record.rate()


def test_a_rate_counts_only_the_time_in_which_samples_ran(study: Study) -> None:
    """Given 4 samples of 10 s one after the other, and a night between the second and the third, the rate is 0.1/s."""
    record = RecordSamples(study.submit(samples=50))
    times = [10.0, 20.0, 40030.0, 40040.0]
    record.apply(ends(times, duration_s=10.0), np.zeros(4, int))
    assert record.rate() == pytest.approx(0.1)


def test_a_rate_counts_the_time_of_attempts_that_end_without_a_sample(study: Study) -> None:
    """Given an attempt that was stopped and one that requests another, then their time counts."""
    record = RecordSamples(study.submit(samples=50))
    entries = ends([10.0, 20.0, 30.0], [0, 100, 0], duration_s=10.0)
    entries["kind"][0] = Kind.STOPPED
    record.apply(entries, np.zeros(3, int))
    assert record.rate() == pytest.approx(1 / 30)


def test_a_rate_counts_the_time_of_a_long_sample_that_still_runs(study: Study) -> None:
    """Given a sample that runs since 0 s, and two that have ended at 10 s and 100 s, then the rate is 0.02/s."""
    record = RecordSamples(study.submit(samples=50))
    started = ends([0.0])
    started["kind"], started["start"] = Kind.STARTED, 7
    record.apply(started, np.zeros(1, int))
    record.apply(ends([10.0, 100.0], duration_s=10.0), np.zeros(2, int))
    assert record.rate(np.array([True])) == pytest.approx(0.02)
    assert record.rate() == pytest.approx(0.1), "nobody lives who runs it"


def test_many_samples_in_two_allocations_have_the_rate_without_the_time_between(study: Study) -> None:
    """Given 1 sample/s for 15 s in each of two allocations with 40 s between, then the rate is about 1/s."""
    record = RecordSamples(study.submit(samples=50))
    times = [*np.arange(1.0, 16.0), *np.arange(56.0, 71.0)]
    record.apply(ends(times), np.zeros(30, int))
    assert record.rate() == pytest.approx(1.0, rel=0.05)


def test_an_attempt_that_requests_another_attempt_does_not_count_for_the_rate(study: Study) -> None:
    record = RecordSamples(study.submit())
    record.apply(ends([1.0, 2.0], [100, 104]), np.zeros(2, int))
    assert record.rate() is None


def test_the_time_left_is_the_number_of_open_samples_divided_by_the_rate(study: Study) -> None:
    study.submit()
    study.write_table(row(1, "RUNNING"))
    study.run(0)
    with study.conductor_lock():
        step = study.reader.read().steps[0]
    assert step.rate
    assert step.time_left_s == pytest.approx(9 / step.rate)
    assert study.reader.read().steps[0].time_left_s is None, "no sample runs without a conductor"


# --- samples ---


def test_failed_samples_have_values_directory_and_code(study: Study) -> None:
    study.submit()
    study.run(7, code=3)
    reader = study.reader
    reader.read()
    (sample,) = reader.failed(10)
    assert (sample.index, sample.code) == (7, 3)
    assert sample.directory == study.plan.root / "sim/X.1/1/2"
    assert values_of([sample]) == [{"A": "0.7", "NAME": "[b]name 7"}]


def test_failed_samples_have_no_values_without_the_sample_table(study: Study) -> None:
    manifest = study.submit()
    study.run(7, code=3)
    Path(manifest.table or "").unlink()
    reader = study.reader
    reader.read()
    assert values_of(reader.failed(10)) == [None]


def test_failed_samples_have_no_values_if_a_reader_has_an_error(study: Study, monkeypatch) -> None:
    """Given a reader that fails in a way of its own, then the list of failed samples is shown without values."""

    def fail(*arguments: object) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("maestro_celery_plugin.study.additions.open_table", fail)
    study.submit()
    study.run(7, code=3)
    reader = study.reader
    reader.read()
    assert values_of(reader.failed(10)) == [None]


def test_the_slowest_samples_of_all_step_records_come_first(study: Study) -> None:
    for number in (1, 2):
        study.submit(number)
        for sample in range(10):
            study.run(sample, record=number, duration_us=100 * sample + number)
    reader = study.reader
    reader.read()
    found = [(s.manifest.number, s.index) for s in reader.slowest(3)]
    assert found == [(2, 9), (1, 9), (2, 8)]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (3, "exit code 3"),
        (102, "exit code 102 (hard fail)"),
        (104, "exit code 104 (retry, too often)"),
        (-signal.SIGKILL, "SIGKILL"),
        (-40, "signal 40"),
        (cannot_run_code(28), "it could not start: No space left on device"),
    ],
)
def test_exit_codes_as_text(study: Study, code: int, text: str) -> None:
    sample = SampleStatus(manifest=study.submit(), index=0, code=code, duration_s=1.0, losses=0)
    assert sample.end == text


# --- terminal ---


def page_of(study: Study, width: int = 100, *, failed_limit: int | None = None) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        if failed_limit is None:
            status_view.show(study.reader, console)
        else:
            failed_samples.show_failed(study.reader, console, failed_limit)
        return console.export_text()


@pytest.mark.parametrize("width", [80, 140])
def test_the_page_shows_the_end_of_stderr_with_escaped_control_sequences(study: Study, width: int) -> None:
    manifest = study.submit()
    study.write_table(row(1, "RUNNING"))
    study.run(7, code=3)
    directory = Path(manifest.workspace, "1/2")
    directory.mkdir(parents=True)
    (directory / "sim_X.1.err").write_bytes(b"first\n" * 10000 + b"\x1b[2J[bold]evil\xff\nlast\n")
    text = page_of(study, width)
    assert "exit code 3" in text
    assert "\\x1b[2J[bold]evil\ufffd" in text
    assert "\x1b" not in text
    assert "maestro-celery resume" in text
    assert all(len(line) <= width for line in text.splitlines() if str(study.plan.root) not in line)
    for command in ("resume", "failed"):
        assert f"maestro-celery {command} {study.plan.root}" in text, "a command is not broken"


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        ("new\n", ["new"]),
        ("", ["(no stderr; that of an earlier attempt:)", "old"]),
    ],
)
def test_stderr_of_an_earlier_attempt_is_set_apart(study: Study, last: str, shown: list[str]) -> None:
    manifest = study.submit()
    study.run(7, code=3)
    directory = Path(manifest.workspace, "1/2")
    directory.mkdir(parents=True)
    (directory / "sim_X.1.err").write_text(f"old\n=== run again with cmd, 2026-01-01 00:00:00 ===\n{last}")
    lines = [line.strip() for line in page_of(study).partition("Failed samples\n")[2].splitlines()]
    assert lines[1:-2] == shown


# --- table of step records ---


LONG = "simulate_turbulent_channel_REYNOLDS_NUMBER"


def step_status(number: int, state: str, *samples: int, name: str = LONG, rate: float | None = None) -> StepStatus:
    """Return a step record with these numbers of finished, failed, running and pending samples."""
    counts = Counts(sum(samples), *samples) if samples else Counts(0, 0, 0, 0, 0)
    return StepStatus(
        name=f"{name}.{number}", step="simulate", params={}, state=state, restarts=0, samples=counts, find_rate=lambda: rate
    )


def table_of(steps: list[StepStatus], width: int, *, ascii_only: bool = False) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(steps_table.steps_table(steps, width, ascii_only=ascii_only), crop=False)
    return console.file.getvalue().splitlines()


def test_a_rate_is_computed_only_for_a_step_record_that_is_shown():
    """Rates of thousands of step records would take a tenth of the time of a view."""
    asked = []
    steps = [step_status(number, "RUNNING", 1, 0, 0, 1) for number in range(300)]
    steps = [dataclasses.replace(step, find_rate=functools.partial(asked.append, step.name)) for step in steps]

    table_of(steps_table.most_urgent(steps, 20), 120)

    assert len(asked) == 20


STEPS = [
    step_status(1000, "FINISHED", 1_000_000, 5, 0, 0, rate=1234.0),
    step_status(1001, "RUNNING", 10, 2, 4, 84, rate=0.01),
    step_status(1002, "INITIALIZED"),
    step_status(1003, "FAILED", 0, 1, 0, 0),
]


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_each_step_record_takes_one_line(width: int) -> None:
    """Given long names, then the state is beside the name, and both ends of the name are shown."""
    heading, *lines = table_of(STEPS, width)
    assert heading.split()[:3] == ["step", "record", "state"]
    assert len(lines) == 4
    assert all(len(line) <= width for line in [heading, *lines])
    states = ["FINISHED, 5 failed", "RUNNING, 2 failed", "INITIALIZED", "FAILED"]
    for number, (line, state) in enumerate(zip(lines, states, strict=True), 1000):
        name, _, rest = line.partition(" ")
        assert name.startswith("sim")
        assert name.endswith(f".{number}")
        assert rest.strip().startswith(state)
    assert ("2 h 26 min" if width > 80 else "2 h") in lines[1] or width == 60


def test_whole_names_matter_more_than_the_rate() -> None:
    short = [step_status(1, "RUNNING", 10, 0, 2, 88, name="sim_X", rate=0.5)]
    assert table_of(short, 80)[1].split() == ["sim_X.1", "RUNNING", "━━" + "." * 18, "10/100", "2", "3", "min", "0.50/s"]
    (line,) = table_of([dataclasses.replace(short[0], name=f"{LONG}.1")], 80)[1:]
    assert "/s" not in line
    assert "3 min" in line


@pytest.mark.parametrize(
    ("samples", "bar"),
    [
        ((5, 0, 1, 4), "=========="),
        ((99_999, 1, 0, 0), "=" * 19 + "x"),
        ((99_998, 1, 1, 0), "=" * 19 + "x"),
        ((50, 50, 0, 0), "=" * 10 + "x" * 10),
        ((0, 3, 0, 0), "x" * 20),
        ((999, 0, 0, 1), "=" * 19),
    ],
)
def test_a_bar_shows_where_samples_failed_without_colours(samples: tuple[int, ...], bar: str) -> None:
    (line,) = table_of([step_status(1, "RUNNING", *samples, name="s")], 80, ascii_only=True)[1:]
    assert f" {bar.ljust(20, '.')} " in line


def test_a_bar_is_red_only_where_samples_failed() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(steps_table.steps_table([step_status(1, "RUNNING", 50, 25, 0, 25, name="s")], 80))
    text = console.file.getvalue()
    assert f"\x1b[36m{'━' * 10}\x1b[0m\x1b[31m{'x' * 5}\x1b[0m" in text


@pytest.mark.parametrize(("width", "text"), [(16, "simula…BER.1000"), (60, f"{LONG}.1000"), (1, "…"), (0, "…")])
def test_the_middle_of_a_long_name_is_left_out(width: int, text: str) -> None:
    assert shortened(f"{LONG}.1000", width) == text or len(shortened(f"{LONG}.1000", width)) == width


def test_a_name_of_wide_characters_fits() -> None:
    assert cell_len(shortened("流体" * 20 + ".7", 15)) <= 15


def test_a_command_for_a_directory_with_a_blank_can_be_copied() -> None:
    assert command_words("maestro-celery resume", Path("/a b/c")) == "maestro-celery resume '/a b/c'"


def test_running_and_failed_step_records_come_first_on_a_screen() -> None:
    steps = [
        *(step_status(n, "FINISHED", 3, 0, 0, 0) for n in range(10)),
        *(step_status(n, "FINISHED", 2, 1, 0, 0) for n in range(10, 13)),
        *(step_status(n, "RUNNING", 2, 0, 1, 0) for n in range(13, 23)),
        step_status(23, "INITIALIZED"),
    ]

    def shown(rows: int) -> list[int]:
        return [int(step.name.rpartition(".")[2]) for step in steps_table.by_urgency(steps, rows)]

    assert shown(4) == [13, 14, 10, 11]
    assert shown(8) == [13, 14, 15, 16, 17, 10, 11, 12]
    assert shown(14) == [*range(13, 23), 10, 11, 12, 23]
    assert sorted(shown(100)) == list(range(24))
    in_order = steps_table.most_urgent(steps, 4)
    assert [step.name for step in in_order] == [f"{LONG}.{n}" for n in (10, 11, 13, 14)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (120, 40)])
def test_the_screen_shows_totals_and_how_many_step_records_are_hidden(study: Study, width: int, height: int) -> None:
    """Given 100 step records of which one runs and two have failed, then a small terminal shows these."""
    for number in (40, 50, 60):
        study.submit(number, samples=3)
    for sample in range(3):
        study.run(sample, record=40, code=int(sample == 1))
        study.run(sample, record=50, code=1)
    study.write("w-1", (Kind.STARTED, 60, 1, 0, 0))
    states = {40: "FINISHED", 50: "FAILED", 60: "RUNNING"}
    study.write_table(*(row(number, states.get(number, "INITIALIZED")) for number in range(1, 101)))
    study.beat("w-1", ProcessId.of(os.getpid()))
    console = Console(width=width, height=height, file=io.StringIO(), record=True)
    reader = study.reader
    with study.conductor_lock():
        console.print(status_view._screen(reader.read(), reader, console))
    lines = console.export_text().splitlines()

    assert len(lines) < height
    assert "100 step records: 97 INITIALIZED, 1 FINISHED with failures, 1 FAILED, 1 RUNNING" in lines
    assert "9 samples: 2 finished, 4 failed, 1 running, 2 pending" in lines
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("step record")) + 1 :]
    assert [line.split()[0] for line in table[:3]] == ["sim_X.60", "sim_X.40", "sim_X.50"]
    (hidden,) = (line for line in lines if line.startswith("and "))
    shown = sum(line.startswith("sim_X") for line in table[: table.index(hidden)])
    assert hidden == f"and {100 - shown} more step records: {100 - shown} INITIALIZED (--json has all)"


def test_few_of_many_step_records_are_laid_out(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given 2,000 step records, then a page lays out 200 of them, and a screen those that fit, a few times at most."""
    study.write_table(*(row(number, "INITIALIZED") for number in range(2000)))
    laid_out: list[int] = []
    original = status_view.steps_table
    monkeypatch.setattr(
        status_view, "steps_table", lambda steps, *args, **options: laid_out.append(len(steps)) or original(steps, *args, **options)
    )
    console = Console(width=80, height=24, file=io.StringIO())
    status_view.show(study.reader, console)
    assert laid_out == [200]
    laid_out.clear()
    reader = study.reader
    status_view._screen(reader.read(), reader, console)
    assert sum(laid_out) < 100


def test_the_first_line_of_stderr_keeps_its_indentation(study: Study) -> None:
    manifest = study.submit()
    study.write_table(row(1, "RUNNING"))
    study.run(7, code=3)
    directory = Path(manifest.workspace, "1/2")
    directory.mkdir(parents=True)
    (directory / "sim_X.1.err").write_text("\n    x = 1 +\n          ^\nSyntaxError\n")
    lines = [line.rstrip() for line in page_of(study, 140).splitlines()]
    first = lines.index("        x = 1 +")  # indented by the section and the line
    assert lines[first + 1 : first + 3] == ["              ^", "    SyntaxError"]


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1, "1 message refused"), (7, "7 messages refused")])
def test_the_page_shows_the_refused_messages_of_a_worker(study: Study, count: int, text: str) -> None:
    study.beat("w-1", ProcessId.of(os.getpid()), refused_messages=count)
    section = page_of(study).partition("Workers\n")[2]
    assert section.split("busy")[1].strip() == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("idle", ""),
        ("stopping", ""),
        ("draining", ", its allocation ends too soon for the remaining samples"),
        ("held", ", its last samples have failed; some of them run on another machine to find the cause"),
    ],
)
def test_explain_says_why_a_worker_takes_no_samples(study: Study, state: str, text: str) -> None:
    workers, steps = {"w": WorkerGroupSettings(task_queues=("merlin",))}, {"sim": StepFacts(queues=("merlin",))}
    settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers), steps=steps)
    plan = dataclasses.replace(study.plan, settings=settings)
    (plan.root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    study.submit()
    study.write_table(row(1, "RUNNING"))
    study.run(0)
    study.beat("w-1", ProcessId.of(os.getpid()), state)
    with study.conductor_lock():
        ((title, sentences),) = explain(plan.root)
    assert title == "sim_X.1  RUNNING"
    assert sentences[-1] == f"Worker group 'w': w-1 ({state}{text})."


def test_a_dry_run_is_not_resumed(study: Study) -> None:
    """A dry run has no session. `maestro-celery resume` refuses it."""
    shutil.rmtree(study.session.path)
    study.write_table(row(1, "DRYRUN"))
    assert study.reader.read().state is StudyState.DRYRUN
    text = page_of(study, 140)
    assert "It was a dry run, whose steps do not run; `maestro run` without --dry starts a study." in text
    assert "maestro-celery resume" not in text
    assert explain(study.plan.root) == [
        ("The study was a dry run", ["Its steps do not run; `maestro run` without --dry starts a study."])
    ]


def test_the_list_of_failed_samples_ends_at_the_limit_with_the_number_of_others(study: Study) -> None:
    study.submit()
    for sample in range(10):
        study.run(sample, code=1)
    text = page_of(study, failed_limit=3)
    assert text.count("exit code 1") == 3
    assert "A=0.2  NAME=[b]name 2" in text
    assert "7 more of 10 failed samples; --limit 10 lists all." in text


def test_watching_ends_with_the_study(study: Study) -> None:
    study.submit()
    study.write_table(row(1, "FINISHED"))
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        status_view.watch(study.reader, console)
        assert "FINISHED" in console.export_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (356400, "4 d 3 h")],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration_words(seconds) == text


# --- command ---


def test_json_has_exactly_the_keys_that_scripts_rely_on(study: Study) -> None:
    study.submit()
    study.write_table(row(1, "RUNNING"), row(2, "INITIALIZED"))
    study.run(0)
    study.beat("w-1", ProcessId.of(os.getpid()))
    allocate(study, "w", "41", AllocationState.PENDING, "Resources")
    result = CliRunner().invoke(main, ["status", "--json", str(study.plan.root)])
    assert result.exit_code == StudyCode.UNCONDUCTED
    samples = {"total": 10, "finished": 1, "failed": 0, "running": 0, "pending": 9}
    none = dict.fromkeys(samples, 0)
    common = {"step": "sim", "restarts": 0}
    assert json.loads(result.output) == {
        "study": "demo",
        "path": str(study.plan.root),
        "state": "INTERRUPTED",
        "steps": [
            {**common, "name": "sim_X.1", "params": {"X": "1"}, "state": "INTERRUPTED", "samples": samples},
            {**common, "name": "sim_X.2", "params": {"X": "2"}, "state": "INITIALIZED", "samples": none},
        ],
        "allocations": [
            {"name": "w", "number": 1, "job": "41", "state": "PENDING", "reason": "Resources", "slots": 0, "seconds": None}
            | {"sample_seconds": 0.0, "interrupted_seconds": 0.0}
        ],
        "workers": [{"name": "w-1", "group": "w", "node": host_name(), "state": "busy", "refused_messages": 0}],
        "broken_machines": [],
        "damage": [],
        "broker_problem": "",
        "waiting_additions": 0,
        "workers_stopped": None,
    }


def test_failed_samples_are_part_of_the_json_on_request(study: Study) -> None:
    """Given 60 failed samples, then --failed --json has all of them, and with --limit fewer."""
    study.submit(samples=60)
    for sample in range(60):
        study.run(sample, code=3)
    study.submit(2, samples=1, sampled=False)
    study.run(0, record=2, code=9)
    study.write_table(row(2, "FAILED"), row(1, "FAILED"))
    first, second, *others = json.loads(
        CliRunner().invoke(main, ["status", "--failed", "--json", str(study.plan.root)]).output
    )["failed_samples"]  # fmt: skip
    directory = study.plan.root / "sim"
    common = {"end": "exit code 3", "duration_s": 0.001}
    assert first == {
        **common, "step_record": "sim_X.2", "sample": None, "code": 9, "end": "exit code 9", "values": {},
        "directory": str(directory / "X.2"), "stderr": str(directory / "X.2/sim_X.2.err"),
    }, "in Maestro's order"  # fmt: skip
    assert second["values"] == {"A": "0.0", "NAME": "[b]name 0"}
    assert second["sample"] == 0
    assert len(others) == 59
    few = CliRunner().invoke(main, ["status", "--failed", "--json", "--limit", "7", str(study.plan.root)])
    assert len(json.loads(few.output)["failed_samples"]) == 7


# --- broker ---


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.2", 0))  # where no other program gets the port as soon as it is free
        server.listen()
        yield server


@pytest.mark.parametrize("url", ["redis://:secret@{}/0", "amqps://ada:secret@{}/vhost", "redis://{0};redis://{0}"])
def test_a_broker_that_is_away_is_named_without_its_password(
    study: Study, listener, still_clock, advance_clock, url: str
) -> None:
    """Given a broker by URL that ends and returns, then status and explain say so while the study runs."""
    place = f"127.0.0.2:{listener.getsockname()[1]}"
    study.session.write_broker(BrokerLocation(url=url.format(place)))
    study.submit()
    study.write_table(row(1, "RUNNING"))
    assert BrokerCheck(study.session).problem() == ""

    listener.close()
    reader = study.reader
    with study.conductor_lock():
        text = " ".join(page_of(study).split())
        assert f"at {place} (Connection refused)" in text
        assert "does not accept connections from this machine." in text
        assert dict(explain(study.plan.root))["The broker does not answer"][0].endswith("nothing is lost.")
        assert reader.read().broker_problem
        assert "secret" not in text
    assert reader.read().broker_problem == "", "nobody waits for it"

    with socket.create_server(listener_address(place)), study.conductor_lock():
        assert reader.read().broker_problem, "not checked again within seconds"
        advance_clock(11)
        assert reader.read().broker_problem == ""


def listener_address(place: str) -> tuple[str, int]:
    host, _, port = place.partition(":")
    return host, int(port)


def test_a_broker_behind_a_socket_file_is_checked(study: Study, tmp_path: Path) -> None:
    study.session.write_broker(BrokerLocation(url=f"redis+socket://{tmp_path}/no.sock?virtual_host=0"))
    assert f"at {tmp_path}/no.sock (No such file or directory)" in BrokerCheck(study.session).problem()


@pytest.mark.parametrize(
    "location",
    [BrokerLocation(url="redis://127.0.0.1:1/0", supervisor=(1, 1)), BrokerLocation(url="redis://h:port/0"), None],
    ids=["private", "unknown", "none"],
)
def test_no_other_broker_is_checked(study: Study, location: BrokerLocation | None) -> None:
    if location:
        study.session.write_broker(location)
    assert BrokerCheck(study.session).problem() == ""


def test_the_page_shows_the_last_allocation_of_each_name(study: Study) -> None:
    study.submit()
    allocate(study, "sim", "41", AllocationState.TIMED_OUT)
    allocate(study, "sim", "42", AllocationState.PENDING, "Resources")
    allocate(study, "post", None, AllocationState.PENDING)
    allocate(study, "here", "2290:146355:30e5b3a883a2666b", AllocationState.RUNNING)
    output = CliRunner().invoke(main, ["status", str(study.plan.root)]).output
    section = output.partition("Allocations\n")[2].splitlines()
    here = "  here/1  process 2290 in the allocation of the launch  RUNNING"
    assert section[:3] == [here, "  post/1  not submitted  PENDING", "  sim/2  job 42  PENDING  Resources"]
    assert not any("41" in line for line in section)  # the path of the study may contain 41


def test_the_page_shows_how_the_slot_time_of_allocations_was_used(study: Study) -> None:
    """Given 4 slots for 10 s, 20 s of samples and 10 s of an interrupted sample, then 25% of the slot time is neither."""
    study.submit()
    allocate(study, "w", "41", AllocationState.RUNNING)
    (file,) = study.plan.allocations.glob("w/1/allocation.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "slots": 4, "began_at": 100.0, "ended_at": 110.0}))
    for writer, kind, seconds in [("w-1-1", Kind.ENDED, 12), ("w-1-2.77", Kind.ENDED, 8), ("w-1-2", Kind.STOPPED, 10)]:
        LedgerWriter(study.plan.ledger / f"{writer}.ledger").append(kind, 1, 1, 0, seconds * 10**6)
    LedgerWriter(study.plan.ledger / "w-2-1.ledger").append(Kind.ENDED, 1, 1, 0, 10**9)  # another allocation

    (allocation,) = study.reader.read().allocations
    assert (allocation.slot_seconds, allocation.sample_seconds, allocation.interrupted_seconds) == (40.0, 20.0, 10.0)
    output = CliRunner().invoke(main, ["status", str(study.plan.root)]).output
    expected = "1 ended, 40 s of slot time: 50% samples, 25% interrupted samples, 25% neither"
    assert expected in " ".join(output.split())


def allocate(study: Study, name: str, job: str | None, state: AllocationState, reason: str = "") -> None:
    number, directory = new_directory(study.plan.allocations, name)
    Allocation(name, number, directory, job, state, reason).store()


def test_a_directory_without_a_study_is_one_line_on_stderr(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"maestro-celery: error: '{tmp_path}' is not the directory of a")
    assert "Traceback" not in result.stderr


def test_a_study_that_was_moved_is_refused(study: Study) -> None:
    moved = study.plan.root.rename(study.plan.root.with_name("moved"))
    with pytest.raises(StudyError, match=r"was created as .*, which does not exist; move the study back\.$"):
        StatusReader(moved)


def test_options_that_exclude_each_other_are_refused(study: Study) -> None:
    result = CliRunner().invoke(main, ["status", "--json", "--watch", str(study.plan.root)])
    assert result.exit_code == 2
    assert "--watch excludes --failed and --json" in result.stderr


def test_neither_celery_nor_kombu_is_imported() -> None:
    check = "import sys, maestro_celery_plugin.report.status_view; print({'celery', 'kombu'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


# --- failed samples of a step record that has finished ---


@pytest.mark.parametrize("width", [80, 140])
def test_a_step_record_that_has_finished_with_failed_samples_is_not_green(study: Study, width: int) -> None:
    """Given 2 failed samples in a finished step record, then the page and the explanation say so in words."""
    study.submit()
    study.write_table(row(1, "FINISHED"))
    for sample in range(10):
        study.run(sample, code=int(sample < 2))
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True, color_system="standard")
    status_view.show(study.reader, console)
    text = console.export_text(styles=True)

    assert text.count("FINISHED, 2 failed") == 2  # the study and the step record
    assert "\x1b[32m" not in text, "nothing is green"
    (title, sentences), = explain(study.plan.root)
    assert title == "sim_X.1  FINISHED, 2 failed"
    assert sentences[0].startswith("2 of 10 samples failed; ")
    assert sentences[1] == (
        f"`maestro-celery resume --failed {study.plan.root}` runs the failed samples again, and then what depends on them."
    )


@pytest.mark.parametrize(
    ("samples", "sampled", "limit", "sentence"),
    [
        (1, False, None, "The step failed (exit code 1)."),
        (3, True, None, "The step failed because all its samples failed."),
        (10, True, 2, "The step failed because 3 samples failed; its `max_failures` allows 2."),
    ],
)
def test_explain_says_why_failed_samples_have_failed_the_step(
    study: Study, samples: int, sampled: bool, limit: int | None, sentence: str
) -> None:
    manifest = replace(study.submit(samples=samples, sampled=sampled), max_failures=limit)
    manifest.write(study.plan.records / "sim" / "X.1" / "manifest.json")
    study.write_table(row(1, "FAILED"))
    for sample in range(min(3, samples)):
        study.run(sample, code=1)

    ((title, sentences),) = explain(study.plan.root)
    assert title == "sim_X.1  FAILED"
    assert sentences[0] == sentence
    assert f"maestro-celery resume --failed {study.plan.root}` runs " in sentences[-1]


def test_a_soft_failure_of_a_step_that_is_not_sampled_is_no_failure_of_the_step(study: Study) -> None:
    study.submit(samples=1, sampled=False)
    study.write_table(row(1, "FINISHED"))
    study.run(0, code=101)

    ((title, sentences),) = explain(study.plan.root)
    assert title == "sim_X.1  FINISHED, 1 failed"
    assert sentences[0] == "It ended with exit code 101 (soft fail), with which the study goes on."
    assert sentences[-1].endswith("runs it again, and then what depends on it.")


def write_settings(study: Study, steps: dict[str, StepFacts]) -> None:
    """Write the plan of the study with these steps; worker group `w` serves the task queue `merlin`."""
    workers = {"w": WorkerGroupSettings(task_queues=("merlin",))}
    settings = replace(SETTINGS, resources=ResourceSettings(workers=workers), steps=steps)
    plan = dataclasses.replace(study.plan, settings=settings)
    (study.plan.root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))


def test_step_records_with_the_same_explanation_are_explained_once(study: Study) -> None:
    """Given 35 step records of two steps in five situations, then there are five explanations with the sums."""
    sim, post = StepFacts(queues=("merlin",)), StepFacts(queues=("merlin",), depends=("sim",))
    write_settings(study, {"sim": sim, "post": post})
    for number in range(1, 21):
        study.submit(number, samples=3)
    for number in range(1, 6):
        for sample in range(3):
            study.run(sample, record=number, code=int(sample == 0))
    study.run(0, record=6)
    states = ["FINISHED"] * 5 + ["RUNNING"] * 5 + ["PENDING"] * 10
    posts = [row(n, "INITIALIZED").replace("sim", "post") for n in range(6, 21)]
    study.write_table(*(row(n, state) for n, state in enumerate(states, 1)), *posts)
    study.beat("w-1", ProcessId.of(os.getpid()))
    with study.conductor_lock():
        explanations = dict(explain(study.plan.root))

    group = "Worker group 'w': w-1 (busy)."
    command = f"`maestro-celery {{}} {study.plan.root}`"
    assert explanations == {
        "sim_X.1, sim_X.2, sim_X.3 and 2 more step records  FINISHED, 5 failed": [
            f"5 of 15 samples failed; {command.format('failed')} shows why, and what they have in common.",
            f"{command.format('resume --failed')} runs the failed samples again, and then what depends on them.",
        ],
        "sim_X.6, sim_X.7, sim_X.8 and 2 more step records  RUNNING": ["Samples: 0 running, 14 waiting, 1 ended.", group],
        "sim_X.11, sim_X.12, sim_X.13 and 7 more step records  PENDING": [
            "Samples: 0 running, 30 waiting, 0 ended.", group
        ],
        "post_X.6, post_X.7, post_X.8 and 2 more step records  INITIALIZED": [
            "Each needs the step record of 'sim' with its parameter values (RUNNING)."
        ],
        "post_X.11, post_X.12, post_X.13 and 7 more step records  INITIALIZED": [
            "Each needs the step record of 'sim' with its parameter values (PENDING)."
        ],
    }  # fmt: skip


@pytest.mark.parametrize("parent", ["sim_*", "sim"])
def test_many_step_records_that_wait_for_the_same_one_name_it(study: Study, parent: str) -> None:
    """Given step records that need a funnel's last step record, or the only one of a step, then it is named."""
    write_settings(study, {"sim": StepFacts(queues=("merlin",)), "post": StepFacts(queues=("merlin",), depends=(parent,))})
    sims = [row(7, "FAILED")] if parent == "sim" else [row(7, "FAILED"), row(8, "FINISHED")]
    posts = [row(n, "INITIALIZED").replace("sim", "post").replace("X:", "Y:") for n in range(1, 4)]
    study.write_table(*sims, *posts)
    study.session.conductors.write(1)
    with study.conductor_lock():
        explanations = dict(explain(study.plan.root))
    assert explanations["post_X.1, post_X.2, post_X.3  INITIALIZED"] == ["Each needs sim_X.7 (FAILED)."]


def test_a_failed_step_record_is_failed_before_maestro_has_polled(study: Study) -> None:
    study.submit(samples=1, sampled=False)
    study.write_table(row(1, "RUNNING"))
    study.run(0, code=1)

    assert study.reader.read().steps[0].state == "FAILED"


@pytest.mark.parametrize(
    ("states", "failed", "waited", "code"),
    [
        (["FINISHED"], 0, False, StudyCode.WELL),
        (["FINISHED"], 1, False, StudyCode.FAILED_SAMPLES),
        (["FAILED"], 1, False, StudyCode.UNSUCCESSFUL),
        (["CANCELLED"], 0, False, StudyCode.UNSUCCESSFUL),
        (["PENDING"], 0, True, StudyCode.UNCONDUCTED),
    ],
)
def test_the_exit_code_tells_how_the_study_is(
    study: Study, states: list[str], failed: int, waited: bool, code: StudyCode
) -> None:
    study.submit()
    study.write_table(*(row(number, state) for number, state in enumerate(states, 1)))
    for sample in range(failed):
        study.run(sample, code=1)
    if states == ["FINISHED"]:
        for sample in range(failed, 10):
            study.run(sample)

    assert code_of(study.reader.read(), is_to_end=waited) is code
    with study.conductor_lock():
        status = study.reader.read()
        assert code_of(status, is_to_end=True) is StudyCode.RUNNING
        assert code_of(status) is (StudyCode.FAILED_SAMPLES if failed else StudyCode.WELL)


def test_a_user_who_ends_the_watch_of_a_running_study_gets_its_code(study: Study, monkeypatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status_view, "watch", interrupt)
    study.submit()
    study.write_table(row(1, "RUNNING"))
    with study.conductor_lock():
        codes = [CliRunner().invoke(main, ["status", *options, str(study.plan.root)]).exit_code for options in ([], ["--watch"])]

    assert codes == [StudyCode.WELL, StudyCode.RUNNING]
    assert CliRunner().invoke(main, ["explain", str(study.plan.root)]).exit_code == StudyCode.UNCONDUCTED
