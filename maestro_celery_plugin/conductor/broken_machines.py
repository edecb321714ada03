"""Broken machines: the coordinator finds out whether the samples or the machine are the cause of quick failures.

A worker that has failed several samples quickly and in a row takes no more samples (`worker/health.py`), and is on
trial: some of these samples run again on other machines. If one of them finishes there, the machine is broken: its
worker leaves, and all of these samples run again elsewhere, without a count against them. If they fail there as well,
the samples are the cause, and the worker continues. Until the end of the trial, a step record with such samples does
not count as finished.

While there is no other machine, the worker continues as well, but its failures are kept: the trial begins when a worker
on another machine appears.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.convictions import Convictions
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.states import Outcome, WorkerState
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S, Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["BrokenMachines"]

LOGGER = logging.getLogger(__name__)

# Number of samples that run again on other machines to find the cause.
_PROBES = 2
# A trial ends after this time, if no other machine has run the probes: the samples of a busy machine may take hours.
TRIAL_LIMIT_S = 600.0
# A worker that is held without a trial for this long may continue: its count may differ from that of the ledger.
_HELD_LIMIT_S = 10.0
# A worker that may continue has shown this in its heartbeat after this time.
_ANSWER_S = 3.0


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The search for the cause of the quick failures of one worker.

    Attributes:
        beat: The last heartbeat of the worker, which may die during the trial.
        probes: The samples that run again on other machines, with their step records.
        until: When the trial ends in any case (monotonic).
        before: The epoch of the last attempt before the trial, by number of the step record and sample.
    """

    beat: Heartbeat
    probes: list[tuple[StepRecord, int]]
    until: float
    before: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)


