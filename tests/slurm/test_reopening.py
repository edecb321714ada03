"""Allocations whose time ends with work left: drained, warned, opened again.

The studies run side by side. Their allocations last a minute for Slurm; `drain` lets workers leave earlier.
"""

from __future__ import annotations

import collections

import pytest
from slurm_studies import (
    Launcher,
    allocations,
    assert_each_sample_once,
    assert_nothing_left,
    codes,
    ensemble,
    job_of,
)
from support import Study, kill, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.study.status_csv import read_rows

DRAIN = 38
# What is left of the allocation's minute when a sample starts goes into a file of the sample.
WORK = 'echo "$(A) $((MAESTRO_CELERY_ALLOCATION_BEGAN + 60 - $(date +%s)))" >> runs\necho begun\nsleep 4'
DRAINED = f"args: --concurrency 2, drain: {DRAIN}, warn: 6"
THRICE, FEW, LARGE = 25, 4, 40
PARAMETERS = """
global.parameters:
  P: {values: [1, 2, 3, 4, 5, 6, 7], label: P.%%}
"""
SAVE = "echo saved > checkpoint"
WARNED = f"""\
echo "cmd $(A)" >> runs
echo begun
test $(A) = 1 && trap '{SAVE}; exit 143' TERM
test $(A) = 2 && trap '{SAVE}; exit 0' TERM
test $(A) = 3 && trap '{SAVE}; exit 100' TERM
test $(A) = 4 && trap '{SAVE}' TERM
while true; do sleep 0.2; done
"""
WARNED_AGAIN = 'echo "restart $(A)" >> runs'


@pytest.fixture(scope="module")
def studies(launch: Launcher) -> dict[str, Study]:
    """All studies of this module, started at once."""
    return {
        "thrice": launch(ensemble(WORK, count=THRICE, group=DRAINED), "-r", "6", name="thrice"),
        "resumed": launch(ensemble(WORK, count=THRICE, group=DRAINED), "-r", "6", name="resumed"),
        "limited": launch(ensemble(WORK, count=LARGE, group=DRAINED), "-r", "1", name="limited"),
        "records": launch(
            ensemble(
                WORK.replace("$(A)", "$(A)$(P)", 1), count=2, group=DRAINED.replace("cy 2", "cy 1"), more=PARAMETERS
            ),
            "-r", "6", name="records",
        ),
        "warned": launch(
            ensemble(
                WARNED, restart=WARNED_AGAIN, count=4, run="max_retries: 1, retry_delay: 0",
                group="args: --concurrency 4, drain: 30, warn: 30",
            ), "-r", "2", name="warned",
        ),
        "signalled": launch(
            ensemble(
                WARNED.replace("TERM", "USR1"), restart=WARNED_AGAIN, count=4, run="signal: SIGUSR1, retry_delay: 0",
                group="args: --concurrency 4, drain: 30, warn: 30",
            ), "-r", "2", name="signalled",
        ),
        "too_long": launch(
            ensemble(WORK, count=FEW, run='time_request: "00:00:44"', group="args: --concurrency 1, drain: 8, warn: 6"),
            "-r", "6", name="too_long",
        ),
    }  # fmt: skip


def restarts(study: Study) -> dict[str, int]:
    return {row.name: row.restarts for row in read_rows(study.path)}


def resume(study: Study) -> None:
    answer = study.command("maestro-celery", "resume", str(study.path))
    assert answer.returncode == 0, answer.stderr


def explained(study: Study) -> str:
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def left_at_start(study: Study) -> list[int]:
    """Return how many seconds were left of its allocation when each sample started."""
    return [int(line.split()[1]) for text in study.outputs("*/**/runs") for line in text.splitlines()]


