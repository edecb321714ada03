"""Allocations: their scripts, their files, and the conditions under which the next allocation is opened."""

from __future__ import annotations

import dataclasses
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from maestrowf.interfaces import ScriptAdapterFactory
from support import wait_for

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, read_allocations
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.conductor import allocation_source, backoff, shared_allocation
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.conductor.process_jobs import ProcessJobs
from maestro_celery_plugin.conductor.shared_allocation import SharedAllocation
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
    """A batch system in memory.

    Attributes:
        reported: The report of every job; a submission resets it to pending.
        found: The job that `find_job` returns.
        refusal: The message with which it refuses a submission.
    """

    def __init__(self):
        self.submitted, self.cancelled, self.refusal, self.found = 0, [], "", None
        self.reported = JobReport(AllocationState.PENDING)

    def script(self, request, directory):
        return directory / "script.sh"

    def submit(self, request, directory):
        if self.refusal:
            raise AllocationError(self.refusal)
        self.submitted += 1
        self.reported = JobReport(AllocationState.PENDING)
        return str(self.submitted)

    def find_job(self, directory):
        return self.found

    def report(self, job):
        return self.reported

    def cancel(self, job, directory):
        self.cancelled.append(job)
        self.reported = JobReport(AllocationState.CANCELLED)


@pytest.fixture
def queue():
    return Queue()


@pytest.fixture
def source(tmp_path, queue, monkeypatch):
    for module, name in ((allocation_source, "POLL_S"), (shared_allocation, "POLL_S"), (allocation_source, "SLOW_POLL_S"), (backoff, "RETRY_DELAY_S")):
        monkeypatch.setattr(module, name, 0.0)
    return AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)


def end(source, queue, state, reason="", *, has_worked=True):
    queue.reported = JobReport(state, reason)
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


def test_the_batch_script_has_bank_queue_qos_reservation_procs_and_gpus(tmp_path):
    settings = BatchSettings(type="slurm", bank="b", queue="q", qos="high", reservation="r")
    request = dataclasses.replace(REQUEST, settings=settings, procs=8, gpus=2)

    text = BatchJobs(Slurm()).script(request, tmp_path).read_text()

    for line in ("--account=b", "--partition=q", "--qos=high", '--reservation="r"', "--ntasks=8", "--gres=gpu:2"):
        assert f"#SBATCH {line}\n" in text
    assert "--exclusive" not in text


def test_an_adapter_that_cannot_write_its_script_is_one_error(tmp_path, monkeypatch):
    """Given an error of Maestro's adapter, then the submission has failed, and the conductor continues."""

    def write_script(self, directory, step):
        raise KeyError("allocation_args")

    monkeypatch.setattr(ScriptAdapterFactory.get_adapter("slurm"), "write_script", write_script)
    with pytest.raises(AllocationError, match="adapter for 'slurm' cannot write the batch script of 'a_study-sim': 'all"):
        BatchJobs(Slurm()).submit(REQUEST, tmp_path)


def test_groups_that_share_an_allocation_start_in_parallel(tmp_path):
    request = dataclasses.replace(REQUEST, lines=("srun one", "srun two"))

    text = BatchJobs(Slurm()).script(request, tmp_path).read_text()

    assert text.endswith("srun one &\nsrun two &\nwait\n")


@pytest.mark.parametrize(
    ("shell", "interpreter"),
    [("/bin/sh", "/bin/sh"), ("/usr/bin/env bash", "/usr/bin/env bash"), ("/usr/bin/env python3", "/bin/bash")],
)
def test_a_posix_shell_runs_the_batch_script_even_if_samples_have_another_interpreter(shell, interpreter):
    settings = BatchSettings(type="slurm", shell=shell)
    assert dataclasses.replace(REQUEST, settings=settings).shell == interpreter


# --- in the current allocation -----------------------------------------------------------------------


def process_jobs(deadline=None):
    return ProcessJobs("5", deadline or Deadline(), BatchJobs(Slurm()))


def started(tmp_path, line):
    jobs = process_jobs()
    return jobs, jobs.submit(dataclasses.replace(REQUEST, lines=(line,)), tmp_path)


def test_no_worker_starts_in_a_current_allocation_that_ends_soon(tmp_path, still_clock):
    jobs = process_jobs(Deadline(clock.now() + 20, drain_s=30))

    with pytest.raises(AllocationError, match=r"\(job 5\) ends in 20 s, too soon for more samples; "):
        jobs.submit(REQUEST, tmp_path)