class BrokenMachines:
    """Finds the broken machines of a study.

    Args:
        plan: The study.
        session: The session.
        records: The step records.
        pool: The worker pool.
    """

    def __init__(self, plan: StudyPlan, session: Session, records: StepRecords, pool: WorkerPool) -> None:
        self._session, self._records, self._pool = session, records, pool
        self._failures = records.quick_failures
        self._trials: dict[str, _Trial] = {}
        self._known: dict[str, Heartbeat] = {}
        self._unknown_since: dict[str, float] = {}
        self._waiting_since: dict[str, float] = {}
        self._answered_at: dict[str, float] = {}
        self._convictions = Convictions(plan, session, self._failures, pool)

    def check(self) -> None:
        """Begin, continue or end the trial of each worker with quick failures."""
        self._known.update(self._pool.alive)
        self._end_convicted()
        accused = self._failures.accused()
        for name in self._trials.keys() - set(accused):
            self._acquit(self._trials[name].beat)  # another sample of this worker has ended otherwise
        self._find_unknown([name for name in accused if name not in self._known])
        for name in accused:
            if name in self._trials:
                self._continue(self._trials[name])
            elif name in self._known:
                self._begin(self._known[name])
        self._release_forgotten(accused)

    def _find_unknown(self, names: list[str]) -> None:
        """Look for the heartbeats of accused workers, and forget the failures of those that have none.

        Such a worker has ended before this conductor has begun. NFS may show the ledger of a live worker before its
        heartbeat, because it caches the names of files.
        """
        now = clock.monotonic()
        new = [name for name in names if name not in self._unknown_since]
        self._unknown_since = {name: self._unknown_since.get(name, now) for name in names}
        ended = [name for name, since in self._unknown_since.items() if now - since > SILENCE_LIMIT_S]
        if not (new or ended) or not self._pool.look_again():
            return
        self._known.update(self._pool.alive)
        for name in ended:
            if name not in self._known and name not in self._pool.unread:
                self._failures.acquit(name)

    def _release_forgotten(self, accused: list[str]) -> None:
        """Let workers continue that are held, or delay the end of step records, although they are not on trial."""
        now = clock.monotonic()
        waiting = {beat.name for beat in self._pool.alive.values() if beat.state is WorkerState.HELD}
        waiting.update(name for name in accused if name in self._known and not self._failures.is_released(name))
        waiting = {name for name in waiting if name not in self._trials and not self._failures.is_convicted(name)}
        self._waiting_since = {name: self._waiting_since.get(name, now) for name in waiting}
        for name, since in self._waiting_since.items():
            if now - since > _HELD_LIMIT_S:
                if name in accused:
                    self._failures.release(name)
                self._let_continue(name)

    # --- trials ---

    def _begin(self, beat: Heartbeat) -> None:
        """Begin the trial of a worker if another machine can run its samples.

        After the start of a conductor, Maestro has not submitted the step records yet. They are not judged before.
        """
        found = map(self._records.by_number, self._failures.records_of(beat.name))
        records = [record for record in found if record is not None and _is_running(record)]
        if not records:
            return
        if not self._has_other_machine(beat, records):
            self._release(beat, records)
            return
        failures = list(self._open_or_failed(beat.name))
        if not failures:  # they have run elsewhere since
            self._postpone(beat)
            return
        LOGGER.warning(
            "Worker '%s' on %s has failed %d samples in a row; some of them run again on other machines "
            "to find out whether the machine is broken.",
            beat.name,
            beat.node,
            len(failures),
        )
        self._failures.try_again(beat.name)
        trial = _Trial(beat, failures[:_PROBES], clock.monotonic() + TRIAL_LIMIT_S)
        for record, sample in trial.probes:
            self._run_probe(trial, record, sample)
        self._trials[beat.name] = trial

    def _open_or_failed(self, name: str) -> Iterator[tuple[StepRecord, int]]:
        """Yield the samples that a worker has failed in a row, and that no other has failed or finished since.

        The last one comes first.
        """
        seen = set()
        for failure in reversed(self._failures.of(name)):
            record = self._records.by_number(failure.record)
            if record is None or not _is_running(record) or failure[:2] in seen:
                continue
            seen.add(failure[:2])
            outcome = record.samples.outcome[failure.sample]
            is_last = record.samples.ended[failure.sample] <= failure.epoch
            if outcome == Outcome.OPEN or (outcome in (Outcome.FAILED, Outcome.HARD_FAILED) and is_last):
                yield record, failure.sample

    def _has_other_machine(self, accused: Heartbeat, records: Iterable[StepRecord]) -> bool:
        """Tell whether a worker on another machine can run samples of these step records."""
        groups = {group for record in records for group in record.groups}
        return any(
            beat.place != accused.place
            and beat.group in groups
            and beat.state in (WorkerState.STARTING, WorkerState.IDLE, WorkerState.BUSY)
            for beat in self._pool.alive.values()
        )

    def _run_probe(self, trial: _Trial, record: StepRecord, sample: int) -> None:
        trial.before[record.number, sample] = int(record.samples.ended[sample])
        self._run_again(record, sample)

    def _run_again(self, record: StepRecord, sample: int) -> None:
        if record.samples.outcome[sample] in (Outcome.FAILED, Outcome.HARD_FAILED):
            self._records.record_rerun(record, sample)

    def _continue(self, trial: _Trial) -> None:
        for record, sample in trial.probes:
            if self._has_failed_there(trial, record, sample):
                self._run_probe(trial, record, sample)
        outcomes = {Outcome(int(record.samples.outcome[sample])) for record, sample in trial.probes}
        records = [record for record, _ in trial.probes]
        if outcomes & {Outcome.FINISHED, Outcome.STOPPED_STUDY}:
            self._convict(trial.beat)
        elif Outcome.OPEN not in outcomes:
            self._acquit(trial.beat)
        elif clock.monotonic() > trial.until:
            self._postpone(trial.beat)
        elif not self._has_other_machine(trial.beat, records):
            self._release(trial.beat, records)

    def _has_failed_there(self, trial: _Trial, record: StepRecord, sample: int) -> bool:
        """Tell whether a worker on the same machine has failed a probe in the trial; this is no evidence.

        The worker on trial itself may do so, if it was released before.
        """
        there = [beat.name for beat in self._known.values() if beat.place == trial.beat.place]
        before = trial.before[record.number, sample]
        return any(self._failures.last_epoch(name, record.number, sample) > before for name in there)

    # --- ends of trials ---

    def _acquit(self, beat: Heartbeat) -> None:
        """The samples are the cause: let a worker continue."""
        self._trials.pop(beat.name, None)
        self._failures.acquit(beat.name)
        self._let_continue(beat.name)

    def _postpone(self, beat: Heartbeat) -> None:
        """Let a worker continue, because no other machine has run its samples in time."""
        self._trials.pop(beat.name, None)
        self._failures.postpone(beat.name)
        self._let_continue(beat.name)

    def _release(self, beat: Heartbeat, records: list[StepRecord]) -> None:
        """Let a worker continue while no other machine can run its samples."""
        if not self._failures.is_released(beat.name):
            # NFS may not show the heartbeat of another machine yet; then the next check begins or continues the trial.
            if self._pool.look_again() and self._has_other_machine(beat, records):
                return
            self._failures.release(beat.name)
        self._trials.pop(beat.name, None)
        self._let_continue(beat.name)

    def _let_continue(self, name: str) -> None:
        """Tell a held worker that it may continue; otherwise, it would take this as the answer to a later question."""
        beat, now = self._pool.alive.get(name), clock.monotonic()
        if (
            beat is None
            or beat.state is not WorkerState.HELD
            or now - self._answered_at.get(name, -_ANSWER_S) < _ANSWER_S
        ):
            return
        self._answered_at[name] = now
        try:
            self._session.heartbeats.acquit(name)
        except OSError as error:  # `_release_forgotten` tries again
            LOGGER.warning("Worker '%s' cannot be told to continue: %s", name, error)

    def _convict(self, beat: Heartbeat) -> None:
        """Let a worker leave the study; its failed samples run again elsewhere."""
        self._convictions.add(beat)
        self._trials = {name: trial for name, trial in self._trials.items() if not self._failures.is_convicted(name)}
        self._end_convicted()

    def _end_convicted(self) -> None:
        """Let all that convicted workers have failed run again; until their end, they may fail more samples."""
        for name in self._failures.convicted():
            active = [r for r in map(self._records.by_number, self._failures.records_of(name)) if r and _is_running(r)]
            if active:
                for record, sample in list(self._open_or_failed(name)):
                    self._run_again(record, sample)
                self._failures.forget(name, [record.number for record in active])
        self._convictions.enforce()


def _is_running(record: StepRecord) -> bool:
    return record.active and not record.cancelled
