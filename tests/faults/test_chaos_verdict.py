"""The verdict of the chaos: it sees each kind of broken promise in what samples and ledger have recorded."""

from __future__ import annotations

import pytest
from chaos.executions import Execution, History, SampleRuns
from chaos.verdict import broken_promises


def execution(began_at=1.0, ended_at=2.0, code=0, mode="cmd"):
    return Execution(mode, "1", began_at, ended_at, code)


def sentences(executions, history, *, gentle=False, sample=0):
    runs = SampleRuns("one_P.1", sample, executions, history)
    return [sentence for _, sentence in broken_promises([runs], gentle=gentle, killed_samples=False)]


def test_a_sample_that_ran_once_or_again_for_a_reason_is_well():
    lost = History(starts=[1, 2], outcomes=[(2, 0)], excused={1: "lost"})
    assert sentences([execution()], History([1], [(1, 0)]), gentle=True) == []
    assert sentences([execution(ended_at=None, code=None), execution(3, 4, mode="restart")], lost) == []
    assert sentences([execution(code=3)], History([1], [(1, 3)]), sample=7) == []


@pytest.mark.parametrize(
    ("executions", "history", "sentence"),
    [
        ([execution()], History([1], []), "it has not one outcome."),
        ([execution()], History([1], [(1, 0)], {1: "lost"}), "it has not one outcome."),
        ([execution(), execution(3, 4)], History([1, 2], [(1, 0), (2, 0)]), "it has several outcomes."),
        ([execution(), execution(3, 4)], History([1, 2], [(1, 0)], {2: "lost"}), "it was started again after its outcome."),
        ([], History([1], [(1, 0)]), "it never ran to its end."),
        ([execution(), execution(3, 4)], History([1], [(1, 0)]), "it ran more often than the ledger says."),
        ([execution(), execution(3, 4)], History([1, 2], [(2, 0)]), "it was started again without a reason."),
        ([execution(), execution(1.5, 4)], History([1, 2], [(2, 0)], {1: "lost"}), "two executions ran at the same time."),
        ([execution(), execution(3, 4)], History([1, 2], [(2, 0)], {1: "lost"}), "it ran cmd after"),
        ([execution()], History([1], [(1, -9)]), "its outcome is not its own."),
        ([execution(code=3)], History([1], [(1, 3)]), "its outcome is not its own."),
        ([execution(), execution(3, 4)], History([1, 1], [(1, 0)]), "it was started twice under one epoch."),
    ],
)  # fmt: skip
def test_a_broken_promise_is_seen(executions, history, sentence):
    assert any(found.startswith(sentence) for found in sentences(executions, history))


def test_a_sample_runs_once_if_nothing_has_happened_to_it():
    history = History([1, 2], [(2, 0)], {1: "lost"})
    again = [execution(), execution(3, 4, mode="restart")]
    assert any("nothing had happened" in found for found in sentences(again, history, gentle=True))