def test_the_first_attempt_reports_that_the_current_allocation_has_no_time_left(tmp_path):
    """Given a current allocation that ends soon, when workers are needed, then the first attempt has this error."""
    jobs = process_jobs(Deadline(time.time() + 20, drain_s=30))
    source = AllocationSource(tmp_path, "sim", lambda number: REQUEST, jobs)

    with pytest.raises(WorkerError, match=r"^The allocation around this study \(job 5\) ends in .*resume"):
        source.ensure()


def test_a_conductor_outside_an_allocation_reports_the_workers_inside_it_as_gone():
    assert BatchJobs(Slurm()).report("123:456").state is AllocationState.GONE


def test_workers_in_the_current_allocation_run_until_their_script_ends(tmp_path):
    jobs, job = started(tmp_path, "echo here; echo there >&2")

    wait_for(lambda: jobs.report(job).state is AllocationState.COMPLETED, "the end of the script")

    assert (tmp_path / "a_study-sim.out").read_text() == "here\n"
    assert (tmp_path / "a_study-sim.err").read_text() == "there\n"


def test_the_exit_code_of_the_script_is_in_the_report(tmp_path):
    jobs, job = started(tmp_path, "exit 3")

    wait_for(lambda: jobs.report(job) == JobReport(AllocationState.FAILED, "exit code 3"), "the end of the script")


def test_workers_in_the_current_allocation_can_be_cancelled(tmp_path):
    jobs, job = started(tmp_path, "sleep 600")
    assert jobs.report(job).state is AllocationState.RUNNING
    assert process_jobs().report(job).state is AllocationState.RUNNING  # another conductor also detects it

    jobs.cancel(job, tmp_path)

    wait_for(lambda: not jobs.report(job).state.is_open, "the end of the script")
    assert process_jobs().report(job).state is AllocationState.GONE


# --- one allocation after another --------------------------------------------------------------------


@pytest.mark.parametrize("end_it", [lambda source: source.cancel(), lambda source: source.release(is_empty=True)])
def test_a_full_disk_does_not_keep_an_allocation_open(source, queue, monkeypatch, end_it):
    source.ensure()

    def full(allocation):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Allocation, "store", full)
    end_it(source)

    assert queue.cancelled == ["1"]



def test_one_allocation_is_opened_for_repeated_requests(source, queue):
    for _ in range(3):
        source.ensure()

    assert queue.submitted == 1
    assert source.is_open


def test_after_the_end_of_an_allocation_the_next_one_is_opened(source, queue, tmp_path):
    source.ensure()
    ended = end(source, queue, AllocationState.TIMED_OUT)
    assert ended.label == "sim/1"
    assert source.refresh() is None  # an end is returned once

    source.ensure()

    assert queue.submitted == 2
    stored = list(read_allocations(tmp_path))
    assert [allocation.state for allocation in stored] == [AllocationState.TIMED_OUT, AllocationState.PENDING]
    assert [allocation.job for allocation in stored] == ["1", "2"]


def test_another_conductor_takes_over_an_open_allocation(source, queue, tmp_path):
    source.ensure()

    other = AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)
    other.ensure()

    assert queue.submitted == 1
    assert other.is_open


def test_no_allocation_is_opened_after_three_in_a_row_without_a_sample(source, queue, tmp_path):
    for _ in range(3):
        source.ensure()
        (source.current.directory / "job.err").write_text("no module named maestro\n")
        end(source, queue, AllocationState.FAILED, "NonZeroExitCode", has_worked=False)

    with pytest.raises(WorkerError) as error:
        source.ensure()
    assert str(error.value) == (
        "allocation 'sim' was refused or has ended 3 times in a row before a sample started. Job 3: its script has failed "
        f"(NonZeroExitCode). Script and output are in '{tmp_path}/sim/3'. The output ends with:\nno module named maestro"
    )
    assert queue.submitted == 3


def test_an_allocation_with_a_sample_resets_the_count(source, queue):
    for has_worked in (False, False, True, False, False):
        source.ensure()
        end(source, queue, AllocationState.FAILED, has_worked=has_worked)

    source.ensure()
    assert queue.submitted == 6


@pytest.mark.parametrize("state", [AllocationState.PREEMPTED, AllocationState.NODE_FAILED, AllocationState.BOOT_FAILED])
def test_no_allocation_is_opened_after_ten_ends_with_an_external_cause(source, queue, state, tmp_path):
    for number in range(1, backoff.MAX_SETBACKS + 1):
        source.ensure()
        assert queue.submitted == number
        end(source, queue, state, has_worked=False)

    with pytest.raises(WorkerError) as error:
        source.ensure()
    assert str(error.value) == (
        f"allocation 'sim' was refused or has ended 10 times in a row before a sample started. Job 10: {state.value}. "
        f"Script and output are in '{tmp_path}/sim/10'. The output is empty."
    )


