"""The results of the chaos: one line of JSON each, and a sum that names faults, counts, times and bad seeds."""

from __future__ import annotations

from collections import Counter

from chaos.case import Case
from chaos.result import Result, read_results, sum_of


def result(seed, **values):
    return Result(Case.of(seed, broker="private", pool="threads", shape="plain"), **values)


def test_a_result_is_read_as_it_was_written(tmp_path):
    written = result(1, healed_s=3.5, done=["kill the workers"], counts=Counter(samples=4), wrong=["left behind: []"])
    path = tmp_path / "results"
    path.write_text(f"{written.to_json()}\n")
    assert read_results(path) == [written]
    assert read_results(tmp_path / "nothing") == []


def test_the_sum_of_results():
    lines = list(
        sum_of(
            [
                result(1, healed_s=9.0, work_s=4.0, done=["kill the workers"] * 2, counts=Counter(samples=4, executions=5)),
                result(2, healed_s=1.0, done=["drop all clients"], counts=Counter(samples=4, executions=4), wrong=["hangs"]),
            ]
        )
    )
    assert [line.split(maxsplit=1) for line in lines if "kill the" in line or "executions" in line] == [
        ["2", "kill the workers"], ["9", "executions"],
    ]  # fmt: skip
    assert lines[-2:] == [
        "healing time of 1 seeds, local: median 9.0 s, largest 9.0 s; beyond the work itself: median 5.0 s, largest 5.0 s",
        "2 seeds, 3 faults, 1 seeds with something wrong [2]",
    ]
