"""Null samples as calls of an app of Parsl; this script runs in Parsl's own environment.

python parsl_calls.py DIRECTORY COUNT SLOTS RUN_DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import parsl
from parsl import AUTO_LOGNAME, bash_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


@bash_app
def sample(directory: str, stdout: object = AUTO_LOGNAME, stderr: object = AUTO_LOGNAME) -> str:
    """Return the command line of one sample."""
    return f"cd {directory} && exec /bin/bash null.sh"


def main() -> None:
    """Run the samples that the command line defines."""
    root, count, slots, run_dir = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    root.mkdir()
    executor = HighThroughputExecutor(
        label="local", address="127.0.0.1", max_workers_per_node=slots, provider=LocalProvider(max_blocks=1)
    )
    with parsl.load(Config(executors=[executor], run_dir=run_dir, initialize_logging=False)):
        calls = []
        for number in range(count):
            directory = root / str(number)
            directory.mkdir()
            (directory / "null.sh").write_text(f"#!/bin/bash\n\necho {number}\n")
            calls.append(sample(str(directory), stdout=str(directory / "null.out"), stderr=str(directory / "null.err")))
        for call in calls:
            call.result()


if __name__ == "__main__":
    main()