def test_the_delay_doubles_after_each_end_with_an_external_cause(source, queue, monkeypatch, still_clock):
    monkeypatch.setattr(backoff, "RETRY_DELAY_S", 3.0)
    delays = []
    for _ in range(3):
        source._backoff._not_before = 0.0
        source.ensure()
        end(source, queue, AllocationState.BOOT_FAILED, has_worked=False)
        delays.append(source._backoff._not_before - clock.monotonic())
    assert delays == pytest.approx([6, 12, 24])


def test_the_error_of_a_refused_submission_has_the_message_of_the_batch_system(source, queue):
    queue.refusal = "invalid partition specified: nonsense"
    for _ in range(3):
        source.ensure()

    with pytest.raises(WorkerError, match="invalid partition specified: nonsense"):
        source.ensure()


def test_a_job_whose_submission_was_interrupted_is_adopted(queue, tmp_path, monkeypatch):
    """Given a conductor that died after `sbatch` and before it stored the job, then the next one adopts the job."""

    def die(request, directory):
        queue.found = "7"
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "submit", die)
    with pytest.raises(KeyboardInterrupt):
        AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue).ensure()
    (stored,) = read_allocations(tmp_path)
    assert stored.is_submission_unknown

    source = AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)
    assert not source.is_open
    source.ensure()

    assert (source.current.number, source.current.job) == (1, "7")
    assert source.is_open
    assert [allocation.job for allocation in read_allocations(tmp_path)] == ["7"]


def test_an_allocation_that_was_not_submitted_is_submitted_with_the_same_number(queue, tmp_path, monkeypatch):
    submit = queue.submit
    monkeypatch.setattr(queue, "submit", lambda request, directory: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue).ensure()
    monkeypatch.setattr(queue, "submit", submit)

    AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue).ensure()

    assert [(allocation.number, allocation.job) for allocation in read_allocations(tmp_path)] == [(1, "1")]


def test_a_job_whose_submission_was_interrupted_is_cancelled_with_the_study(queue, tmp_path, source, monkeypatch):
    monkeypatch.setattr(queue, "submit", lambda request, directory: (_ for _ in ()).throw(BatchSystemUnavailableError("no answer")))
    source.ensure()
    queue.found = "7"

    source.resolve()
    source.cancel()

    assert queue.cancelled == ["7"]


def test_an_allocation_without_workers_is_cancelled(source, queue, monkeypatch):
    monkeypatch.setattr(allocation_source, "EMPTY_LIMIT_S", 0.0)
    source.ensure()
    queue.reported = JobReport(AllocationState.RUNNING)
    assert source.refresh() is None  # the job has started
    assert source.refresh(is_empty=True) is None
    time.sleep(0.01)

    ended = source.refresh(is_empty=True)

    assert ended.state is AllocationState.FAILED
    assert ended.reason == "no worker was seen in it for 0 s"
    assert queue.cancelled == ["1"]


def test_a_job_is_gone_only_after_the_third_report(source, queue):
    source.ensure()
    queue.reported = JobReport(AllocationState.GONE)
    assert [source.refresh(), source.refresh()] == [None, None]
    assert source.is_open
    assert source.refresh().state is AllocationState.GONE


def test_an_end_that_could_not_be_stored_is_returned_by_the_next_refresh(source, queue, monkeypatch):
    """Given a full disk when an allocation ends, then the next refresh returns the end."""
    source.ensure()
    queue.reported = JobReport(AllocationState.TIMED_OUT)
    store = Allocation.store
    monkeypatch.setattr(Allocation, "store", lambda allocation: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        source.refresh()

    monkeypatch.setattr(Allocation, "store", store)
    assert source.refresh().state is AllocationState.TIMED_OUT


def test_a_cancellation_that_fails_is_logged(source, queue, monkeypatch, caplog):
    source.ensure()
    monkeypatch.setattr(queue, "cancel", lambda job, directory: (_ for _ in ()).throw(AllocationError("scancel has failed")))

    source.cancel()

    assert "Job 1 of allocation 'sim/1' cannot be cancelled: scancel has failed" in caplog.text


@pytest.mark.parametrize("code", [0, 1])
def test_a_cancellation_that_the_batch_system_refuses_raises_an_error(tmp_path, monkeypatch, code):
    scancel = tmp_path / "bin" / "scancel"
    scancel.parent.mkdir()
    scancel.write_text(f"#!/bin/sh\nexit {code}\n")
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scancel.parent}:/usr/bin:/bin")

    if code:
        with pytest.raises(AllocationError, match=r"^the batch system does not cancel it: it gives no reason; cancel it manually"):
            BatchJobs(Slurm()).cancel("7", None)
    else:
        BatchJobs(Slurm()).cancel("7", None)