def test_killed_conductor_adopts_the_allocation(studies, slurm):
    """Given an allocation that lives, when the conductor is killed and resumed, then it goes on in that one."""
    study = studies["resumed"]
    study.await_text("sim/*/sim.out", "begun", 1)
    kill(*study.processes("bin/conductor"))
    wait_for(lambda: not study.processes("bin/conductor"), "the conductor's end")
    job = job_of(study, slurm, "RUNNING")
    before = len(allocations(study))

    resume(study)

    wait_for(
        lambda: slurm.state(job) != "RUNNING" or len(allocations(study)) > before, "the end of the allocation", 70
    )
    assert slurm.state(job) != "RUNNING"
    study.await_end(200)
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, THRICE)
    assert [text.count("\n") for text in study.outputs("sim/*/runs")] == [1] * THRICE
    assert_nothing_left(study, slurm)


def test_work_for_three_allocations(studies, slurm):
    study = studies["thrice"]
    study.await_end(200)

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, THRICE)
    assert [text.count("\n") for text in study.outputs("sim/*/runs")] == [1] * THRICE
    opened = allocations(study)
    assert len(opened) >= 3
    assert {one["state"] for one in opened} == {"COMPLETED"}
    assert restarts(study) == {"sim": len(opened) - 1}
    assert min(left_at_start(study)) >= DRAIN - 1
    assert_nothing_left(study, slurm)


def test_more_work_than_restarts(studies, slurm):
    """Given one restart and work for more, then the step fails, explain says how much is left, resume finishes it."""
    study = studies["limited"]
    study.await_end(150)

    assert study.states() == {"sim": "FAILED"}
    assert len(allocations(study)) == 2
    assert restarts(study) == {"sim": 1}
    left = LARGE - len(codes(study))
    text = explained(study)
    assert f"{left} samples are left after 1 restart" in text, text
    assert "has ended: its workers have left." in text, text
    assert_nothing_left(study, slurm)

    resume(study)
    study.await_end(90)
    if study.states() == {"sim": "FAILED"}:
        resume(study)
        study.await_end(90)
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, LARGE)
    assert_nothing_left(study, slurm)


def test_records_share_allocations(studies, slurm):
    """Given seven step records, then they share each allocation, and only those that started in it use a restart."""
    study = studies["records"]
    study.await_end(250)

    assert set(study.states().values()) == {"FINISHED"}
    for record in range(1, 8):
        assert_each_sample_once(study, 2, record)
    assert restarts(study) == restarts_by_ledger(study)
    opened = len(allocations(study))
    assert min(restarts(study).values()) < opened - 1, "nothing was tested: each record started in each allocation"
    assert_nothing_left(study, slurm)


def restarts_by_ledger(study: Study) -> dict[str, int]:
    """Count, for each record, the allocations in which it started samples, but for the one in which it was finished."""
    where = collections.defaultdict(set)
    for writer, entries in LedgerReader(study.path / "merlin_info" / "ledger").poll():
        for record in set(entries[entries["kind"] == Kind.STARTED]["record"].tolist()):
            where[record].add(writer.split("-")[1])
    return {row.name: len(where[number]) - 1 for number, row in enumerate(read_rows(study.path), 1)}


@pytest.mark.parametrize("name", ["warned", "signalled"])
def test_warned_samples(studies, slurm, name):
    """Given samples longer than the allocation, then they are warned, and what they make of it is respected."""
    study = studies[name]
    study.await_end(200)

    assert study.states() == {"sim": "FINISHED"}
    assert study.outputs("sim/*/checkpoint") == ["saved\n"] * 4
    again = [f"cmd {n}\nrestart {n}\n" for n in (1, 3, 4)]
    assert sorted(study.outputs("sim/*/runs")) == sorted(["cmd 2\n", *again])
    stopped = codes(study, Kind.STOPPED)
    assert stopped[0] == [143]
    assert stopped[3] == [-9]
    assert stopped[2] == [100]  # that it wants a restart is the allocation's doing
    assert codes(study) == {number: [0] for number in range(4)}
    assert codes(study, Kind.LOST) == {}
    assert len(allocations(study)) == 2
    assert_nothing_left(study, slurm)


def test_a_sample_that_needs_more_time_than_is_left_is_not_started(studies, slurm):
    """Given samples that say they need 44 of 60 s, and 6 s of warning, then each has an allocation with so much time left."""
    study = studies["too_long"]
    study.await_end(200)

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, FEW)
    assert min(left_at_start(study)) >= 49
    assert_nothing_left(study, slurm)
