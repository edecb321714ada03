"""Null samples as one job of HyperQueue; this script runs in HyperQueue's own environment.

python hyperqueue_job.py DIRECTORY COUNT SLOTS SERVER_DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def _job(root: Path, count: int) -> Job:
    job = Job()
    for number in range(count):
        directory = root / str(number)
        directory.mkdir()
        (directory / "null.sh").write_text(f"#!/bin/bash\n\necho {number}\n")
        out, err = directory / "null.out", directory / "null.err"
        job.program(["/bin/bash", "null.sh"], cwd=directory, stdout=out, stderr=err)
    return job


def main() -> None:
    """Run the samples that the command line defines."""
    root, count, slots, server = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    root.mkdir()
    with LocalCluster(str(server), WorkerConfig(cores=slots)) as cluster:
        client = cluster.client()
        client.wait_for_jobs([client.submit(_job(root, count))])


if __name__ == "__main__":
    main()
