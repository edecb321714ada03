"""Explanations from the files of a study: why step records do not run, or why they have ended."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin.files import tail
from maestro_celery_plugin.report.group_sentences import GroupSentences
from maestro_celery_plugin.report.model import StepStatus, StudyState, StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_status import RecordSamples
from maestro_celery_plugin.report.sentences import Sentence, Who, explained, fixed
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.report.unserved_steps import unserved_steps
from maestro_celery_plugin.spec.dag import ALL_COMBINATIONS
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps, reason_of
from maestro_celery_plugin.study.failures import allowed_failures, has_failed
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import Reason, read_reasons
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import FINAL_STATES
from maestro_celery_plugin.study.worker_identity import log_of

__all__ = ["Explanation", "explain"]

_TAIL_BYTES = 4096
# States of workers that take no further samples.
_TAKES_NOTHING = (WorkerState.DEAD, WorkerState.AWAITED, WorkerState.STOPPING)
# The number of step records that a sentence names.
_SHOWN = 5


def explain(directory: Path) -> list[tuple[str, list[str]]]:
    """Return a title and sentences for the step records that have not finished or have failed samples.

    Step records with the same explanation have one title.
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
        self._groups = GroupSentences(self._plan, self.status)
        taking = {worker.group for worker in self.status.workers if worker.state not in _TAKES_NOTHING}
        self._unserved = unserved_steps(self._plan.settings, self.status.workers_stopped, taking)
        self._reasons: dict[str, Reason] = read_reasons(self._plan.reasons) | read_reasons(self._plan.refusals)
        self._cancelled = CancelledSteps(self._plan.cancelled_steps).names()
        self._records: dict[str, list[StepStatus]] = defaultdict(list)
        self._by_params: dict[tuple[str, tuple[tuple[str, str], ...]], list[StepStatus]] = defaultdict(list)
        for step in self.status.steps:
            self._records[step.step].append(step)
            self._by_params[step.step, tuple(step.params.items())].append(step)

    @property
    def launched_with(self) -> str:
        """The options of the launch that set something in place of the specification; empty without them."""
        return shlex.join(self._plan.overrides.words)

    @property
    def _resume(self) -> str:
        return f"`{self._command('maestro-celery resume')}`"

    @property
    def _resume_failed(self) -> str:
        return f"`{self._command('maestro-celery resume --failed')}`"

    def _command(self, command: str) -> str:
        return command_words(command, self._plan.root)

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
        steps = (step for step in self.status.steps if step.state != "FINISHED" or step.samples.failed)
        yield from explained((step, list(self._why(step))) for step in steps)

    def _warnings(self) -> Iterator[tuple[str, list[str]]]:
        if self.status.damage:
            yield "The ledger is damaged", self.status.damage
        member = Members(self._plan.session).read(self._plan.id)
        if member is not None and member.restarts:
            yield "The conductor has died", ["The host of the session has started another one, which went on."]
        if self.status.broker_problem:
            yield "The broker does not answer", [self.status.broker_problem]
        if self.status.broken_machines:
            yield "Broken machines", [machine.sentence for machine in self.status.broken_machines]
        if self.status.additions_sentence:
            command = f" {self._resume} runs what was added." if self.status.has_ended else ""
            yield "Added samples", [f"{self.status.additions_sentence}{command}"]
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

    def _why(self, step: StepStatus) -> Iterator[Sentence]:
        if step.state in FINAL_STATES:
            yield from self._why_ended(step)
        elif self.status.has_ended:
            yield fixed(f"No conductor runs the study; {self._resume} continues it.")
            yield from map(fixed, self._groups.open_allocations(step.step))
        elif step.state == "INITIALIZED":
            yield from self._awaited_steps(step)
        elif self._is_native(step):
            yield fixed("Maestro runs it itself, as a separate batch job.")
        else:
            stopped = self.status.workers_stopped
            if stopped is not None and step.step in self._unserved:
                yield fixed(stopped.advice(self._plan.root))
            yield Sentence("progress", _progress_words)
            yield from map(fixed, self._groups.now(step.step))

    # --- step records that have ended ---

    def _why_ended(self, step: StepStatus) -> Iterator[Sentence]:
        if step.state == "CANCELLED" and step.name in self._cancelled:
            root = self._plan.root
            yield Sentence("cancel --step", lambda who: reason_of(who.steps[0].name if who.is_one else "NAME", root))
            return
        reason = self._reasons.get(step.name) if step.state != "FINISHED" else None
        if reason is not None:
            yield fixed(reason.text)
        yield from self._failures(step)
        if step.samples.pending + step.samples.running:
            yield from self._interruptions(step)
            yield self._advice(step, reason)
        if not step.samples.total:
            awaited = list(self._awaited_steps(step))
            yield from awaited
            if self._is_native(step) and step.state != "CANCELLED" and not awaited and reason is None:
                yield fixed(f"Maestro has run it itself; its output is below '{self._plan.root / step.step}'.")

    def _failures(self, step: StepStatus) -> Iterator[Sentence]:
        record = self._reader.record(step.name)
        if record is None or not step.samples.failed:
            return
        is_alone = not record.manifest.sampled
        if is_alone and step.state == "FINISHED":
            yield fixed(f"It ended with {record.failed(1)[0].end}, with which the study goes on.")
        elif is_alone or self._has_failed(step):
            yield _why_failed(record)
        status = self._command("maestro-celery failed")
        yield Sentence("failures", lambda who: _failure_words(who, status, is_alone=is_alone))
        if step.samples.pending + step.samples.running == 0:
            yield Sentence("again", lambda who: self._again_words(who, is_alone=is_alone))

    def _again_words(self, who: Who, *, is_alone: bool) -> str:
        what, they = ("it", "it") if is_alone and who.is_one else ("them" if is_alone else "the failed samples", "them")
        return f"{self._resume_failed} runs {what} again, and then what depends on {they}."

    def _has_failed(self, step: StepStatus) -> bool:
        """Tell whether a step record has failed because of its samples."""
        record = self._reader.record(step.name) if step.state == "FAILED" else None
        return record is not None and has_failed(record.manifest, record.states)

    def _interruptions(self, step: StepStatus) -> Iterator[Sentence]:
        is_relevant = self._reader.interruptions(step.name)[0] and self._reader.fatal_sample(step.name) is None
        if is_relevant and step.state != "CANCELLED" and self._groups.has_allocation(step.step):
            yield Sentence("interruptions", self._interruption_words)

    def _interruption_words(self, who: Who) -> str:
        counts, longest_s = zip(*(self._reader.interruptions(step.name) for step in who.steps), strict=True)
        attempts = "1 attempt was" if sum(counts) == 1 else f"{sum(counts)} attempts were"
        return (
            f"{attempts} interrupted, the longest after {max(longest_s):.0f} s. Samples that need more time require a "
            "longer `walltime`, or a `restart` that continues from their stored results."
        )

    def _advice(self, step: StepStatus, reason: Reason | None) -> Sentence:
        """Return how many samples remain, and what runs them."""
        if self._has_failed(step):
            rest = f"; {self._resume_failed} runs them and the failed samples."
        elif reason is not None and reason.is_failure:
            rest = (
                f"; correct the cause, then {self._resume} runs them. The study keeps the specification of its launch: "
                "`--spec FILE` takes a corrected one."
            )
        else:
            times = "1 restart" if step.restarts == 1 else f"{step.restarts} restarts"
            has_restarted = step.restarts and step.state != "CANCELLED"
            rest = f" after {times} (`maestro run -r` sets their limit)" if has_restarted else ""
            rest += f"; {self._resume} runs them."
        return Sentence(f"remaining{rest}", lambda who: _remaining_words(who, rest))

    # --- step records that wait or run ---

    def _awaited_steps(self, step: StepStatus) -> Iterator[Sentence]:
        facts = self._plan.settings.steps.get(step.step)
        for_all: list[str] = []
        awaited: list[StepStatus] = []
        for parent in facts.depends if facts else ():
            records = [record for record in self._records_of(parent, step) if record.state != "FINISHED"]
            awaited += records
            # Each step record waits for another one, but what is to be said of them is the same.
            is_funnel = ALL_COMBINATIONS.search(parent) is not None
            own = len(records) == 1 and not is_funnel and len(self._records[records[0].step]) > 1
            for_all += [_of_own_parameters(records[0])] if own else [_with_names(records)] if records else []
        if awaited:
            one, common = f"It needs {_with_names(awaited)}.", f"Each needs {' and '.join(for_all)}."
            yield Sentence(common, lambda who: one if who.is_one else common)
        elif step.state == "INITIALIZED":
            yield fixed("Maestro submits it at its next poll, or later if `maestro run -t` limits the running steps.")

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