def test_a_submission_to_an_unavailable_batch_system_is_repeated_and_counts_as_no_failure(source, queue, monkeypatch):
    monkeypatch.setattr(backoff, "UNAVAILABLE_DELAY_S", 0.0)
    submit = queue.submit

    def unavailable(request, directory):
        raise BatchSystemUnavailableError("Unable to contact slurm controller")

    monkeypatch.setattr(queue, "submit", unavailable)
    for _ in range(5):
        source.ensure()
    assert source.current.is_submission_unknown
    assert source.current.number == 1  # the attempts share one directory
    (stored,) = read_allocations(source.current.directory.parent.parent)
    assert stored.reason == "waits. Unable to contact slurm controller"

    monkeypatch.setattr(queue, "submit", submit)
    source.ensure()
    assert source.is_open


@pytest.mark.parametrize(
    ("message", "error_class"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", BatchSystemUnavailableError),
        ("invalid partition specified: nosuch", AllocationError),
    ],
)
def test_the_message_of_the_batch_system_decides_whether_the_submission_is_repeated(
    tmp_path, monkeypatch, message, error_class
):
    """Given an `sbatch` that fails, when Maestro's adapter calls it, then stderr gives the class of the error."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!/bin/sh\necho 'sbatch: error: {message}' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")

    with pytest.raises(AllocationError, match=re.escape(message)) as error:
        BatchJobs(Slurm()).submit(REQUEST, tmp_path)
    assert type(error.value) is error_class


def test_a_released_allocation_without_workers_is_cancelled_immediately(source, queue):
    source.ensure()
    source.release(is_empty=True)

    assert queue.cancelled == ["1"]
    assert end(source, queue, AllocationState.CANCELLED, has_worked=False).released
    source.ensure()  # the cancellation counts as no failure
    assert queue.submitted == 2


def test_a_released_allocation_whose_workers_have_left_may_end_by_itself(source, queue, monkeypatch):
    """Given a batch system that needs long to end a job, then the job is cancelled late, and has ended as completed."""
    source.ensure()
    source.current.record_slots(4)
    source.release(is_empty=True)
    assert queue.cancelled == []

    monkeypatch.setattr(allocation_source, "LEAVE_LIMIT_S", 0.0)
    source.release(is_empty=True)
    assert queue.cancelled == ["1"]
    assert source.refresh().state is AllocationState.COMPLETED


@pytest.mark.parametrize(("slots", "has_left"), [(4, False), (0, True)])
def test_an_allocation_that_is_cancelled_before_its_workers_have_left_is_cancelled(source, queue, slots, has_left):
    source.ensure()
    source.current.record_slots(slots)
    source.cancel(has_left=has_left)
    assert source.refresh().state is AllocationState.CANCELLED


@pytest.mark.parametrize("waits_forever", [True, False])
def test_only_a_job_that_is_still_in_the_queue_is_cancelled(source, queue, waits_forever):
    """Given a job that can never start, then it is cancelled only if the batch system keeps it in the queue."""
    source.ensure()
    queue.reported = JobReport(AllocationState.FAILED, "never", waits_forever=waits_forever)
    assert source.refresh().state is AllocationState.FAILED
    assert queue.cancelled == (["1"] if waits_forever else [])


def test_a_cancellation_of_a_job_that_has_ended_succeeds(recorded):
    recorded.answer("scancel", err="scancel: error: Kill job error on job id 7\n", code=1)
    recorded.answer("squeue", "7|COMPLETED|None\n")
    BatchJobs(Slurm()).cancel("7", None)


def test_a_released_allocation_is_cancelled_when_its_workers_do_not_leave(source, queue, monkeypatch):
    source.ensure()
    source.release(is_empty=False)
    source.release(is_empty=False)
    assert queue.cancelled == []

    monkeypatch.setattr(allocation_source, "LEAVE_LIMIT_S", 0.0)
    source.release(is_empty=False)
    assert queue.cancelled == ["1"]


def test_an_allocation_stays_open_while_the_batch_system_does_not_answer(source, queue, monkeypatch):
    source.ensure()

    def no_answer(job):
        raise AllocationError("'squeue' does not answer")

    monkeypatch.setattr(queue, "report", no_answer)
    assert source.refresh() is None
    assert source.is_open


# --- allocations of several studies --------------------------------------------------------------------


@pytest.fixture
def follower(tmp_path, queue, source):
    """The source of another study of the session, whose conductor begins when the first one has an allocation."""
    source.ensure()
    return AllocationSource(tmp_path, "sim", lambda number: REQUEST, queue)


def test_one_conductor_watches_an_allocation_and_others_follow(source, follower, queue):
    queue.reported = JobReport(AllocationState.RUNNING)
    source.refresh()
    assert follower.refresh() is None
    assert (source.is_owner, follower.is_owner) == (True, False)
    assert follower.current.state is AllocationState.RUNNING

    follower.release(is_empty=False)
    follower.cancel()
    assert not queue.cancelled
    assert not source.current.released

    queue.reported = JobReport(AllocationState.TIMED_OUT)
    ended = source.refresh()
    assert follower.refresh().label == ended.label
    assert follower.refresh() is None  # told once


def test_another_conductor_takes_over_when_the_owner_leaves(source, follower, queue):
    source.disown()
    queue.reported = JobReport(AllocationState.RUNNING)
    follower.refresh()
    assert follower.is_owner
    assert follower.current.state is AllocationState.RUNNING
    follower.cancel()
    assert queue.cancelled == ["1"]


def test_after_its_end_any_conductor_opens_the_next_one_and_only_one_does(source, follower, queue):
    ended = end(source, queue, AllocationState.TIMED_OUT)
    follower.record_end(follower.refresh(), has_worked=True)
    follower.ensure()
    source.ensure()
    assert queue.submitted == 2
    assert (source.is_owner, follower.is_owner) == (False, True)
    assert source.refresh() is None
    assert source.current.number == ended.number + 1
    assert source.is_open


def test_an_allocation_that_ends_while_the_next_one_opens_is_told(source, follower, queue):
    """Given a conductor that was away between the end of an allocation and the next one, then it still sees the end."""
    end(source, queue, AllocationState.TIMED_OUT)
    source.ensure()
    assert follower.refresh().number == 1
    assert follower.is_open


def test_work_for_another_study_counts(source, follower, queue):
    """Given an allocation in which only samples of another study have started, then it has not ended without work."""
    for _ in range(5):
        source.note_work()
        queue.reported = JobReport(AllocationState.TIMED_OUT)
        source.record_end(source.refresh(), has_worked=True)
        follower.record_end(follower.refresh(), has_worked=False)
        source.ensure()
        assert follower.refresh() is None
    follower.disown()
    source.disown()
    follower.ensure()  # it would raise an error after three in a row without work


def test_an_allocation_is_that_of_all_threads_of_a_conductor(tmp_path):
    """Given a conductor that has opened an allocation, then its other thread, which watches while Maestro runs a native step,
    is the owner as well; another conductor is not."""
    shared, other = SharedAllocation(tmp_path, "sim"), SharedAllocation(tmp_path, "sim")
    assert shared.own()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: shared.is_owner and shared.own()).result()
        assert not thread.submit(other.own).result()
        thread.submit(shared.disown).result()

    assert not shared.is_owner
    assert other.own()
    other.disown()


@pytest.mark.parametrize("report", [JobReport(AllocationState.RUNNING), JobReport(AllocationState.FAILED, "too large", waits_forever=True)])
def test_an_allocation_has_not_ended_before_its_job_could_be_cancelled(source, queue, monkeypatch, report):
    """Given a batch system that does not answer when a job must be cancelled, then it is cancelled later."""
    monkeypatch.setattr(allocation_source, "EMPTY_LIMIT_S", 0.0)
    monkeypatch.setattr(allocation_source, "POLL_S", 0.0)
    cancel, errors = queue.cancel, [BatchSystemUnavailableError("no answer")] * 2

    def fail_at_first(*args):
        if errors:
            raise errors.pop()
        cancel(*args)

    monkeypatch.setattr(queue, "cancel", fail_at_first)
    source.ensure()
    queue.reported = report
    ended = []
    wait_for(lambda: ended.append(source.refresh(is_empty=True)) or ended[-1], "the end of the allocation")

    assert ended[-1].state is AllocationState.FAILED
    assert not errors
    assert queue.cancelled == ["1"]


def test_an_allocation_whose_number_is_that_of_another_job_ends_nevertheless(source, queue, monkeypatch):
    """Given a job that the batch system refuses to cancel for good, then the study does not wait for it for ever."""
    monkeypatch.setattr(queue, "cancel", lambda job, directory: (_ for _ in ()).throw(AllocationError("not a job of this study")))
    source.ensure()
    queue.reported = JobReport(AllocationState.FAILED, "too large", waits_forever=True)

    assert source.refresh().state is AllocationState.FAILED
