"""The smallest program that runs samples: threads create the files, start the process and wait for its end.

python bare_loop.py DIRECTORY COUNT SLOTS
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator


def _work(root: str, numbers: Iterator[int], count: int) -> None:
    # next() of itertools.count is one C call, so two threads never receive the same number.
    while (number := next(numbers)) < count:
        directory = f"{root}/{number}"
        os.mkdir(directory)  # noqa: PTH102 - pathlib would add overhead
        with open(f"{directory}/null.sh", "w") as script:  # noqa: PTH123
            script.write(f"#!/bin/bash\n\necho {number}\n")
        with open(f"{directory}/null.out", "wb") as out, open(f"{directory}/null.err", "wb") as err:  # noqa: PTH123
            subprocess.Popen(["/bin/bash", "null.sh"], cwd=directory, stdout=out, stderr=err).wait()


def main() -> None:
    """Run the samples that the command line defines."""
    root, count, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.makedirs(root)  # noqa: PTH103
    numbers = itertools.count()
    threads = [threading.Thread(target=_work, args=(root, numbers, count)) for _ in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
