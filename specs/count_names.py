"""Count how often each name came: count_names.py DIRECTORY PATTERN.

Several processes read the samples' output files. From the repeats follows an estimate of how many
different names there are: of n names drawn evenly from N, about n (n - 1) / 2N pairs are equal.
Example: 200 names with 12 equal pairs, so N is about 200 * 199 / 24 = 1658.
"""

from __future__ import annotations

import concurrent.futures
import sys
from collections import Counter
from pathlib import Path

CHUNK = 100  # files that a process reads in one go


def count_chunk(paths: list[Path]) -> Counter[str]:
    """Count the names in some files."""
    return Counter(path.read_text(encoding="utf-8").strip() for path in paths)


def count_all(paths: list[Path]) -> Counter[str]:
    """Count the names in all files, chunk by chunk, in several processes."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    total: Counter[str] = Counter()
    with concurrent.futures.ProcessPoolExecutor() as executor:
        for counted in executor.map(count_chunk, chunks):
            total.update(counted)
    return total


def main() -> None:
    """Count, write repeats.csv into the current directory, and print a summary."""
    names = count_all(sorted(Path(sys.argv[1]).glob(sys.argv[2])))
    count = sum(names.values())
    pairs = sum(number * (number - 1) // 2 for number in names.values())
    repeated = sorted((name for name in names if names[name] > 1), key=lambda name: (-names[name], name))
    Path("repeats.csv").write_text("".join(f"{name},{names[name]}\n" for name in repeated), encoding="utf-8")
    print(f"{count} names, {len(names)} different, {len(repeated)} of them more than once")
    for name in repeated[:5]:
        print(f"{names[name]:>6} x {name}")
    if pairs:
        print(f"There are about {count * (count - 1) // (2 * pairs)} names.")


if __name__ == "__main__":
    main()
