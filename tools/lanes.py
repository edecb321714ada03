"""Run the tests that wait for servers and clusters in two lanes at the same time: `python tools/lanes.py`.

Most of their time, these tests wait. The first lane needs the cluster and network namespaces; all other tests are in the
second one. Its output follows when both have ended, so that its closing line is the last one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

PYTEST = [sys.executable, "-m", "pytest", "--import-mode=importlib"]
CLUSTER = ["tests/slurm", "tests/hosts"]
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
