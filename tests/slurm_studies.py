"""Ensembles on the tests' Slurm cluster: their specifications, and what has to hold when they have ended."""

from __future__ import annotations

import collections
import json
import os
import textwrap
from pathlib import Path
from typing import Any

from slurm_cluster import SlurmCluster
from support import Study, kill, processes_of, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

__all__ = ["Launcher", "allocations", "assert_each_sample_once", "assert_nothing_left", "codes", "ensemble", "job_of"]

# Not a whole node, so that allocations of several studies run side by side.
SMALL = 'type: slurm, nodes: 1, procs: 1, walltime: "00:01:00"'


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
        cmd: Its script.
        restart: Its script for samples that run again; the same when empty.
        run: Further keys of the step, in YAML's short form.
        count: The number of samples, whose values `$(A)` are 1 to count.
        batch: Keys of the batch block.
        group: Keys of the worker group `w`.
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
    """Starts studies whose commands find the cluster; at the end, kills what tests have left of them.

    Args:
        directory: Where the studies lie.
        slurm: The cluster.
    """

    def __init__(self, directory: Path, slurm: SlurmCluster) -> None:
        self._directory, self._studies = directory, list[Study]()
        home = directory / "home"
        home.mkdir()
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "COLUMNS": "120", **slurm.environment,
        }  # fmt: skip

    def __call__(self, spec: str, *options: str, name: str, environment: dict[str, str] | None = None) -> Study:
        """Run `maestro run` on a specification."""
        path = self._directory / f"{name}.yaml"
        path.write_text(spec)
        study = Study(self._directory / name, {**self.environment, **(environment or {})})
        self._studies.append(study)
        answer = study.command("maestro", "run", "-y", "-o", str(study.path), *options, str(path))
        study.output, study.code = answer.stdout + answer.stderr, answer.returncode
        assert study.code == 0, study.output
        return study

    def close(self) -> None:
        """Kill what is left."""
        for study in self._studies:
            kill(*study.server(), *study.processes())


def allocations(study: Study) -> list[dict[str, Any]]:
    """Return what the study knows of its allocations, in the order of their names and numbers."""
    paths = study.path.glob("merlin_info/allocations/*/*/allocation.json")
    return [json.loads(path.read_text()) for path in sorted(paths, key=lambda p: (p.parts[-3], int(p.parts[-2])))]


def job_of(study: Study, slurm: SlurmCluster, *states: str, timeout_s: float = 90.0) -> str:
    """Wait until the newest allocation of a study is in one of these states; return its job."""

    def is_there() -> bool:
        known = allocations(study)
        return bool(known and known[-1]["job"]) and slurm.state(known[-1]["job"]) in states

    wait_for(is_there, f"an allocation of {study.path.name} that is {' or '.join(states)}", timeout_s)
    return str(allocations(study)[-1]["job"])


def codes(study: Study, kind: Kind = Kind.ENDED, record: int = 1) -> dict[int, list[int]]:
    """Return the exit codes of each sample that the ledger has of one kind of entry."""
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    found: dict[int, list[int]] = collections.defaultdict(list)
    for entry in entries[(entries["record"] == record) & (entries["kind"] == kind)]:
        found[int(entry["start"])].append(int(entry["code"]))
    return dict(found)


def assert_each_sample_once(study: Study, count: int, record: int = 1) -> None:
    """Every sample has ended well once, by the ledger; nothing is left to do."""
    assert codes(study, record=record) == {sample: [0] for sample in range(count)}


def assert_nothing_left(study: Study, slurm: SlurmCluster) -> None:
    """The queue, the machine and the session have nothing of a study any more."""
    root = str(study.path)

    def in_queue() -> list[str]:
        lines = slurm.run("squeue", "--noheader", "--format=%i|%Z").splitlines()
        return [line for line in lines if line.partition("|")[2].startswith(f"{root}/")]

    wait_for(lambda: not in_queue(), f"no job of {root} in the queue", 30)
    wait_for(lambda: not processes_of(root), f"no process of {root}: {processes_of(root)}", 30)
    assert os.listdir(study.path / "merlin_info" / "session" / "workers") == []
