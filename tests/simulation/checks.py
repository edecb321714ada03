"""The checks: what must hold after every step and at the end, from the truth of the simulated samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from maestro_celery_plugin.conductor.step_record import SUSPECT_LOSSES
from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.maestro.reruns import Cause
from maestro_celery_plugin.states import POISON_LIMIT, ExitCode, Outcome, outcome_of
from maestro_celery_plugin.worker import fences, supervisor, worker_process
from simulation.samples import Attempt, SampleKey
from simulation.studies import Study

__all__ = ["Checks"]

_FINISHED = (Outcome.FINISHED, Outcome.STOPPED_STUDY)
_REQUESTS = (ExitCode.RESTART, ExitCode.RETRY)
# After a pause of its whole node, a supervisor ends the samples of its worker within this time: it looks at intervals,
# and gives them some time after SIGTERM.
_FENCE_S = supervisor._CHECK_INTERVAL_S + supervisor.KILL_GRACE_S + 0.25
# A worker and the conductor see each other's entries within this time, unless a node is disturbed: the worker writes
# back its entries and reads those of the conductor at intervals, and a few operations of files come between. Each of
# them may wait as long as the file server of the world lets it (`_seen_s`).
_INTERVALS_S = worker_process._WATCH_S + fences.CHECK_INTERVAL_S + 0.1
_OPERATIONS = 4


class Checks:
    """Compares what the product believes with what has happened.

    Args:
        world: The world.

    Attributes:
        violations: What must not have happened, as sentences.
        reruns: Why attempts ran again, with their number.
        ends: How samples have ended, with their number.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.violations: list[str] = []
        self.reruns: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self._finished: dict[str, np.ndarray[Any, Any]] = {}
        self._ended_at: dict[str, float] = {}
        self._was_cut = False
        self._of_before: list[Any] = []
        # Samples that run again on request: since when, and why; and the number of attempts before the request.
        self._asked: dict[SampleKey, tuple[float, Cause]] = {}
        self._before: dict[SampleKey, int] = {}
        self._entries: Entries

    def fail(self, text: str) -> None:
        """Note what must not have happened."""
        kernel = self._world.kernel
        kernel.trace(f"VIOLATION {text}")
        self.violations.append(f"{kernel.now:.3f} s: {text}")

    @property
    def _seen_s(self) -> float:
        profile = self._world.profile
        return _INTERVALS_S + _OPERATIONS * (profile.wait_s if profile.wait_rate else profile.operation_s)

    # --- after every step ---

    def begin(self, attempt: Attempt) -> None:
        """Check that an attempt may begin."""
        earlier = self._world.samples.attempts[attempt.key]
        name = f"sample {attempt.key[1]} of {attempt.key[0]}"
        self._check_alone(attempt, earlier, name)
        self._check_suspects(attempt, name)
        if self._known_outcome(attempt.key) in _FINISHED:
            self.fail(f"{name} begins although it has finished")
        state = self._world.study_of(attempt.key[0]).maestro.ended.get(attempt.key[0])
        ended_s = self._world.kernel.now - self._ended_at.get(attempt.key[0], 0.0)
        if state is not None and ended_s > self._seen_s and not self._world.is_disturbed(attempt.worker):
            self.fail(f"{name} begins although its step record is {state}")
        if earlier:
            self._judge_rerun(attempt, earlier[-1], name)
        elif attempt.restart and not self._world.has_lost_workers:
            self.fail(f"{name} runs `restart` although it has never started")

    def _check_alone(self, attempt: Attempt, earlier: list[Attempt], name: str) -> None:
        """Check that no other attempt at the same sample runs."""
        kernel = self._world.kernel
        running = [one for one in earlier if one.code is None]
        for one in running:
            if one.process.paused_until > kernel.now:  # with its whole node: it runs again only when the node does
                kernel.call(one.process.paused_until - kernel.now + _FENCE_S, lambda one=one: self._is_fenced(one))
        running = [one for one in running if one.process.paused_until <= kernel.now]
        if running:
            self.fail(
                f"{name} begins on {attempt.node} by {attempt.worker.name} while another attempt runs on "
                f"{running[0].node} by {running[0].worker.name} since {running[0].begin:.3f} s"
            )

    def _is_fenced(self, attempt: Attempt) -> None:
        """Check that an attempt has ended soon after the pause of its node, because it runs elsewhere."""
        if attempt.code is None and attempt.process.paused_until <= self._world.kernel.now - _FENCE_S:
            self.fail(f"sample {attempt.key} still runs on {attempt.node} after its pause")

    def _check_suspects(self, attempt: Attempt, name: str) -> None:
        """Check that no two suspects of a study run at the same time: one could let the other fail."""
        if not self._is_suspect(attempt.key):
            return
        study = self._world.study_of(attempt.key[0])
        for other in self._world.samples.running():
            is_seen = other.worker.is_alive and not self._world.may_be_lost(other)
            if other.key != attempt.key and other.key[0] in study.names and is_seen and self._is_suspect(other.key):
                self.fail(f"{name} begins although it is a suspect, and sample {other.key} runs, which is one as well")

    def _is_suspect(self, key: SampleKey) -> bool:
        record = self._world.record(key[0])
        return record is not None and bool(record.samples.losses[key[1]] >= SUSPECT_LOSSES)

    def _was_only_recorded(self, key: SampleKey) -> bool:
        """Tell whether an attempt was recorded whose worker died before its process began: a conductor cannot know this."""
        record = self._world.record(key[0])
        died = [one for one in self._world.samples.attempts[key] if one.was_ended or one.code in (None, -9, -15)]
        return record is not None and bool(record.samples.losses[key[1]] > len(died))

    def _judge_rerun(self, attempt: Attempt, last: Attempt, name: str) -> None:
        """Check that a rerun has a reason, and that it runs `restart` exactly when the promise says so."""
        if last.code is None:
            return
        is_lost = self._world.may_be_lost(last) or self._was_cut
        asked_at, cause = self._asked.get(attempt.key, (-1.0, Cause.NONE))
        if last.begin < asked_at + self._seen_s and cause is Cause.CHANGED:
            reason, restart = "its inputs have changed", False
        elif last.begin < asked_at and last.code not in _REQUESTS:
            reason, restart = "a user has asked for it", True
        elif last.was_ended or last.killed_worker or last.code in (-9, -15):
            reason, restart = "its worker has died or was stopped", True
        elif last.was_signalled and last.code not in _REQUESTS:  # it has ended before SIGKILL
            reason, restart = "it was told to end", True
        elif last.code in _REQUESTS:
            reason, restart = "it has asked for it", last.code == ExitCode.RESTART
        elif is_lost:
            reason, restart = "its end was lost with its worker", True
        elif last.code != 0 and last.end - last.begin < 1.0 and self._world.profile.workers != "local":
            reason, restart = "its machine may be broken", attempt.restart
        else:
            self.fail(f"{name} runs again without a reason after exit code {last.code} by {last.worker}")
            return
        self.reruns[reason] += 1
        if restart != attempt.restart and not is_lost and not (attempt.restart and self._was_only_recorded(attempt.key)):
            what = "restart" if attempt.restart else "cmd"
            self.fail(f"{name} runs `{what}` after exit code {last.code} ({reason})")

    def _known_outcome(self, key: SampleKey) -> Outcome:
        record = self._world.record(key[0])
        return Outcome.OPEN if record is None else Outcome(int(record.samples.outcome[key[1]]))

    def look(self) -> None:
        """Check that no finished sample has changed."""
        for study in self._world.studies:
            conductor = self._world.conductor(study)
            if conductor is None or not (conductor.process.is_alive or conductor.has_ended):
                continue
            if conductor in self._of_before:
                continue  # what it knows is not in the ledger any more
            is_resuming = study.resume is not None and study.resume.is_alive
            if is_resuming or any(one.process.is_alive and one.coordinator is None for one in study.conductors):
                continue  # the conductor of before does not know what runs again
            for name in study.names:
                self._look_at(name)

    def _look_at(self, name: str) -> None:
        record = self._world.record(name)
        if record is None:
            return
        finished = np.isin(record.samples.outcome, _FINISHED)
        before = self._finished.setdefault(name, finished)
        if (before & ~finished).any():
            self.fail(f"samples {np.flatnonzero(before & ~finished).tolist()} of {name} have finished before")
        self._finished[name] = before | finished

    def forget(self) -> None:
        """Forget which samples have finished, because the power was cut: what was not on the disk runs again."""
        self._finished.clear()
        self._was_cut = True
        self._of_before = [conductor for study in self._world.studies for conductor in study.conductors]

    def record_ends(self, name: str, state: str) -> None:
        """Check that no sample runs when Maestro learns that its step record has ended."""
        self.look()
        self._ended_at[name] = self._world.kernel.now
        for attempt in self._world.samples.running():
            if attempt.key[0] != name or not attempt.worker.is_alive or self._world.may_be_lost(attempt):
                continue
            if self._world.kernel.now - attempt.begin > self._seen_s:
                self.fail(f"{name} is {state} while sample {attempt.key[1]} runs on {attempt.node}")

    # --- requests for reruns ---

    def asks(self, study: Study, causes: dict[str, np.ndarray[Any, Any]], misled: list[str]) -> None:
        """Check what a resume lets run again, before it records it.

        Args:
            study: The study.
            causes: The `Cause` of each sample of each step record that was submitted.
            misled: The step records that have used lost outcomes.
        """
        for name, found in causes.items():
            for sample in np.flatnonzero(found).tolist():
                cause = Cause(int(found[sample]))
                self._asked[name, sample] = self._world.kernel.now, cause
                if cause is Cause.CHANGED:
                    self._check_changed(study, name, causes, misled)
                    if name in self._finished:
                        self._finished[name][sample] = False

    def _check_changed(
        self, study: Study, name: str, causes: dict[str, np.ndarray[Any, Any]], misled: list[str]
    ) -> None:
        """Check that a step record runs again because of the one that it depends on."""
        parent = study.names[0]
        depends = study.maestro.has_edge and name == study.names[-1]
        if not depends or not (causes.get(parent, np.zeros(1)).any() or (name in misled and self._was_cut)):
            self.fail(f"samples of {name} run again because of changed inputs, which have not changed")

    def asked(self, study: Study, causes: dict[str, np.ndarray[Any, Any]]) -> None:
        """Remember that what runs again is recorded: outcomes of earlier attempts do not count any more."""
        for name, found in causes.items():
            for sample in np.flatnonzero(found).tolist():
                self._before[name, sample] = len(self._world.samples.attempts[name, sample])

    # --- at the end ---

    def end(self) -> None:
        """Check the outcomes, and that nothing is left."""
        world = self._world
        for study in world.studies:
            for name in study.names:
                self._check_end(study, name)
        for attempt in world.samples.running():
            self.fail(f"sample {attempt.key} still runs on {attempt.node} after the end")
        for job in world.batch.open_jobs():
            self.fail(f"job {job.number} is still {job.state.name} after the end")
        for node in world.kernel.nodes.values():
            for process in node.processes.values():
                self.fail(f"{process} lives after the end")
        for fault in world.kernel.faults:
            self.fail(f"an error in a thread: {fault}")
        for error in world.log.errors:
            self.fail(f"an error of the product: {error}")

    def _check_end(self, study: Study, name: str) -> None:
        state = study.maestro.ended.get(name)
        if state is None and name not in study.maestro.submitted and study.maestro.is_over:
            return  # what it depends on has failed, or the study was cancelled
        if state is None:
            self.fail(f"{name} has not ended: {self._open(name)}")
        else:
            self._check_record(study, name, state)

    def _open(self, name: str) -> str:
        record = self._world.record(name)
        if record is None:
            return "no conductor knows it"
        return f"{record.samples.counts()}, leased {record.number and self._world.leased(record)}"

    def _check_record(self, study: Study, name: str, state: str) -> None:
        manifest = study.manifests[name]
        entries = read_ledger(study.plan.ledger, study.plan.number)
        states = SampleStates(manifest.samples, manifest.max_retries)
        self._entries = entries[entries["record"] == self._world.numbers.get(name)]
        states.apply(self._entries)
        for sample in range(manifest.samples):
            self._check_sample(study, (name, sample), Outcome(int(states.outcome[sample])), state)
        has_failed = states.total(Outcome.HARD_FAILED) or states.failures > manifest.samples - 1
        expected = "FAILED" if has_failed else "FINISHED"
        if states.is_complete and state != expected and not study.was_cancelled:
            self.fail(f"{name} is {state} with {states.counts()}")

    def _check_sample(self, study: Study, key: SampleKey, outcome: Outcome, state: str) -> None:
        everything = self._world.samples.attempts[key]
        attempts = everything[self._before.get(key, 0) :]
        name = f"sample {key[1]} of {key[0]}"
        self._count(outcome, everything)
        if outcome is Outcome.OPEN:
            if state == "FINISHED":
                self.fail(f"{name} has no outcome, and the step record has finished")
            return
        if not attempts:
            self.fail(f"{name} has the outcome {outcome.name} and was never tried")
            return
        codes = [one.code for one in attempts if not one.was_ended and not one.killed_worker]
        ends = f"its attempts ended with {[one.code for one in attempts]}"
        if outcome in _FINISHED:
            if not {0, ExitCode.STOP_WORKERS}.intersection(codes):
                self.fail(f"{name} has finished, but {ends}")
        elif (
            any(code is not None and outcome_of(code) is outcome for code in codes)
            or sum(1 for code in codes if code in _REQUESTS) > study.manifests[key[0]].max_retries
        ):
            return
        else:
            self._check_lost(key, attempts, ends)

    def _count(self, outcome: Outcome, attempts: list[Attempt]) -> None:
        lost = any(one.was_ended or one.killed_worker or one.worker.killer is not None for one in attempts)
        self.ends["finished" if outcome in _FINISHED else "open" if outcome is Outcome.OPEN else "failed"] += 1
        self.ends["that were lost"] += lost
        self.ends["recovered after a loss"] += lost and outcome in _FINISHED

    def _check_lost(self, key: SampleKey, attempts: list[Attempt], ends: str) -> None:
        """Check that a sample which has failed because of lost workers was lost often enough, and may be the cause.

        One that has killed no worker fails only if each loss since it is a suspect was by chance: a fault has ended its
        worker, or another sample has that was no suspect yet.
        """
        name, of_sample = f"sample {key[1]} of {key[0]}", self._entries["start"] == key[1]
        starts = int((of_sample & (self._entries["kind"] == Kind.STARTED)).sum())
        counted = int((of_sample & (self._entries["kind"] == Kind.LOST) & (self._entries["code"] == 0)).sum())
        lost = [one for one in attempts if one.was_ended or one.killed_worker or not one.worker.is_alive]
        # Its worker may have died when the sample was about to begin.
        without_attempt = max(0, starts - len(self._world.samples.attempts[key]))
        if len(lost) + without_attempt < POISON_LIMIT or counted < POISON_LIMIT:
            self.fail(f"{name} has failed, but {ends}")
        elif not any(one.killed_worker for one in attempts):
            self.ends["failed by chance"] += 1
            for one in lost[SUSPECT_LOSSES + max(0, len(lost) - counted) :]:
                self._check_chance(name, one, ends)

    def _check_chance(self, name: str, lost: Attempt, ends: str) -> None:
        """Check that no other suspect of the study has ended an attempt at a suspect."""
        killer, samples = lost.worker.killer, self._world.samples
        if killer is None or self._world.study_of(killer.key[0]) is not self._world.study_of(lost.key[0]):
            return
        if samples.kills(killer.key, killer) >= SUSPECT_LOSSES:
            self.fail(f"{name} has failed beside sample {killer.key}, which was a suspect: {ends}")
