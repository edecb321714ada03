"""Allocations whose time limit comes before the last sample: drain, warning, next allocation.

The studies run in parallel. The time limit of their allocations is a minute, or two; with `drain`, workers leave earlier.
"""

from __future__ import annotations

import collections
import re

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
from support import Study, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.study.status_csv import read_rows

# The studies run at the same time, and a slow machine needs several allocations more for each.
pytestmark = pytest.mark.timeout(1200)

# Its workers leave after 75 s. Until then, the test must have killed and resumed the conductor, also on a slow machine.
LONG = 'type: slurm, nodes: 1, procs: 1, walltime: "00:02:00"'
# An allocation starts samples in its first 35 s. So a slot starts at most 6 samples of 6 s in it, after 0, 6, ... 30 s, and
# fewer on a slow machine, which needs some time until its workers have started.
DRAIN = 25
# At its start, a sample writes the remaining seconds of its allocation to a file.
WORK = 'echo "$(A) $((MAESTRO_CELERY_ALLOCATION_BEGAN + 60 - $(date +%s)))" >> runs\necho begun\nsleep 6'
DRAINED = f"args: --concurrency 2, drain: {DRAIN}, warn: 6"
THRICE = LARGE = 2 * 12 + 1  # two allocations with two slots are not enough
FEW = 6 + 1  # one allocation with one slot is not enough
HELD = 6
# Until the test creates the file, samples wait.
WAITS = 'echo "cmd $(A)" >> runs\necho begun\nuntil test -e $(SPECROOT)/go.resumed; do sleep 0.1; done'
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
    """All studies of this module, started at the same time."""
    return {
        "thrice": launch(ensemble(WORK, count=THRICE, group=DRAINED), "-r", "20", name="thrice"),
        "limited": launch(ensemble(WORK, count=LARGE, group=DRAINED), "-r", "1", name="limited"),
        "records": launch(
            ensemble(
                WORK.replace("$(A)", "$(A)$(P)", 1), count=2, group=DRAINED.replace("cy 2", "cy 1"), more=PARAMETERS
            ),
            "-r", "20", name="records",
        ),
        "warned": launch(
            ensemble(
                WARNED, restart=WARNED_AGAIN, count=4, run="max_retries: 1, retry_delay: 0",
                group="args: --concurrency 4, drain: 15, warn: 15",
            ), "-r", "2", name="warned",
        ),
        "signalled": launch(
            ensemble(
                WARNED.replace("TERM", "USR1"), restart=WARNED_AGAIN, count=4, run="signal: SIGUSR1, retry_delay: 0",
                group="args: --concurrency 4, drain: 15, warn: 15",
            ), "-r", "2", name="signalled",
        ),
        "too_long": launch(
            ensemble(WORK, count=FEW, run='time_request: "00:00:19"', group="args: --concurrency 1, drain: 8, warn: 6"),
            "-r", "20", name="too_long",
        ),
        "resumed": launch(
            ensemble(
                WAITS, restart=WARNED_AGAIN, count=HELD, batch=LONG, group="args: --concurrency 2, drain: 45, warn: 45"
            ),
            "-r", "20", name="resumed",
        ),
    }  # fmt: skip


def restarts(study: Study) -> dict[str, int]:
    return {row.name: row.restarts for row in read_rows(study.path)}


def resume(study: Study) -> None:
    answer = study.command("maestro-celery", "resume", str(study.path))
    assert answer.returncode == 0, answer.stderr


def explained(study: Study) -> str:
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.stdout, answer.stderr
    return answer.stdout


def remaining_at_start(study: Study) -> list[int]:
    """Return the remaining seconds of the allocation at each start of a sample."""
    return [int(line.split()[1]) for text in study.outputs("*/**/runs") for line in text.splitlines()]


def test_a_resumed_conductor_adopts_the_allocation(studies, slurm):
    """Given an open allocation, when the conductor is killed and the study resumed, then the allocation continues.

    Its samples wait until its end. The conductor opens the next allocation after that.
    """
    study = studies["resumed"]
    study.await_text("sim/*/sim.out", "begun", 1)
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    job = job_of(study, slurm, "RUNNING")
    before = len(allocations(study))

    resume(study)

    wait_for(
        lambda: slurm.state(job) != "RUNNING" or len(allocations(study)) > before, "the end of the allocation"
    )
    assert slurm.state(job) != "RUNNING"
    (study.path.parent / "go.resumed").touch()
    study.await_end(500)
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, HELD)
    stopped = codes(study, Kind.STOPPED)
    assert len(stopped) == 2
    runs = [f"cmd {n}\n" + f"restart {n}\n" * (n - 1 in stopped) for n in range(1, HELD + 1)]
    assert study.outputs("sim/*/runs") == runs
    assert_nothing_left(study, slurm)


