"""The directory hierarchy of samples, the same as Merlin's for the same numbers.

A size is the number of samples below one directory of a level. Sizes start at 1 and are multiplied by
``level_max_dirs`` until one is at least the number of samples; the largest size is dropped (Merlin 1.13
common/sample_index.py:37-58). A name is the position in the level, padded with zeros to the number of digits of
``level_max_dirs`` (common/sample_index_factory.py:23-155).

Worked example: 1000 samples, 25 directories per level: sizes 625, 25, 1; sample 999 is
999 // 625 = 1, 374 // 25 = 14, 24 // 1 = 24: ``01/14/24``.

The directories of a study stay where they are when samples are added to it. So the levels follow from a number that the
launch has fixed, the *planned* number: ``max_samples``, or the number of samples of the launch. Samples beyond it
continue the first level: with 10 planned samples, sample 30 is ``30``, and sample 100 is ``100``. So the glob pattern
stays the same, and matches the added samples, too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

__all__ = ["FINISHED_MARKER", "SamplePaths"]

# The file in the directory of a finished sample (Merlin: common/tasks.py:144).
FINISHED_MARKER = "MERLIN_FINISHED"


@dataclasses.dataclass(frozen=True)
class SamplePaths:
    """Paths of the samples 0 .. count - 1, relative to the workspace of a step record.

    Attributes:
        count: Number of samples.
        level_max_dirs: Directories per level, except that the first level also has all samples beyond `planned`.
        planned: The number of samples that decides on the levels; 0 for `count`.
    """

    count: int
    level_max_dirs: int = 25
    planned: int = 0

    @functools.cached_property
    def _sizes(self) -> tuple[int, ...]:
        sizes = [1]
        while sizes[0] < (self.planned or self.count):
            sizes.insert(0, sizes[0] * self.level_max_dirs)
        return tuple(sizes[1:])

    @functools.cached_property
    def _digits(self) -> int:
        return len(str(self.level_max_dirs))

    @property
    def glob(self) -> str:
        """The pattern that matches every sample directory, ``$(MERLIN_GLOB_PATH)``."""
        return "*/" * len(self._sizes)

    def of(self, index: int) -> str:
        """Return the path of one sample, ``$(MERLIN_SAMPLE_PATH)``; ``.`` when there is only one sample."""
        names = []
        for size in self._sizes:
            position, index = divmod(index, size)
            names.append(f"{position:0{self._digits}d}")
        return "/".join(names) or "."

    def of_many(self, indices: Iterable[int]) -> Iterator[str]:
        """Yield the paths of many samples; those in one directory of the last level but one share its path."""
        if len(self._sizes) < 2:
            yield from map(self.of, indices)
            return
        names = [f"{position:0{self._digits}d}" for position in range(self.level_max_dirs)]
        last, prefix = -1, ""
        for index in indices:
            parent, position = divmod(index, self.level_max_dirs)
            if parent != last:
                last, prefix = parent, self.of(index).rpartition("/")[0]
            yield f"{prefix}/{names[position]}"

    def all(self) -> Iterator[str]:
        """Yield the paths of all samples in order, as in ``$(MERLIN_PATHS_ALL)``."""
        return map(self.of, range(self.count))
