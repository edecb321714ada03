"""Ensembles on the Slurm cluster of the tests: their specifications, their start, and checks after their end."""

from __future__ import annotations

import collections
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import COMMANDS, SlurmCluster
from support import PATIENCE_S, Study, kill, needed, processes_of, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

__all__ = ["Launcher", "allocations", "assert_each_sample_once", "assert_nothing_left", "codes", "ensemble", "job_of", "slurm"]

# Not a whole node, so that allocations of several studies run side by side.
SMALL = 'type: slurm, nodes: 1, procs: 1, walltime: "00:01:00"'


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A Slurm cluster of four nodes on this machine."""
    for command in COMMANDS:
        needed(command)
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("the daemons of a cluster require root")
    with SlurmCluster() as cluster:
        yield cluster


def ensemble(
    cmd: str,
    *,
    restart: str = "",
    run: str = "",
    count: int = 12,
    batch: str = SMALL,
    group: str = "args: --concurrency 2",
    more: str = "",
) -> str:
    """Return a specification with one sampled step `sim`.

    Args:
        cmd: The script of the step.
        restart: The script for samples that run again; `cmd` when empty.
        run: Further keys of the step, in the flow style of YAML.
        count: The number of samples; the values of `$(A)` are 1 to `count`.
        batch: Keys of the batch block, in flow style.
        group: Keys of the worker group `w`, in flow style.
        more: Further lines at the top level.
    """
    keys = [f"cmd: {json.dumps(cmd)}", f"restart: {json.dumps(restart or cmd)}", *([run] if run else [])]
    return f"""
description: {{name: allocations, description: d}}
batch: {{{batch}}}
study:
  - name: sim
    description: d
    run: {{{", ".join(keys)}}}
merlin:
  resources:
    workers:
      w: {{{group}}}
  samples:
    generate: {{cmd: "seq 1 {count} > $(MERLIN_INFO)/a.csv"}}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [A]
{textwrap.dedent(more)}"""


class Launcher:
    """Starts studies whose commands use the cluster, and kills their remaining processes at the end.

    Args:
        directory: Parent directory of the studies.
        slurm: The cluster; None for studies that use none.
    """

    def __init__(self, directory: Path, slurm: SlurmCluster | None) -> None:
        self._directory, self._studies = directory, list[Study]()
        home = directory / "home"
        home.mkdir()
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "COLUMNS": "120",
            **(slurm.environment if slurm else {}),
        }  # fmt: skip

    def __call__(self, spec: str | Path, *options: str, name: str, environment: dict[str, str] | None = None) -> Study:
        """Run `maestro run` with a specification, given as text or path."""
        path = spec if isinstance(spec, Path) else self._directory / f"{name}.yaml"
        if isinstance(spec, str):
            path.write_text(spec)
        study = Study(self._directory / name, {**self.environment, **(environment or {})})
        self._studies.append(study)
        answer = study.command("maestro", "run", "-y", "-o", str(study.path), *options, str(path))
        study.output, study.code = answer.stdout + answer.stderr, answer.returncode
        assert study.code == 0, study.output
        return study

    def close(self) -> None:
        """Kill the remaining processes of the studies."""
        for study in self._studies:
            kill(*study.server(), *study.processes())


def allocations(study: Study) -> list[dict[str, Any]]:
    """Return the allocations that a study has stored, sorted by name and number."""
    paths = study.path.glob("merlin_info/allocations/*/*/allocation.json")
    return [json.loads(path.read_text()) for path in sorted(paths, key=lambda p: (p.parts[-3], int(p.parts[-2])))]


def job_of(study: Study, slurm: SlurmCluster, *states: str, timeout_s: float = PATIENCE_S) -> str:
    """Wait until the job of the newest allocation of a study has one of these states; return the job."""

    def has_state() -> bool:
        stored = allocations(study)
        return bool(stored and stored[-1]["job"]) and slurm.state(stored[-1]["job"]) in states

    wait_for(has_state, f"an allocation of {study.path.name} that is {' or '.join(states)}", timeout_s)
    return str(allocations(study)[-1]["job"])


def codes(study: Study, kind: Kind = Kind.ENDED, record: int = 1) -> dict[int, list[int]]:
    """Return the exit codes of each sample in the ledger entries of one kind."""
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    found: dict[int, list[int]] = collections.defaultdict(list)
    for entry in entries[(entries["record"] == record) & (entries["kind"] == kind)]:
        found[int(entry["start"])].append(int(entry["code"]))
    return dict(found)


def assert_each_sample_once(study: Study, count: int, record: int = 1) -> None:
    """Check in the ledger that each sample has ended once, with exit code 0."""
    assert codes(study, record=record) == {sample: [0] for sample in range(count)}


def assert_nothing_left(study: Study, slurm: SlurmCluster) -> None:
    """Check that a study has no job in the queue, no process and no heartbeat of a worker."""
    root = str(study.path)

    def in_queue() -> list[str]:
        lines = slurm.run("squeue", "--noheader", "--format=%i|%Z").splitlines()
        return [line for line in lines if line.partition("|")[2].startswith(f"{root}/")]

    wait_for(lambda: not in_queue(), f"the end of all jobs of {root}")
    wait_for(lambda: not processes_of(root), f"the end of all processes of {root}: {processes_of(root)}")
    assert os.listdir(study.path / "merlin_info" / "session" / "workers") == []
