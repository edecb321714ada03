"""A full disk: a study is not resumed on it, and a conductor on it does not fail the steps."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess

import pytest
from support import kill, needed, wait_for

from maestro_celery_plugin.study.study_processes import StudyProcesses

SPEC = """
    description: {name: full, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "echo $(A) >> runs; while ! test -e $(SPECROOT)/go; do sleep 0.1; done"}
      - name: after
        description: d
        run: {cmd: "echo $(A) >> runs", depends: [sim]}
    merlin:
      resources:
        workers:
          w: {args: --concurrency 2, idle_limit: 5}
      samples:
        generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


@pytest.fixture
def disk(tmp_path):
    """A small disk, on which the directory of the study is."""
    needed("mount")
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("a small disk requires root")
    (tmp_path / "study").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=2000", "small", str(tmp_path / "study")]
    subprocess.run(words, check=True)
    yield tmp_path / "study"
    subprocess.run(["umount", "-l", str(tmp_path / "study")], check=True)


def fill(disk):
    """Fill a disk to the last byte, and to the last inode; also what live processes free meanwhile."""
    while add_fillers(disk):
        continue


def add_fillers(disk):
    """Fill a disk; return whether anything was added."""
    added = 0
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while True:
                    added += file.write(b"x" * size)
    with contextlib.suppress(OSError):
        for number in itertools.count(len([*disk.glob("inode*")])):
            (disk / f"inode{number}").touch()
            added += 1
    return bool(added)


def make_room(disk):
    for path in [disk / "filler", *disk.glob("inode*")]:
        path.unlink()


@pytest.fixture
def running(run, disk):
    """A study on the small disk whose samples run; its conductor writes nothing more during the test."""
    place = disk.parent / "study/s"
    study = run(SPEC.replace("$(SPECROOT)", str(disk.parent)), "-s", "600", "-o", str(place))
    study.path = place
    study.await_text("sim/*/runs", count=2)
    yield study
    kill(*study.server(), *study.processes())


@pytest.fixture
def interrupted(running):
    """A study on the small disk whose processes were killed while its samples ran."""
    while running.processes():  # one that a process has started before its own end as well
        kill(*running.processes())
    return running


def test_a_study_is_not_resumed_on_a_full_disk(interrupted, disk):
    """Given a full disk, then `resume` ends with one line; with room again, the study continues to its end."""
    fill(disk)

    answer = interrupted.command("maestro-celery", "resume", "-s", "1", str(interrupted.path))

    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith(f"maestro-celery: error: '{interrupted.path}")
    assert "cannot be written (No space left on device); make room there" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not interrupted.processes()
    make_room(disk)
    (disk.parent / "go").touch()
    assert interrupted.command("maestro-celery", "resume", "-s", "1", str(interrupted.path)).returncode == 0
    interrupted.await_end()
    assert interrupted.states() == {"sim": "FINISHED", "after": "FINISHED"}


def test_a_conductor_on_a_full_disk_ends_and_fails_no_step(interrupted, disk):
    """Given a disk that is full when the conductor starts, then it ends with a message, and no step is FAILED."""
    fill(disk)

    answer = interrupted.command("conductor", "-t", "1", "-d", "2", str(interrupted.path))

    assert answer.returncode != 0
    assert "No space left on device" in answer.stderr
    assert "`maestro-celery resume " in answer.stderr
    make_room(disk)
    assert not {*interrupted.states().values()} & {"FAILED", "CANCELLED"}
    assert interrupted.status()["state"] == "INTERRUPTED"


def test_cancel_on_a_full_disk_ends_what_a_dead_conductor_has_left(running, disk):
    """Given a disk without room for the request of Maestro, then workers and samples end, and the problem is named."""
    running.kill_conductor()
    wait_for(lambda: not running.processes("bin/conductor"), "the end of the conductor")
    fill(disk)

    answer = running.command("maestro", "cancel", "-y", str(running.path))

    assert answer.returncode == 1
    assert "Ended on this machine: 1 worker with its samples, the host of its session." in answer.stdout
    assert f"The request to cancel '{running.path}' cannot be written (No space left on device); this study has no" in answer.stderr
    assert not running.processes()


def test_cancel_on_a_full_disk_names_the_live_conductor(running, disk):
    """Given a live conductor that cannot be asked, then the message names its process, and the advice works."""
    (conductor,) = StudyProcesses(running.path).conductors()
    fill(disk)

    answer = running.command("maestro", "cancel", "-y", str(running.path))

    assert answer.returncode == 1
    assert f"and its conductor continues. Make room there or correct the permissions, and run `maestro cancel {running.path}`" in answer.stderr
    assert f"or end the conductor with `kill {conductor}`, which ends its workers" in answer.stderr
    assert running.processes("bin/conductor")
    os.kill(conductor, signal.SIGTERM)
    wait_for(lambda: not running.processes(), "the end of the study")