def _of_own_parameters(record: StepStatus) -> str:
    return f"the step record of '{record.step}' with its parameter values ({record.state})"


def _with_names(records: list[StepStatus]) -> str:
    """Return the names and states of step records, and the number of those that are not named."""
    names = ", ".join(f"{record.name} ({record.state})" for record in records[:_SHOWN])
    return f"{names}{f' and {len(records) - _SHOWN} more' if len(records) > _SHOWN else ''}"


def _progress_words(who: Who) -> str:
    counts = who.samples
    return f"Samples: {counts.running} running, {counts.pending} waiting, {counts.finished + counts.failed} ended."


def _failure_words(who: Who, command: str, *, is_alone: bool) -> str:
    if is_alone:
        return f"`{command}` shows its directory."
    failed, total = who.samples.failed, who.samples.total
    words = "The only sample failed" if total == 1 else f"{failed} of {total} samples failed"
    return f"{words}; `{command}` shows why, and what they have in common."


def _remaining_words(who: Who, rest: str) -> str:
    remaining = who.samples.pending + who.samples.running
    one = rest.replace(" runs them", " runs it")
    return f"1 sample remains{one}" if remaining == 1 else f"{remaining} samples remain{rest}"


def _why_failed(record: RecordSamples) -> Sentence:
    """Return why the failures of samples have failed a step record."""
    manifest, fatal = record.manifest, record.fatal_sample()
    if manifest.samples == 1:
        return fixed(f"The step failed ({record.failed(1)[0].end}).")
    if fatal is not None:
        return fixed(f"The step failed because of sample {fatal.index}: {fatal.end}.")
    failed, allowed = record.states.failures, allowed_failures(manifest)
    if allowed == manifest.samples - 1:
        return fixed("The step failed because all its samples failed.")
    samples = "1 sample" if failed == 1 else f"{failed} samples"
    own = f"The step failed because {samples} failed; its `max_failures` allows {allowed}."
    common = f"Each failed because more samples failed than its `max_failures` allows: {allowed}."
    return Sentence(common, lambda who: own if who.is_one else common)
