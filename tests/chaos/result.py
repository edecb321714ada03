"""The result of a case, and the sum of many results."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chaos.case import Case

__all__ = ["Result", "read_results", "sum_of"]


_MUST_BE_ZERO = ("lost", "finished twice", "left behind")


@dataclasses.dataclass
class Result:
    """What was done in a case, what has run, and what is wrong.

    Attributes:
        case: What was run.
        seconds: Seconds from the launch to the end of all processes.
        healed_s: Seconds from the last fault to the end of the study.
        work_s: Seconds that its slots needed at least for the samples that ran after the last fault.
        done: The names of the faults, in their order.
        counts: Samples, executions, what is lost or finished twice, and reasons to run again.
        wrong: A sentence for everything that must not be.
    """

    case: Case
    seconds: float = 0.0
    healed_s: float = 0.0
    work_s: float = 0.0
    done: list[str] = dataclasses.field(default_factory=list)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """Return the result as one line."""
        return json.dumps({**vars(self), "case": dataclasses.asdict(self.case)})

    @classmethod
    def from_json(cls, line: str) -> Result:
        """Return the result of one line."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "case": Case(**values["case"]), "counts": Counter(values["counts"])})

    def line(self) -> str:
        """Return what happened, in one line for people."""
        again = self.counts["executions"] - self.counts["samples"]
        state = f"{len(self.wrong)} WRONG" if self.wrong else "ok"
        return (
            f"seed {self.case.seed}: {state}; {self.case.name}; {self.counts['samples']} samples, {again} run again, "
            f"{len(self.done)} faults, healed in {self.healed_s:.1f} s ({self.work_s:.1f} s of work)"
        )


def read_results(path: Path) -> list[Result]:
    """Return the results in a file with one of them per line; a file that does not exist has none."""
    return [Result.from_json(line) for line in path.read_text().splitlines()] if path.exists() else []


def sum_of(results: Iterable[Result]) -> Iterator[str]:
    """Yield the lines of the sum of results."""
    results = list(results)
    counts, faults, kinds = Counter(dict.fromkeys(_MUST_BE_ZERO, 0)), Counter[str](), Counter[str]()
    for result in results:
        counts.update(result.counts)
        faults.update(result.done)
        place = "slurm" if result.case.slurm else "local"
        kinds[f"{place}, {result.case.broker}, {result.case.shape}, {result.case.pool}"] += 1
    yield from _table("seeds", kinds)
    yield from _table("faults", faults)
    yield from _table("counts", counts)
    if results:
        yield from _healing(results)
    failed = [result.case.seed for result in results if result.wrong]
    yield f"{len(results)} seeds, {sum(faults.values())} faults, {len(failed)} seeds with something wrong {failed[:50]}"


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"{title}:"
    for name, count in sorted(counts.items()):
        yield f"{count:>10,}  {name}"


def _healing(results: list[Result]) -> Iterator[str]:
    """Yield the times from the last fault to the end, and how much longer that is than the work itself needs.

    Studies that had nothing left to do after the last fault do not count.
    """
    for place, is_slurm in (("local", False), ("slurm", True)):
        chosen = [result for result in results if result.case.slurm == is_slurm and result.work_s > 0]
        if chosen:
            whole = _median_and_largest(result.healed_s for result in chosen)
            beyond = _median_and_largest(result.healed_s - result.work_s for result in chosen)
            yield f"healing time of {len(chosen)} seeds, {place}: {whole}; beyond the work itself: {beyond}"


def _median_and_largest(seconds: Iterable[float]) -> str:
    values = list(seconds)
    return f"median {statistics.median(values):.1f} s, largest {max(values):.1f} s"


if __name__ == "__main__":  # python -m chaos.result FILE...: the sum of several files
    print("\n".join(sum_of(result for name in sys.argv[1:] for result in read_results(Path(name)))))
