"""The checks: what must hold after every step and at the end, from the truth of the simulated samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.states import POISON_LIMIT, ExitCode, Outcome, outcome_of
from simulation.samples import Attempt, SampleKey

__all__ = ["Checks"]

_FINISHED = (Outcome.FINISHED, Outcome.STOPPED_STUDY)
_REQUESTS = (ExitCode.RESTART, ExitCode.RETRY)
# After a pause of its whole node, a supervisor ends the samples of its worker within this time.
_FENCE_S = 3.0
# A worker and the conductor see each other's entries within this time, unless a node is disturbed.
_SEEN_S = 6.0


class Checks:
    """Compares what the product believes with what has happened.

    Args:
        world: The world.

    Attributes:
        violations: What must not have happened, as sentences.
        reruns: Why attempts ran again, with their number.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.violations: list[str] = []
        self.reruns: dict[str, int] = {}
        self._finished: dict[str, np.ndarray[Any, Any]] = {}
        self._starts: Any = None
        self._ended_at: dict[str, float] = {}
        self._was_cut = False

    def fail(self, text: str) -> None:
        """Note what must not have happened."""
        kernel = self._world.kernel
        kernel.trace(f"VIOLATION {text}")
        self.violations.append(f"{kernel.now:.3f} s: {text}")

    # --- after every step ---

    def begin(self, attempt: Attempt) -> None:
        """Check that an attempt may begin."""
        earlier = self._world.samples.attempts[attempt.key]
        name = f"sample {attempt.key[1]} of {attempt.key[0]}"
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
        outcome = self._known_outcome(attempt.key)
        if outcome in _FINISHED:
            self.fail(f"{name} begins although it has finished")
        state = self._world.maestro.ended.get(attempt.key[0])
        ended_s = self._world.kernel.now - self._ended_at.get(attempt.key[0], 0.0)
        if state is not None and ended_s > _SEEN_S and not self._world.is_disturbed(attempt.worker):
            self.fail(f"{name} begins although its step record is {state}")
        if not earlier:
            if attempt.restart and not self._world.has_lost_workers:
                self.fail(f"{name} runs `restart` although it has never started")
            return
        self._judge_rerun(attempt, earlier[-1], name)

    def _is_fenced(self, attempt: Attempt) -> None:
        """Check that an attempt has ended soon after the pause of its node, because it runs elsewhere."""
        if attempt.code is None and attempt.process.paused_until <= self._world.kernel.now - _FENCE_S:
            self.fail(f"sample {attempt.key} still runs on {attempt.node} after its pause")

    def _judge_rerun(self, attempt: Attempt, last: Attempt, name: str) -> None:
        """Check that a rerun has a reason, and that it runs `restart` exactly when the promise says so."""
        if last.code is None:
            return
        is_lost = self._world.may_be_lost(last) or self._was_cut
        if last.was_ended or last.killed_worker or last.code in (-9, -15):
            reason, restart = "its worker has died or was stopped", True
        elif last.code in _REQUESTS:
            reason, restart = "it has asked for it", last.code == ExitCode.RESTART
        elif is_lost:
            reason, restart = "its end was lost with its worker", True
        elif last.code != 0 and last.end - last.begin < 1.0 and self._world.profile.workers != "local":
            reason, restart = "its machine may be broken", attempt.restart
        else:
            self.fail(f"{name} runs again without a reason after exit code {last.code} by {last.worker}")
            return
        self.reruns[reason] = self.reruns.get(reason, 0) + 1
        if restart != attempt.restart and not is_lost:
            what = "restart" if attempt.restart else "cmd"
            self.fail(f"{name} runs `{what}` after exit code {last.code} ({reason})")

    def _known_outcome(self, key: SampleKey) -> Outcome:
        record = self._world.record(key[0])
        return Outcome.OPEN if record is None else Outcome(int(record.samples.outcome[key[1]]))

    def look(self) -> None:
        """Check that no finished sample has changed."""
        conductor = self._world.conductor
        if conductor is None or not (conductor.process.is_alive or conductor.has_ended):
            return
        for name in self._world.maestro.names:
            record = self._world.record(name)
            if record is None:
                continue
            finished = np.isin(record.samples.outcome, _FINISHED)
            before = self._finished.get(name)
            if before is not None and (before & ~finished).any() and self._world.knows_all:
                self.fail(f"samples {np.flatnonzero(before & ~finished).tolist()} of {name} have finished before")
            if self._world.knows_all:
                self._finished[name] = finished if before is None else before | finished

    def forget(self) -> None:
        """Forget which samples have finished, because the power was cut: what was not on the disk runs again."""
        self._finished.clear()
        self._was_cut = True

    def record_ends(self, name: str, state: str) -> None:
        """Check that no sample runs when Maestro learns that its step record has ended."""
        self.look()
        self._ended_at[name] = self._world.kernel.now
        for attempt in self._world.samples.running():
            if attempt.key[0] != name or not attempt.worker.is_alive or self._world.may_be_lost(attempt):
                continue
            if self._world.kernel.now - attempt.begin > _SEEN_S:
                self.fail(f"{name} is {state} while sample {attempt.key[1]} runs on {attempt.node}")

    # --- at the end ---

    def end(self) -> None:
        """Check the outcomes, and that nothing is left."""
        world = self._world
        for name in world.maestro.names:
            state = world.maestro.ended.get(name)
            if state is None and name not in world.maestro.submitted and world.maestro.is_over:
                continue  # what it depends on has failed, or the study was cancelled
            if state is None:
                self.fail(f"{name} has not ended: {self._open(name)}")
            else:
                self._check_record(name, state)
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

    def _open(self, name: str) -> str:
        record = self._world.record(name)
        if record is None:
            return "no conductor knows it"
        return f"{record.samples.counts()}, leased {record.number and self._world.leased(record)}"

    def _check_record(self, name: str, state: str) -> None:
        world, manifest = self._world, self._world.manifests[name]
        entries = read_ledger(world.plan.ledger, world.plan.number)
        number = world.numbers.get(name)
        states = SampleStates(manifest.samples, manifest.max_retries)
        entries = entries[entries["record"] == number]
        states.apply(entries)
        self._starts = np.bincount(entries["start"][entries["kind"] == Kind.STARTED], minlength=manifest.samples)
        for sample in range(manifest.samples):
            self._check_sample((name, sample), Outcome(int(states.outcome[sample])), state)
        has_failed = states.total(Outcome.HARD_FAILED) or states.failures > manifest.samples - 1
        expected = "FAILED" if has_failed else "FINISHED"
        if states.is_complete and state != expected and not world.maestro.was_cancelled:
            self.fail(f"{name} is {state} with {states.counts()}")

    @property
    def _may_hit_innocents(self) -> bool:
        """Whether so many workers die that a sample may be there each time by chance."""
        profile = self._world.profile
        kills = profile.worker_kills_per_hour + profile.supervisor_kills_per_hour + profile.node_losses_per_hour
        return bool(profile.killer_share or kills or profile.power_cuts_per_hour or profile.cuts_per_hour)

    def _check_sample(self, key: SampleKey, outcome: Outcome, state: str) -> None:
        attempts = self._world.samples.attempts[key]
        name = f"sample {key[1]} of {key[0]}"
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
            or sum(1 for code in codes if code in _REQUESTS) > self._world.manifests[key[0]].max_retries
        ):
            return
        else:
            self._check_lost(name, attempts, int(self._starts[key[1]]), ends)

    def _check_lost(self, name: str, attempts: list[Attempt], starts: int, ends: str) -> None:
        """Check that a sample which has failed because of lost workers may be the cause."""
        lost = sum(1 for one in attempts if one.was_ended or one.killed_worker or not one.worker.is_alive)
        lost += max(0, starts - len(attempts))  # its worker died when the sample was about to begin
        if lost < POISON_LIMIT:
            self.fail(f"{name} has failed, but {ends}")
        elif not any(one.killed_worker for one in attempts) and not self._may_hit_innocents:
            self.fail(f"{name} has failed, but has killed no worker: {ends}")
