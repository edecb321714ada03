"""Broken machines: the coordinator finds out whether the samples or the machine are the cause of quick failures.

A worker that has failed several samples quickly and in a row takes no more samples (`worker/health.py`), and is on
trial: some of these samples run again on other machines. If one of them finishes there, the machine is broken: its
worker leaves, and all of these samples run again elsewhere, without a count against them. Otherwise the worker
continues. Until the end of the trial, a step record with such samples does not count as finished.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.states import Outcome, WorkerState, how_it_ended
from maestro_celery_plugin.study.broken_machines import BrokenMachine, read_broken_machines, write_broken_machines
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["BrokenMachines"]

LOGGER = logging.getLogger(__name__)

# Number of samples that run again on other machines to find the cause.
_PROBES = 2
# A trial ends after this time, if no other machine has run the probes: the samples of a busy machine may take hours.
TRIAL_LIMIT_S = 600.0
# A worker that is held without a trial for this long may continue: its count may differ from that of the ledger.
_HELD_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The search for the cause of the quick failures of one worker.

    Attributes:
        beat: The last heartbeat of the worker, which may die during the trial.
        probes: The samples that run again on other machines, with their step records.
        until: When the trial ends in any case (monotonic).
    """

    beat: Heartbeat
    probes: list[tuple[StepRecord, int]]
    until: float


class BrokenMachines:
    """Finds the broken machines of a study.

    Args:
        plan: The study.
        session: The session.
        records: The step records.
        pool: The worker pool.
    """

    def __init__(self, plan: StudyPlan, session: Session, records: StepRecords, pool: WorkerPool) -> None:
        self._path, self._session, self._records, self._pool = plan.broken_machines, session, records, pool
        self._failures = records.quick_failures
        self._trials: dict[str, _Trial] = {}
        self._known: dict[str, Heartbeat] = {}
        self._held_since: dict[str, float] = {}
        self._found = read_broken_machines(self._path)

    def check(self) -> None:
        """Begin, continue or end the trial of each worker with quick failures."""
        self._known.update(self._pool.alive)
        accused = self._failures.accused()
        for name in self._trials.keys() - set(accused):
            self._acquit(self._trials[name].beat)  # another sample of this worker has ended otherwise
        for name in accused:
            if name in self._trials:
                self._continue(self._trials[name])
            elif name in self._known:
                self._begin(self._known[name])
            else:
                self._failures.acquit(name)  # a worker of an earlier conductor
        self._release_forgotten()

    def _release_forgotten(self) -> None:
        """Let workers continue that are held although they are not on trial."""
        now = clock.monotonic()
        held = [b for b in self._pool.alive.values() if b.state is WorkerState.HELD and b.name not in self._trials]
        self._held_since = {beat.name: self._held_since.get(beat.name, now) for beat in held}
        for beat in held:
            if now - self._held_since[beat.name] > _HELD_LIMIT_S:
                self._acquit(beat)

    def _begin(self, beat: Heartbeat) -> None:
        failures = list(self._open_or_failed(beat.name))
        if not failures or not self._has_other_machine(beat, failures):
            self._acquit(beat)
            return
        LOGGER.warning(
            "Worker '%s' on %s has failed %d samples in a row; some of them run again on other machines "
            "to find out whether the machine is broken.",
            beat.name,
            beat.node,
            len(failures),
        )
        probes = failures[-_PROBES:]
        for record, sample in probes:
            self._run_again(record, sample)
        self._trials[beat.name] = _Trial(beat, probes, clock.monotonic() + TRIAL_LIMIT_S)

    def _open_or_failed(self, name: str) -> Iterator[tuple[StepRecord, int]]:
        """Yield the samples that a worker has failed in a row, and that have not finished elsewhere since."""
        for failure in self._failures.of(name):
            record = self._records.by_number(failure.record)
            if record is None or not record.active or record.cancelled:
                continue
            if record.samples.outcome[failure.sample] not in (Outcome.FINISHED, Outcome.STOPPED_STUDY):
                yield record, failure.sample

    def _has_other_machine(self, accused: Heartbeat, failures: list[tuple[StepRecord, int]]) -> bool:
        """Tell whether a worker on another machine can run these samples."""
        groups = {group for record, _ in failures for group in record.groups}
        return any(
            beat.place != accused.place
            and beat.group in groups
            and beat.state in (WorkerState.STARTING, WorkerState.IDLE, WorkerState.BUSY)
            for beat in self._pool.alive.values()
        )

    def _run_again(self, record: StepRecord, sample: int) -> None:
        if record.samples.outcome[sample] in (Outcome.FAILED, Outcome.HARD_FAILED):
            self._records.record_rerun(record, sample)

    def _continue(self, trial: _Trial) -> None:
        for record, sample in trial.probes:
            if self._has_failed_beside(trial.beat, record, sample):
                self._run_again(record, sample)  # another worker of the same machine has taken it
        outcomes = {Outcome(int(record.samples.outcome[sample])) for record, sample in trial.probes}
        if outcomes & {Outcome.FINISHED, Outcome.STOPPED_STUDY}:
            self._convict(trial.beat)
        elif (
            Outcome.OPEN not in outcomes
            or clock.monotonic() > trial.until
            or not self._has_other_machine(trial.beat, trial.probes)
        ):
            self._acquit(trial.beat)

    def _has_failed_beside(self, accused: Heartbeat, record: StepRecord, sample: int) -> bool:
        """Tell whether another worker on the same machine has failed a sample."""
        neighbours = [
            beat.name for beat in self._known.values() if beat.name != accused.name and beat.place == accused.place
        ]
        failures = (failure for name in neighbours for failure in self._failures.of(name))
        return any((failure.record, failure.sample) == (record.number, sample) for failure in failures)

    def _convict(self, beat: Heartbeat) -> None:
        """Let a worker leave the study; its failed samples run again elsewhere."""
        worker = worker_of(beat.name)
        failures = self._failures.of(beat.name)
        machine = BrokenMachine(
            node=beat.node, worker=worker, reason=how_it_ended(failures[-1].code), samples=len(failures)
        )
        LOGGER.warning("%s", machine.sentence)
        # All processes of its pool leave with it.
        for name in [name for name in self._failures.writers() if worker_of(name) == worker]:
            for record, sample in list(self._open_or_failed(name)):
                self._run_again(record, sample)
            self._failures.convict(name)
            self._trials.pop(name, None)
        self._pool.exclude(beat)
        self._session.request_worker_stop(worker)
        self._found.append(machine)
        write_broken_machines(self._path, self._found)

    def _acquit(self, beat: Heartbeat) -> None:
        self._trials.pop(beat.name, None)
        self._failures.acquit(beat.name)
        self._held_since.pop(beat.name, None)
        if beat.name in self._pool.alive:
            self._session.heartbeats.acquit(beat.name)
