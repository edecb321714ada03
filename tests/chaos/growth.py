"""The growth of a study: samples are added while it is broken, also by commands that are killed and repeated."""

from __future__ import annotations

import random
import subprocess
import time

from support import BIN

from chaos.parts import Parts
from chaos.specification import Samples

__all__ = ["Growth"]

# An addition takes about a second: it is killed at any time in it.
_LONGEST_S = 1.5
_MOST = 10


class Growth:
    """The samples that are added to a study.

    Args:
        parts: The study.
        samples: Its samples.
        choose: Random choices.

    Attributes:
        count: The number of samples that each step record must have at the end.
        additions: The number of additions.
    """

    def __init__(self, parts: Parts, samples: Samples, choose: random.Random) -> None:
        self._parts, self._samples, self._choose = parts, samples, choose
        self.count, self.additions = samples.count, 0

    def add(self) -> None:
        """Add some samples."""
        self._parts.command(*self._words())

    def kill_and_repeat(self) -> None:
        """Kill a command that adds samples, and repeat it: an addition happens whole, and once."""
        words = self._words()
        study = self._parts.study
        first = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            env=study.environment,
            cwd=study.path.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(self._choose.uniform(0, _LONGEST_S))
        first.kill()
        first.wait()
        self._parts.command(*words)

    def _words(self) -> tuple[str, ...]:
        """Write the next samples to a file, and return the command that adds them."""
        count = self._choose.randint(1, _MOST)
        self.additions += 1
        self.count += count
        file = self._parts.study.path.parent / f"more{self.additions}.csv"
        rows = self._samples.rows(count, self.additions)
        file.write_text(subprocess.run(rows, shell=True, check=True, capture_output=True, text=True).stdout)
        return "maestro-celery", "add-samples", "--key", f"{self.additions}", str(self._parts.study.path), str(file)
