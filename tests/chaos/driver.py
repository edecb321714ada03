"""The driver: it runs one study, breaks parts of it at random times, waits for its end, and judges what has run."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable

import pytest
from slurm_cluster import SlurmCluster
from support import Study, wait_for

from chaos.broker import Broker
from chaos.case import Case
from chaos.cluster import Cluster
from chaos.executions import SampleRuns, runs_of
from chaos.faults import KILLS_A_SAMPLE, cluster_faults_of, faults_of
from chaos.growth import Growth
from chaos.parts import Parts
from chaos.result import Result
from chaos.specification import SAMPLES, SHAPES, specification
from chaos.verdict import LOST, TWICE, broken_promises, broken_promises_of_last_step

__all__ = ["break_study"]

# Seconds in which parts are broken, in which the study must end afterwards, and then its processes.
BREAK_S, HEAL_S, HEAL_ON_SLURM_S, LEAVE_S = 25.0, 500.0, 600.0, 120.0
_PARTS = ("conductor", "worker", "supervisor", "host", "server", "sample", "step")


class _Attempt:
    """One case: its study, and what can be done to it.

    Args:
        start: Starts a study with `maestro run`.
        case: What is run and broken.
        broker_url: URL of the broker of the case; None for the private broker.
        slurm: The cluster of the case; None without one.
    """

    def __init__(
        self, start: Callable[..., Study], case: Case, broker_url: str | None, slurm: SlurmCluster | None
    ) -> None:
        self.case, self.result = case, Result(case)
        self._choose = random.Random(case.seed)
        self._slurm, self.broker = slurm, Broker(broker_url, self._choose)
        options = ("-s", "1", *(("-r", "30") if slurm else ()), *self.broker.options)
        spec = specification(case.samples, case.pool, case.shape, slurm=case.slurm)
        self.study = start(spec, *options, name=f"chaos{case.seed}")
        self.parts = Parts(self.study, self._choose)
        samples = SAMPLES[case.samples]
        self._growth = Growth(self.parts, samples, self._choose) if case.shape == "growing" else None
        self._cluster = Cluster(slurm, self.parts, self._choose) if slurm else None
        self._faults = faults_of(self.parts, self.broker, self._growth, gentle=case.gentle)
        self._of_cluster = cluster_faults_of(self._cluster, gentle=case.gentle) if self._cluster else {}

    def break_parts(self) -> None:
        """Break parts at random times, until the last step has run or the time is over."""
        self.study.await_text("one/**/runs")
        end = time.monotonic() + BREAK_S
        while time.monotonic() < end and not self._have_run():
            time.sleep(self._choose.uniform(0.5, 3))
            is_of_cluster = self._of_cluster and self._choose.random() < 0.5
            self._do(self._choose.choice(sorted(self._of_cluster if is_of_cluster else self._faults)))
            if not self.parts.processes("conductor"):
                self.parts.revive()
        if self._growth and self._choose.random() < 0.5:
            self._do("add samples")
        if self._slurm:
            self._slurm.repair()

    def _do(self, name: str) -> None:
        self.result.done.append(name)
        {**self._faults, **self._of_cluster}[name]()

    def _have_run(self) -> bool:
        studies = self.parts.studies()
        return len(studies) == SHAPES[self.case.shape] and all((one.path / "last/runs").exists() for one in studies)

    def await_end(self) -> bool:
        """Wait for the end of all studies, and resume those that have ended too early; return whether they end."""
        begin, begin_s = time.time(), time.monotonic()
        limit_s = HEAL_ON_SLURM_S if self._slurm else HEAL_S
        has_ended = _becomes_true(lambda: not self.parts.revive() and self._is_whole(), limit_s)
        self.result.healed_s = round(time.monotonic() - begin_s, 1)
        if has_ended:
            self.result.work_s = round(self._work_since(begin), 1)
        else:
            states = json.dumps([one.status()["steps"] for one in self.parts.studies()])
            self.result.wrong.append(f"The study has not ended after {limit_s:.0f} s: {states}")
        return has_ended

    def _is_whole(self) -> bool:
        return len(self.parts.studies()) == SHAPES[self.case.shape]

    def _all_runs(self) -> list[SampleRuns]:
        count = self._growth.count if self._growth else SAMPLES[self.case.samples].count
        return [runs for study in self.parts.studies() for runs in runs_of(study, count)]

    def _work_since(self, begin: float) -> float:
        """Return the seconds that all slots need at least for what has run since a time."""
        executions = [one for runs in self._all_runs() for one in runs.executions if one.ended_at]
        return sum(max(0.0, one.ended_at - max(one.began_at, begin)) for one in executions) / self.case.slots

    def judge(self) -> None:
        """Compare what has run with the ledger; note what is wrong, and count."""
        done, all_runs, gentle = self.result.done, self._all_runs(), self.case.gentle
        counts = self.result.counts
        counts["samples"] = len(all_runs)
        counts["executions"] = sum(len(runs.executions) for runs in all_runs)
        for runs in all_runs:
            counts.update(f"again: {reason}" for reason in runs.history.excused.values())
        for place, sentence in broken_promises(all_runs, gentle=gentle, killed_samples=KILLS_A_SAMPLE in done):
            counts["lost"] += sentence.startswith(LOST)
            counts["finished twice"] += sentence.startswith(TWICE)
            self.result.wrong.append(f"{place}: {sentence}")
        self._judge_last_steps()
        self._judge_problems()

    def _judge_last_steps(self) -> None:
        growth = self._growth
        count = growth.count if growth else SAMPLES[self.case.samples].count
        most_runs = 1 + (growth.additions if growth else 0) if self.case.gentle else None
        for study in self.parts.studies():
            self.result.wrong += [" ".join(found) for found in broken_promises_of_last_step(study, count, most_runs)]

    def _judge_problems(self) -> None:
        """Note the studies whose launch has failed in a sample or a step, and the commands that have failed."""
        for study in self.parts.studies():
            problems = [path.read_text() for path in study.path.rglob("problems")]
            self.result.wrong += [f"{study.path.name}: a launch has failed: {text}" for text in problems]
        self.result.wrong += self.parts.complaints

    def await_leaving(self) -> None:
        """Wait for the end of all processes and jobs, and note those that are left behind."""

        def left() -> list[str]:
            # A controller that was away learns late of the end of a job whose processes have ended.
            jobs = self._cluster.jobs("PENDING") if self._cluster else []
            return [*jobs, *map(str, self.parts.processes(*_PARTS))]

        if not _becomes_true(lambda: not left(), LEAVE_S):
            self.result.counts["left behind"] += len(left())
            self.result.wrong.append(f"left behind: {left()}")
        if self._cluster:
            self._cluster.cancel_all()


def break_study(
    start: Callable[..., Study], case: Case, *, broker_url: str | None = None, slurm: SlurmCluster | None = None
) -> Result:
    """Run and break a study; return what was done and what is wrong.

    Args:
        start: Starts a study with `maestro run`.
        case: What is run and broken.
        broker_url: URL of the broker of the case; None for the private broker.
        slurm: The cluster of the case; None without one.
    """
    begin = time.monotonic()
    attempt = _Attempt(start, case, broker_url, slurm)
    result = attempt.result
    try:
        attempt.break_parts()
        if attempt.await_end():
            attempt.await_leaving()
            attempt.judge()
    except (Exception, pytest.fail.Exception):  # for example a command without an answer: it is a finding as well
        result.wrong.append(traceback.format_exc())
    finally:
        attempt.broker.close()
    result.seconds = round(time.monotonic() - begin, 1)
    return result


def _becomes_true(condition: Callable[[], object], limit_s: float) -> bool:
    try:
        wait_for(condition, "", limit_s)
    except pytest.fail.Exception:
        return False
    return True
