"""Allocations: their scripts, their files, and when the next one is opened."""

from __future__ import annotations

import dataclasses
import re
import stat
import time

import pytest
from support import wait_for

from maestro_celery_plugin.batch.allocation import Allocation, read_allocations
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.conductor import allocations
from maestro_celery_plugin.conductor.allocations import AllocationSource
from maestro_celery_plugin.conductor.batch_jobs import AllocationRequest, BatchJobs, ProcessJobs
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError, WorkerError
from maestro_celery_plugin.states import AllocationState

REQUEST = AllocationRequest(
    name="sim",
    study="a study",
    settings=BatchSettings(type="slurm"),
    nodes=2,
    procs=None,
    gpus=None,
    walltime_s=90,
    lines=("srun worker",),
)


class Queue:
    """A batch system in memory: `reports` is what it says of the job that was submitted last."""

    def __init__(self):
        self.submitted, self.cancelled, self.refusal, self.found = 0, [], "", None
        self.says = JobReport(AllocationState.PENDING)

    def script(self, request, directory):
        return directory / "script.sh"

    def submit(self, request, directory):
        if self.refusal:
            raise AllocationError(self.refusal)
        self.submitted += 1
        self.says = JobReport(AllocationState.PENDING)
        return str(self.submitted)

    def find_job(self, directory):
        return self.found

    def report(self, job):
        return self.says

    def cancel(self, job):
        self.cancelled.append(job)
        self.says = JobReport(AllocationState.CANCELLED)


@pytest.fixture
def queue():
    return Queue()


@pytest.fixture
def source(tmp_path, queue, monkeypatch):
    for name in ("POLL_S", "SLOW_POLL_S", "RETRY_DELAY_S"):
        monkeypatch.setattr(allocations, name, 0.0)
    return AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)


def end(source, queue, state, reason="", *, has_worked=True):
    queue.says = JobReport(state, reason)
    ended = source.refresh()
    source.record_end(ended, has_worked=has_worked)
    return ended


# --- scripts -----------------------------------------------------------------------------------------


def test_maestros_adapter_writes_the_batch_script(tmp_path):
    script = BatchJobs(Slurm()).script(REQUEST, tmp_path)

    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --nodes=2" in lines
    assert "#SBATCH --time=00:01:30" in lines
    assert "#SBATCH --exclusive" in lines
    assert '#SBATCH --job-name="a_study-sim"' in lines
    assert not any(line.startswith(("#SBATCH --account", "#SBATCH --partition", "#SBATCH --ntasks")) for line in lines)
    assert lines[-1] == "srun worker"
    assert script.stat().st_mode & stat.S_IXUSR


def test_bank_queue_qos_reservation_procs_and_gpus_are_in_it(tmp_path):
    settings = BatchSettings(type="slurm", bank="b", queue="q", qos="high", reservation="r")
    request = dataclasses.replace(REQUEST, settings=settings, procs=8, gpus=2)

    text = BatchJobs(Slurm()).script(request, tmp_path).read_text()

    for line in ("--account=b", "--partition=q", "--qos=high", '--reservation="r"', "--ntasks=8", "--gres=gpu:2"):
        assert f"#SBATCH {line}\n" in text
    assert "--exclusive" not in text


def test_groups_that_share_an_allocation_start_side_by_side(tmp_path):
    request = dataclasses.replace(REQUEST, lines=("srun one", "srun two"))

    text = BatchJobs(Slurm()).script(request, tmp_path).read_text()

    assert text.endswith("srun one &\nsrun two &\nwait\n")


@pytest.mark.parametrize(
    ("shell", "interpreter"),
    [("/bin/sh", "/bin/sh"), ("/usr/bin/env bash", "/usr/bin/env bash"), ("/usr/bin/env python3", "/bin/bash")],
)
def test_the_batch_script_is_for_a_shell_whatever_samples_are_written_in(shell, interpreter):
    settings = BatchSettings(type="slurm", shell=shell)
    assert dataclasses.replace(REQUEST, settings=settings).shell == interpreter


# --- in the allocation around this process -----------------------------------------------------------


def held_jobs(deadline=None):
    return ProcessJobs("5", deadline or Deadline(), BatchJobs(Slurm()))


def started(tmp_path, line):
    jobs = held_jobs()
    return jobs, jobs.submit(dataclasses.replace(REQUEST, lines=(line,)), tmp_path)


def test_no_workers_are_started_in_an_allocation_around_that_ends_at_once(tmp_path):
    jobs = held_jobs(Deadline(time.time() + 20, drain_s=30))

    with pytest.raises(AllocationError, match=r"\(job 5\) ends in (19|20) s, too soon for further samples"):
        jobs.submit(REQUEST, tmp_path)


def test_the_step_says_at_once_that_there_is_no_time_left(tmp_path):
    """Given an allocation around that is nearly over, then it is not tried three times, and the reason is told as it is."""
    jobs = held_jobs(Deadline(time.time() + 20, drain_s=30))
    source = AllocationSource(tmp_path, "sim", lambda number: REQUEST, jobs)

    with pytest.raises(WorkerError, match=r"^The allocation around this study \(job 5\) ends in .*resume"):
        source.ensure()


