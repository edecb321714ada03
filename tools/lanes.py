"""Run all tests except the unit tests, in two lanes at the same time: `python tools/lanes.py`.

Most of their time, these tests wait. The first lane has the tests with a cluster or network namespaces, the pages of
the documentation, the simulation, and all tests that compare with Merlin, so that it is installed once; the second one
has all others. Both need about the same time. The output of the second one follows when both have ended, so that its
closing line is the last one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

# Not `python -m pytest`, which would import the package from the current directory.
PYTEST = [str(Path(sys.executable).with_name("pytest")), "--import-mode=importlib"]
MERLIN = ["tests/endtoend/test_merlin_comparison.py", "tests/endtoend/test_merlin_examples.py"]
CLUSTER = ["tests/slurm", *MERLIN, "tests/hosts", "tests/documentation", "tests/simulation"]
OTHERS = ["tests", *(f"--ignore={place}" for place in ("tests/unit", *CLUSTER))]


def main() -> int:
    """Run both lanes; return the first exit code that is not 0."""
    with tempfile.TemporaryFile("w+") as output:
        others = subprocess.Popen([*PYTEST, *OTHERS], stdout=output, stderr=output)
        try:
            codes = [subprocess.run([*PYTEST, *CLUSTER], check=False).returncode, others.wait()]
        except KeyboardInterrupt:  # both have received it
            codes = [others.wait() or 1]
        output.seek(0)
        for line in output:
            print(line, end="")
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
