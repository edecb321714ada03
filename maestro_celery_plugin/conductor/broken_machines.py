"""Broken machines: the coordinator finds out whether the samples or the machine are the cause of quick failures.

A worker that has failed several samples quickly and in a row takes no more samples (`worker/health.py`). Some of these
samples run again on other machines. If they can run there, the machine is broken: its worker leaves, and all of these
samples run again elsewhere, without a count against them. Otherwise the worker continues.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.states import Outcome, how_it_ended
from maestro_celery_plugin.study.broken_machines import BrokenMachine, read_broken_machines, write_broken_machines
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["BrokenMachines"]

LOGGER = logging.getLogger(__name__)

# Number of samples that run again on other machines to find the cause.
_PROBES = 2
# A worker continues if no other machine has run these samples after this time.
TRIAL_LIMIT_S = 120.0


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The search for the cause of the quick failures of one worker.

    Attributes:
        probes: The samples that run again on other machines, with their step records.
        until: When the worker continues in any case (monotonic).
    """

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
        self._trials: dict[str, _Trial] = {}
        self._convicted: set[str] = set()
        self._found = read_broken_machines(self._path)

    def check(self) -> None:
        """Begin, continue or end the trial of each worker that is a suspect."""
        beats = [beat for beat in self._pool.alive.values() if beat.name not in self._convicted]
        suspects = {beat.name: beat for beat in beats if beat.state == "suspect"}
        for name in self._trials.keys() - suspects.keys():
            del self._trials[name]
        for name, beat in suspects.items():
            if name in self._trials:
                self._continue(beat, self._trials[name])
            else:
                self._begin(beat)

    def _begin(self, beat: Heartbeat) -> None:
        failures = list(self._failures_of(beat.name))
        if not failures or not self._has_other_machine(beat):
            self._acquit(beat)
            return
        probes = failures[-_PROBES:]
        LOGGER.warning(
            "Worker '%s' on %s has failed %d samples in a row; some of them run again on other machines "
            "to find out whether the machine is broken.",
            beat.name,
            beat.node,
            len(failures),
        )
        for record, sample in probes:
            self._run_again(record, sample)
        self._trials[beat.name] = _Trial(probes, clock.monotonic() + TRIAL_LIMIT_S)

    def _failures_of(self, name: str) -> Iterator[tuple[StepRecord, int]]:
        """Yield the samples that have failed on a worker in a row and have not finished elsewhere since."""
        for number, sample, _ in self._records.quick_failures.of(name):
            record = self._records.by_number(number)
            if record is not None and record.active and record.samples.outcome[sample] != Outcome.FINISHED:
                yield record, sample

    def _has_other_machine(self, suspect: Heartbeat) -> bool:
        """Tell whether a worker on another machine can run the same samples."""
        queues = set(self._pool.groups[suspect.group].task_queues)
        return any(
            (beat.machine, beat.host) != (suspect.machine, suspect.host) and beat.state in ("idle", "busy")
            for beat in self._pool.alive.values()
            if queues.intersection(self._pool.groups[beat.group].task_queues)
        )

    def _run_again(self, record: StepRecord, sample: int) -> None:
        if record.samples.outcome[sample] in (Outcome.FAILED, Outcome.HARD_FAILED):
            self._records.record_rerun(record, sample)

    def _continue(self, beat: Heartbeat, trial: _Trial) -> None:
        outcomes = {Outcome(int(record.samples.outcome[sample])) for record, sample in trial.probes}
        if outcomes & {Outcome.FINISHED, Outcome.STOPPED_STUDY}:
            self._convict(beat)
        elif Outcome.OPEN not in outcomes or clock.monotonic() > trial.until or not self._has_other_machine(beat):
            self._acquit(beat)

    def _convict(self, beat: Heartbeat) -> None:
        """Take a worker out of the study; its failed samples run again elsewhere."""
        self._convicted.add(beat.name)
        failures = self._records.quick_failures.of(beat.name)
        reason = how_it_ended(failures[-1][2])
        machine = BrokenMachine(node=beat.node, worker=beat.name, reason=reason, samples=len(failures))
        LOGGER.warning("%s", machine.sentence)
        for record, sample in self._failures_of(beat.name):
            self._run_again(record, sample)
        self._session.request_worker_stop(beat.name.partition(".")[0])
        self._found.append(machine)
        write_broken_machines(self._path, self._found)

    def _acquit(self, beat: Heartbeat) -> None:
        self._trials.pop(beat.name, None)
        self._session.heartbeats.acquit(beat.name)
