"""Explanations from the files of a study: why step records do not run, or why they have ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin.batch.allocation import Allocation, read_allocations
from maestro_celery_plugin.config.groups import LOCAL, allocation_name, batch_of, is_for_this_machine
from maestro_celery_plugin.files import tail
from maestro_celery_plugin.report.model import StepStatus, StudyState, StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_status import RecordSamples
from maestro_celery_plugin.report.terminal import outcome_words
from maestro_celery_plugin.spec.dag import ALL_COMBINATIONS
from maestro_celery_plugin.states import AllocationState, WorkerState
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps, reason_of
from maestro_celery_plugin.study.failures import allowed_failures, count_failures, has_failed
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import Reason, read_reasons
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import FINAL_STATES
from maestro_celery_plugin.study.worker_identity import log_of

__all__ = ["Explanation", "explain"]

_TAIL_BYTES = 4096
# The number of workers of a group that an explanation names.
_SHOWN = 5
_NOT_ALIVE = (WorkerState.DEAD, WorkerState.AWAITED)


def explain(directory: Path) -> list[tuple[str, list[str]]]:
    """Return a title and sentences for each step record that has not finished or has failed samples.

    If the study has not started, or its conductor has ended with an error, the first entries explain this.

    Raises:
        StudyError: the directory is not that of an ensemble study.
    """
    return list(Explanation(directory).all())


class Explanation:
    """The explanations for one study.

    Args:
        directory: Directory of the study.

    Attributes:
        status: The status of the study.
    """

    def __init__(self, directory: Path) -> None:
        self._plan = StudyPlan.read(directory)
        self._reader = StatusReader(directory)
        self.status: StudyStatus = self._reader.read()
        beats = Session(self._plan.session).heartbeats.all() if self._plan.session.exists() else []
        self._beats = {beat.name: beat for beat in beats}
        self._allocations = {allocation.name: allocation for allocation in read_allocations(self._plan.allocations)}
        self._reasons: dict[str, Reason] = read_reasons(self._plan.reasons) | read_reasons(self._plan.refusals)
        self._cancelled = CancelledSteps(self._plan.cancelled_steps).names()
        self._records: dict[str, list[StepStatus]] = defaultdict(list)
        self._by_params: dict[tuple[str, tuple[tuple[str, str], ...]], list[StepStatus]] = defaultdict(list)
        for step in self.status.steps:
            self._records[step.step].append(step)
            self._by_params[step.step, tuple(step.params.items())].append(step)
        self._group_sentences: dict[str, str] = {}

    @property
    def _resume(self) -> str:
        return f"`maestro-celery resume {self._plan.root}`"

    @property
    def _resume_failed(self) -> str:
        return f"maestro-celery resume --failed {self._plan.root}"

    def all(self) -> Iterator[tuple[str, list[str]]]:
        """Yield what `explain` returns."""
        state = self.status.state
        if state is StudyState.DRYRUN:
            yield "The study was a dry run", ["Its steps do not run; `maestro run` without --dry starts a study."]
        if state is StudyState.PENDING:
            yield "The study has not started", [f"If no conductor is about to start, {self._resume} starts one."]
        if state in (StudyState.DRYRUN, StudyState.PENDING, StudyState.INTERRUPTED):
            error = self._conductor_error()
            if error:
                yield "The conductor has ended with an error", [error]
        if state is StudyState.DRYRUN:
            return
        yield from self._warnings()
        for step in self.status.steps:
            if step.state != "FINISHED" or step.samples.failed:
                yield f"{step.name}  {outcome_words(step.state, step.samples.failed)}", list(self._why(step))

    def _warnings(self) -> Iterator[tuple[str, list[str]]]:
        if self.status.damage:
            yield "The ledger is damaged", self.status.damage
        if self.status.broken_machines:
            yield "Broken machines", [machine.sentence for machine in self.status.broken_machines]
        refused = list(self._refused_messages())
        if refused:
            yield "Workers have refused messages", refused

    def _refused_messages(self) -> Iterator[str]:
        """Yield a sentence for each worker that has refused messages."""
        session = Session(self._plan.session)
        for worker in self.status.workers:
            if worker.refused_messages:
                words = "1 message was" if worker.refused_messages == 1 else f"{worker.refused_messages} messages were"
                yield (
                    f"{words} refused by worker '{worker.name}': they cannot be read, or are not of this session. "
                    f"They have no effect; another user or study writes to the task queues of this study. "
                    f"'{log_of(session, worker.name)}' shows the kinds."
                )

    def _conductor_error(self) -> str:
        """Return the error that ended a conductor, and the file of its traceback; empty without a traceback."""
        file = max(self._plan.root.glob("*.txt"), key=lambda path: path.stat().st_mtime, default=None)
        output = tail(file, _TAIL_BYTES) if file else ""
        if "Traceback (most recent call last)" not in output:
            return ""
        return f"{output.splitlines()[-1]}\nThe traceback is at the end of '{file}'."

    def _why(self, step: StepStatus) -> Iterator[str]:
        if step.state in FINAL_STATES:
            yield from self._why_ended(step)
        elif self.status.has_ended:
            yield f"No conductor runs the study; {self._resume} continues it."
            for name in self._groups_of(step):
                yield from self._open_allocation(name)
        elif step.state == "INITIALIZED":
            yield from self._awaited_steps(step)
        else:
            yield from self._progress(step)
            for name in self._groups_of(step):
                if name not in self._group_sentences:
                    self._group_sentences[name] = self._group_sentence(name)
                yield self._group_sentences[name]

    # --- step records that have ended ---

    def _why_ended(self, step: StepStatus) -> Iterator[str]:
        if step.state == "CANCELLED" and step.name in self._cancelled:
            yield reason_of(step.name, self._plan.root)
            return
        reason = self._reasons.get(step.name) if step.state != "FINISHED" else None
        if reason is not None:
            yield reason.text
        yield from self._failures(step)
        remaining = step.samples.pending + step.samples.running
        if remaining:
            yield from self._interruptions(step)
            yield self._advice(step, remaining, reason)
        if not step.samples.total:
            awaited = list(self._awaited_steps(step))
            yield from awaited
            if self._is_native(step) and step.state != "CANCELLED" and not awaited and reason is None:
                yield f"Maestro has run it itself; its output is below '{self._plan.root / step.step}'."

    def _failures(self, step: StepStatus) -> Iterator[str]:
        failed, total = step.samples.failed, step.samples.total
        record = self._failed_record(step)
        if record is not None:
            yield _why_failed(record)
        if failed:
            words = "The only sample failed" if total == 1 else f"{failed} of {total} samples failed"
            yield f"{words}; `maestro-celery status --failed {self._plan.root}` lists the failed samples."
            if step.samples.pending + step.samples.running == 0:
                yield f"`{self._resume_failed}` runs the failed samples again, and then what depends on them."

    def _failed_record(self, step: StepStatus) -> RecordSamples | None:
        """Return the samples of a step record that has failed because of them; None for any other."""
        record = self._reader.record(step.name) if step.state == "FAILED" else None
        return record if record is not None and has_failed(record.manifest, record.states) else None

    def _interruptions(self, step: StepStatus) -> Iterator[str]:
        count, longest_s = self._reader.interruptions(step.name)
        has_allocations = any(self._allocation_of(name) for name in self._groups_of(step))
        if count and has_allocations and step.state != "CANCELLED" and self._reader.fatal_sample(step.name) is None:
            attempts = "1 attempt was" if count == 1 else f"{count} attempts were"
            yield (
                f"{attempts} interrupted, the longest after {longest_s:.0f} s. Samples that need more time require a "
                "longer `walltime`, or a `restart` that continues from their stored results."
            )

    def _advice(self, step: StepStatus, remaining: int, reason: Reason | None) -> str:
        words = "1 sample remains" if remaining == 1 else f"{remaining} samples remain"
        if self._failed_record(step) is not None:
            return f"{words}; `{self._resume_failed}` runs them and the failed samples."
        if reason is not None and reason.is_failure:
            return (
                f"{words}; correct the cause, then {self._resume} runs them. The study keeps the specification of its "
                "launch: `--spec FILE` takes a corrected one."
            )
        times = "1 restart" if step.restarts == 1 else f"{step.restarts} restarts"
        restarts = f" after {times} (`maestro run -r` sets their limit)" if step.restarts else ""
        return f"{words}{restarts if step.state != 'CANCELLED' else ''}; {self._resume} runs them."

    def _open_allocation(self, name: str) -> Iterator[str]:
        """Yield a sentence about the allocation of a worker group if it was open at the last check of a conductor."""
        group = self._plan.settings.resources.workers[name]
        allocation = self._allocation_of(name)
        if allocation is not None and allocation.is_open:
            yield (
                f"Job {allocation.job} of allocation '{allocation.label}' was open at the last check. Its workers "
                f"leave {group.idle_limit:g} s after their last work; `maestro cancel {self._plan.root}` ends the job "
                "now."
            )

    # --- step records that wait or run ---

    def _awaited_steps(self, step: StepStatus) -> Iterator[str]:
        facts = self._plan.settings.steps.get(step.step)
        parents = [record for parent in (facts.depends if facts else ()) for record in self._records_of(parent, step)]
        awaited = [record for record in parents if record.state != "FINISHED"]
        if awaited:
            names = ", ".join(f"{record.name} ({record.state})" for record in awaited[:5])
            yield f"It needs {names}{f' and {len(awaited) - 5} more' if len(awaited) > 5 else ''}."
        elif step.state == "INITIALIZED":
            yield "Maestro submits it at its next poll, or later if `maestro run -t` limits the running steps."

    def _records_of(self, parent: str, step: StepStatus) -> list[StepStatus]:
        """Return the step records of an entry of `depends`: all for ``sim_*``, else those with equal parameters."""
        name = ALL_COMBINATIONS.sub("", parent)
        records = self._records[name]
        if name != parent or not records:
            return records
        shared = tuple((key, step.params.get(key, value)) for key, value in records[0].params.items())
        return self._by_params.get((name, shared), records)

    def _is_native(self, step: StepStatus) -> bool:
        facts = self._plan.settings.steps.get(step.step)
        return facts is not None and not facts.queues

    def _progress(self, step: StepStatus) -> Iterator[str]:
        if self._is_native(step):
            yield "Maestro runs it itself, as a separate batch job."
            return
        counts = step.samples
        yield f"Samples: {counts.running} running, {counts.pending} waiting, {counts.finished + counts.failed} ended."

    def _groups_of(self, step: StepStatus) -> list[str]:
        facts = self._plan.settings.steps.get(step.step)
        queues = set(facts.queues if facts else ())
        return [n for n, g in self._plan.settings.resources.workers.items() if queues.intersection(g.task_queues)]

    def _group_sentence(self, name: str) -> str:
        """Return the states of the live workers of a group, or why the group has no live worker."""
        group = self._plan.settings.resources.workers[name]
        alive = {worker.name: worker.state for worker in self.status.workers if worker.group == name}
        alive = {worker: state for worker, state in alive.items() if state not in _NOT_ALIVE}
        if alive:
            workers = [(worker, self._state(worker, state)) for worker, state in alive.items()]
            states = ", ".join(f"{worker} ({state})" for worker, state in workers[:_SHOWN])
            more = Counter(state for _, state in workers[_SHOWN:])
            rest = "".join(f", and {count} more ({state})" for state, count in more.items())
            return f"Worker group '{name}': {states}{rest}."
        if not is_for_this_machine(group):
            return (
                f"Worker group '{name}' waits for its workers on {' or '.join(group.machines)}: start them there with "
                f"`maestro-celery workers {self._plan.root} --group {name}`."
            )
        if batch_of(self._plan.settings, group).type == LOCAL:
            return f"Worker group '{name}': its worker is starting; its log is below '{self._plan.info / 'workers'}'."
        return self._allocation(name, self._allocation_of(name))

    def _allocation_of(self, name: str) -> Allocation | None:
        """Return the last allocation of a worker group."""
        return self._allocations.get(allocation_name(name, self._plan.settings.resources.workers[name]))

    def _state(self, worker: str, state: WorkerState) -> str:
        beat = self._beats.get(worker)
        if beat is not None and (beat.refuses or state is WorkerState.DRAINING):
            return f"{state}, its allocation ends too soon for the remaining samples"
        if state is WorkerState.HELD:
            return f"{state}, its last samples have failed; some of them run on another machine to find the cause"
        return str(state)

    @staticmethod
    def _allocation(group: str, allocation: Allocation | None) -> str:
        if allocation is None:
            return f"Worker group '{group}': no allocation has been submitted yet."
        subject = f"Worker group '{group}': allocation '{allocation.label}'"
        if allocation.job is None:
            return f"{subject} {allocation.reason or 'is being submitted: the batch system has not answered yet'}."
        text = f"{subject} (job {allocation.job}): {allocation.state.value}"
        if allocation.state is AllocationState.RUNNING:
            return f"{text}; its workers are starting, or cannot reach the study; see '{allocation.directory}'."
        return f"{text}{f': {allocation.reason}' if allocation.reason else ''}."


def _why_failed(record: RecordSamples) -> str:
    """Return why the failures of samples have failed a step record."""
    manifest, fatal = record.manifest, record.fatal_sample()
    if manifest.samples == 1:
        return f"The step failed ({record.failed(1)[0].end})."
    if fatal is not None:
        return f"The step failed because of sample {fatal.index}: {fatal.end}."
    failed, allowed = count_failures(record.states), allowed_failures(manifest)
    if allowed == manifest.samples - 1:
        return "The step failed because all its samples failed."
    return f"The step failed because {failed} samples failed; its `max_failures` allows {allowed}."