def test_samples_for_three_allocations(studies, slurm):
    study = studies["thrice"]
    study.await_end(500)

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, THRICE)
    assert [text.count("\n") for text in study.outputs("sim/*/runs")] == [1] * THRICE
    opened = allocations(study)
    assert len(opened) >= 3
    assert {one["state"] for one in opened} == {"COMPLETED"}
    assert restarts(study) == {"sim": len(opened) - 1}
    # Its script needs some time to start. Without `drain`, the last sample would start with less than 14 s.
    assert min(remaining_at_start(study)) >= 14
    assert_nothing_left(study, slurm)


def test_more_samples_than_the_restarts_allow(studies, slurm):
    """Given one restart and more samples, then the step fails, explain counts the rest, and a resume finishes them."""
    study = studies["limited"]
    study.await_end(500)

    assert study.states() == {"sim": "FAILED"}
    assert len(allocations(study)) == 2
    assert restarts(study) == {"sim": 1}
    remaining = LARGE - len(codes(study))
    text = explained(study)
    assert re.search(f"{remaining} samples? remains? after 1 restart", text), text
    assert "has ended: its workers have left." in text, text
    assert_nothing_left(study, slurm)

    for _ in range(LARGE):
        if study.states() == {"sim": "FAILED"}:
            resume(study)
            study.await_end(500)
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, LARGE)
    assert_nothing_left(study, slurm)


def test_records_share_allocations(studies, slurm):
    """Given seven step records in shared allocations, then only records with a started sample use a restart."""
    study = studies["records"]
    study.await_end(500)

    assert set(study.states().values()) == {"FINISHED"}
    for record in range(1, 8):
        assert_each_sample_once(study, 2, record)
    assert restarts(study) == restarts_by_ledger(study)
    opened = len(allocations(study))
    assert min(restarts(study).values()) < opened - 1, "the test has no effect: each record started in each allocation"
    assert_nothing_left(study, slurm)


def restarts_by_ledger(study: Study) -> dict[str, int]:
    """Return, for each record, the number of allocations in which its samples started, without the last one."""
    where = collections.defaultdict(set)
    for writer, entries in LedgerReader(study.path / "merlin_info" / "ledger").poll():
        for record in set(entries[entries["kind"] == Kind.STARTED]["record"].tolist()):
            where[record].add(writer.split("-")[1])
    return {row.name: len(where[number]) - 1 for number, row in enumerate(read_rows(study.path), 1)}


@pytest.mark.parametrize("name", ["warned", "signalled"])
def test_samples_that_are_warned(studies, slurm, name):
    """Given samples longer than their allocation, then they receive a signal, and their own result counts."""
    study = studies[name]
    study.await_end(500)

    assert study.states() == {"sim": "FINISHED"}
    assert study.outputs("sim/*/checkpoint") == ["saved\n"] * 4
    again = [f"cmd {n}\nrestart {n}\n" for n in (1, 3, 4)]
    assert sorted(study.outputs("sim/*/runs")) == sorted(["cmd 2\n", *again])
    stopped = codes(study, Kind.STOPPED)
    assert stopped[0] == [143]
    assert stopped[3] == [-9]
    assert stopped[2] == [100]  # the end of the allocation is the cause of the requested restart
    assert codes(study) == {number: [0] for number in range(4)}
    assert codes(study, Kind.LOST) == {}
    assert len(allocations(study)) == 2
    assert_nothing_left(study, slurm)


def test_a_sample_that_needs_more_time_than_remains_does_not_start(studies, slurm):
    """Given a time request of 19 s and a warning of 6 s, then a sample starts only while 25 s of its 60 s remain."""
    study = studies["too_long"]
    study.await_end(500)

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, FEW)
    # Its script needs some time to start. With `drain` alone, the last sample would start with less than 14 s.
    assert min(remaining_at_start(study)) >= 14
    assert len(allocations(study)) > 1
    assert_nothing_left(study, slurm)