def test_a_conductor_outside_knows_that_workers_of_one_inside_are_gone():
    assert BatchJobs(Slurm()).report("123:456").state is AllocationState.GONE


def test_workers_in_the_allocation_around_run_until_their_script_ends(tmp_path):
    jobs, job = started(tmp_path, "echo here; echo there >&2")

    wait_for(lambda: jobs.report(job).state is AllocationState.COMPLETED, "its end", 10)

    assert (tmp_path / "a_study-sim.out").read_text() == "here\n"
    assert (tmp_path / "a_study-sim.err").read_text() == "there\n"


def test_their_exit_code_tells_that_they_have_failed(tmp_path):
    jobs, job = started(tmp_path, "exit 3")

    wait_for(lambda: jobs.report(job) == JobReport(AllocationState.FAILED, "exit code 3"), "its end", 10)


def test_they_can_be_ended(tmp_path):
    jobs, job = started(tmp_path, "sleep 100")
    assert jobs.report(job).state is AllocationState.RUNNING
    assert held_jobs().report(job).state is AllocationState.RUNNING  # another conductor sees it, too

    jobs.cancel(job)

    wait_for(lambda: not jobs.report(job).state.is_open, "its end", 10)
    assert held_jobs().report(job).state is AllocationState.GONE


# --- one after the other -----------------------------------------------------------------------------


def test_one_allocation_is_opened_however_often_it_is_asked_for(source, queue):
    for _ in range(3):
        source.ensure()

    assert queue.submitted == 1
    assert source.is_open


def test_when_it_has_ended_the_next_one_is_opened(source, queue, tmp_path):
    source.ensure()
    ended = end(source, queue, AllocationState.TIMED_OUT)
    assert ended.label == "sim/1"
    assert source.refresh() is None  # told once

    source.ensure()

    assert queue.submitted == 2
    stored = list(read_allocations(tmp_path))
    assert [one.state for one in stored] == [AllocationState.TIMED_OUT, AllocationState.PENDING]
    assert [one.job for one in stored] == ["1", "2"]


def test_another_conductor_takes_over_what_is_open(source, queue, tmp_path):
    source.ensure()

    other = AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)
    other.ensure()

    assert queue.submitted == 1
    assert other.is_open


def test_three_in_a_row_in_which_nothing_was_started_are_enough(source, queue):
    for _ in range(3):
        source.ensure()
        (source.current.directory / "job.err").write_text("no module named maestro\n")
        end(source, queue, AllocationState.FAILED, "NonZeroExitCode", has_worked=False)

    with pytest.raises(WorkerError, match=r"(?s)'sim': 3 in a row .*has failed \(NonZeroExitCode\)\. .*/sim/3'\. .*no module named maestro"):
        source.ensure()
    assert queue.submitted == 3


def test_one_that_has_worked_in_between_begins_the_count_anew(source, queue):
    for has_worked in (False, False, True, False, False):
        source.ensure()
        end(source, queue, AllocationState.FAILED, has_worked=has_worked)

    source.ensure()
    assert queue.submitted == 6


@pytest.mark.parametrize("state", [AllocationState.PREEMPTED, AllocationState.NODE_FAILED, AllocationState.BOOT_FAILED])
def test_what_is_not_the_workers_fault_is_tried_more_often_and_not_for_ever(source, queue, state):
    for number in range(1, allocations.MAX_SETBACKS + 1):
        source.ensure()
        assert queue.submitted == number
        end(source, queue, state, has_worked=False)

    with pytest.raises(WorkerError, match=r"10 in a row have ended before a sample was started"):
        source.ensure()


def test_the_next_try_after_a_setback_comes_later_each_time(source, queue, monkeypatch):
    monkeypatch.setattr(allocations, "RETRY_DELAY_S", 3.0)
    delays = []
    for _ in range(3):
        source._not_before = 0.0
        source.ensure()
        end(source, queue, AllocationState.BOOT_FAILED, has_worked=False)
        delays.append(round(source._not_before - time.monotonic()))
    assert delays == [6, 12, 24]


def test_a_refusal_is_told_in_the_batch_systems_words(source, queue):
    queue.refusal = "invalid partition specified: nonsense"
    for _ in range(3):
        source.ensure()

    with pytest.raises(WorkerError, match="invalid partition specified: nonsense"):
        source.ensure()


def test_a_job_whose_submission_was_cut_off_is_found_again(queue, tmp_path, monkeypatch):
    """Given a conductor that died after sbatch and before it knew the job, then the next one adopts that job."""

    def die(request, directory):
        queue.found = "7"
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "submit", die)
    with pytest.raises(KeyboardInterrupt):
        AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue).ensure()
    (trace,) = read_allocations(tmp_path)
    assert trace.is_submission_unknown

    source = AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)
    assert not source.is_open
    source.ensure()

    assert (source.current.number, source.current.job) == (1, "7")
    assert source.is_open
    assert [one.job for one in read_allocations(tmp_path)] == ["7"]


