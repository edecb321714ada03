"""The verdict: what each sample has recorded itself, against the ledger and the promises."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from support import Study

from chaos.executions import SampleRuns
from chaos.specification import code_of, requests_of

__all__ = ["LOST", "TWICE", "broken_promises", "broken_promises_of_last_step"]

# The sentences about samples that were lost, and about samples that have finished and ran again.
LOST = ("it has not one outcome.", "it never ran to its end.")
TWICE = ("it was started again after its outcome.", "it has several outcomes.")


def broken_promises(all_runs: Iterable[SampleRuns], *, gentle: bool, killed_samples: bool) -> Iterator[tuple[str, str]]:
    """Yield the sample and a sentence for each broken promise.

    Args:
        all_runs: What is known about each sample of a study, which has ended.
        gentle: Whether nothing has been done that may make a sample run again.
        killed_samples: Whether samples were killed, which is their outcome.
    """
    for runs in all_runs:
        for sentence in _broken(runs, gentle=gentle, killed_samples=killed_samples):
            yield f"{runs.record}, sample {runs.sample}", f"{sentence} {runs.executions} {runs.history}"


def _broken(runs: SampleRuns, *, gentle: bool, killed_samples: bool) -> Iterator[str]:
    executions, history = runs.executions, runs.history
    complete = [one for one in executions if one.code == code_of(runs.sample)]
    was_killed = killed_samples and any(code < 0 for _, code in history.outcomes)
    outcomes = [epoch for epoch, _ in history.valid]
    overlaps = any(later.began_at < (one.ended_at or 0) for one, later in itertools.combinations(executions, 2))
    findings = {
        "it has not one outcome.": not outcomes,
        "it has several outcomes.": len(outcomes) > 1,
        "it was started again after its outcome.": outcomes and max(history.starts, default=0) > outcomes[0],
        "it never ran to its end.": not complete and not was_killed,
        "its outcome is not its own.": not was_killed and any(code != code_of(runs.sample) for _, code in history.valid),
        "it was started twice under one epoch.": len(history.starts) != len(set(history.starts)),
        "it was started again without a reason.": set(history.starts) - set(history.excused) - set(outcomes),
        "it ran more often than the ledger says.": len(executions) > len(history.starts),
        "two executions ran at the same time.": overlaps,
        "it ran again, although nothing had happened to it.": gentle and len(executions) != 1 + requests_of(runs.sample),
    }
    yield from (sentence for sentence, is_true in findings.items() if is_true)
    for one, later in itertools.pairwise(executions):
        if later.mode == "cmd" and one.code != 104:
            yield f"it ran cmd after {one}."


def broken_promises_of_last_step(study: Study, samples: int, most_runs: int | None) -> Iterator[tuple[str, str]]:
    """Yield a sentence if the last step has not seen all samples of the step before, or ran too often.

    Args:
        study: The study, which has ended.
        samples: Number of samples of a step record; two records come before the last step.
        most_runs: How often the last step may run; None for any number.
    """
    seen = (study.path / "last" / "seen").read_text().split()
    runs = (study.path / "last" / "runs").read_text().count("run")
    if seen[-1:] != [str(2 * samples)]:
        yield "last", f"it saw {seen} samples, not {2 * samples} at its last run."
    if most_runs is not None and not 1 <= runs <= most_runs:
        yield "last", f"it ran {runs} times, not at most {most_runs}."