def test_one_that_was_never_submitted_is_submitted_in_its_place(queue, tmp_path, monkeypatch):
    submit = queue.submit
    monkeypatch.setattr(queue, "submit", lambda request, directory: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue).ensure()
    monkeypatch.setattr(queue, "submit", submit)

    AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue).ensure()

    assert [(one.number, one.job) for one in read_allocations(tmp_path)] == [(1, "1")]


def test_a_job_of_which_nobody_knows_is_ended_with_the_study(queue, tmp_path, source, monkeypatch):
    monkeypatch.setattr(queue, "submit", lambda request, directory: (_ for _ in ()).throw(BatchSystemUnavailableError("away")))
    source.ensure()
    queue.found = "7"

    source.settle()
    source.cancel()

    assert queue.cancelled == ["7"]


def test_an_allocation_without_workers_is_given_up(source, queue, monkeypatch):
    monkeypatch.setattr(allocations, "EMPTY_LIMIT_S", 0.0)
    source.ensure()
    queue.says = JobReport(AllocationState.RUNNING)
    assert source.refresh() is None  # it has begun
    assert source.refresh(is_empty=True) is None
    time.sleep(0.01)

    ended = source.refresh(is_empty=True)

    assert ended.state is AllocationState.FAILED
    assert "none of its workers has been seen" in ended.reason
    assert queue.cancelled == ["1"]


def test_a_job_is_gone_at_the_third_answer_only(source, queue):
    source.ensure()
    queue.says = JobReport(AllocationState.GONE)
    assert [source.refresh(), source.refresh()] == [None, None]
    assert source.is_open
    assert source.refresh().state is AllocationState.GONE


def test_an_end_that_could_not_be_stored_is_told_again(source, queue, monkeypatch):
    """Given a full disk, then the end of an allocation is not lost."""
    source.ensure()
    queue.says = JobReport(AllocationState.TIMED_OUT)
    store = Allocation.store
    monkeypatch.setattr(Allocation, "store", lambda one: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        source.refresh()

    monkeypatch.setattr(Allocation, "store", store)
    assert source.refresh().state is AllocationState.TIMED_OUT


def test_a_cancel_that_fails_is_told(source, queue, monkeypatch, caplog):
    source.ensure()
    monkeypatch.setattr(queue, "cancel", lambda job: (_ for _ in ()).throw(AllocationError("scancel has failed")))

    source.cancel()

    assert "Job 1 of allocation 'sim/1' cannot be ended: scancel has failed" in caplog.text


@pytest.mark.parametrize("code", [0, 1])
def test_maestros_answer_to_a_cancel_counts(tmp_path, monkeypatch, code):
    scancel = tmp_path / "bin" / "scancel"
    scancel.parent.mkdir()
    scancel.write_text(f"#!/bin/sh\nexit {code}\n")
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scancel.parent}:/usr/bin:/bin")

    if code:
        with pytest.raises(AllocationError, match="refuses to cancel"):
            BatchJobs(Slurm()).cancel("7")
    else:
        BatchJobs(Slurm()).cancel("7")


def test_a_batch_system_that_is_away_is_tried_again_and_counts_for_nothing(source, queue, monkeypatch):
    monkeypatch.setattr(allocations, "AWAY_DELAY_S", 0.0)
    refuse = queue.submit

    def away(request, directory):
        raise BatchSystemUnavailableError("Unable to contact slurm controller")

    monkeypatch.setattr(queue, "submit", away)
    for _ in range(5):
        source.ensure()
    assert source.current.is_submission_unknown
    assert source.current.number == 1  # no directory is made for each try

    monkeypatch.setattr(queue, "submit", refuse)
    source.ensure()
    assert source.is_open


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", BatchSystemUnavailableError),
        ("invalid partition specified: nosuch", AllocationError),
    ],
)
def test_the_words_of_a_refusal_tell_whether_to_try_again(tmp_path, monkeypatch, said, kind):
    """Given an sbatch that fails, when Maestro's adapter has called it, then its words decide."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!/bin/sh\necho 'sbatch: error: {said}' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")

    with pytest.raises(AllocationError, match=re.escape(said)) as caught:
        BatchJobs(Slurm()).submit(REQUEST, tmp_path)
    assert type(caught.value) is kind


def test_one_that_nothing_needs_is_cancelled_when_it_has_no_workers(source, queue):
    source.ensure()
    source.release(by_force=True)

    assert queue.cancelled == ["1"]
    assert end(source, queue, AllocationState.CANCELLED, has_worked=False).released
    source.ensure()  # that was no failure
    assert queue.submitted == 2


def test_one_whose_workers_can_leave_is_cancelled_only_when_they_do_not(source, queue, monkeypatch):
    source.ensure()
    source.release(by_force=False)
    source.release(by_force=False)
    assert queue.cancelled == []

    monkeypatch.setattr(allocations, "LEAVE_LIMIT_S", 0.0)
    source.release(by_force=False)
    assert queue.cancelled == ["1"]


def test_a_batch_system_that_does_not_answer_is_asked_again(source, queue, monkeypatch):
    source.ensure()

    def silent(job):
        raise AllocationError("'squeue' does not answer")

    monkeypatch.setattr(queue, "report", silent)
    assert source.refresh() is None
    assert source.is_open
