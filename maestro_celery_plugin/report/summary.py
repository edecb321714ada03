"""The summary of a study for its report: numbers that stay small, however many samples the study has.

`study_summary.py` builds it, `charts.py` and `page.py` show it, and `report --json` prints it. Times are Unix seconds,
durations are seconds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = [
    "AllocationSummary",
    "Bin",
    "Category",
    "ColumnFailures",
    "DurationBin",
    "FailureKind",
    "NodeSummary",
    "Plane",
    "SlotTime",
    "SlowSample",
    "StepSummary",
    "StudySummary",
    "Timeline",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotTime:
    """Where the time of slots went, in seconds summed over the slots; the parts add up to all the time.

    Attributes:
        finished: Attempts whose samples have finished.
        failed: Attempts that have failed.
        again: Attempts that have requested another run.
        interrupted: Attempts that a worker has interrupted, at the end of its allocation or at a cancellation.
        lost: Attempts whose worker has died.
        running: Attempts that run now.
        overhead: Time in which a slot had samples, and none ran: directories, scripts, ledger.
        other_studies: Time in which a slot had samples of other studies of the session.
        waiting: Time between two messages, in which a slot had no samples.
        starting: Time between the start of the allocation and the first samples of a slot.
        ending: Time between the last sample of a slot and the end of the allocation.
        unused: Time of slots that never had a sample, and of workers that had ended.
    """

    finished: float = 0.0
    failed: float = 0.0
    again: float = 0.0
    interrupted: float = 0.0
    lost: float = 0.0
    running: float = 0.0
    overhead: float = 0.0
    other_studies: float = 0.0
    waiting: float = 0.0
    starting: float = 0.0
    ending: float = 0.0
    unused: float = 0.0

    @property
    def total(self) -> float:
        """All the time."""
        return sum(self.parts().values())

    @property
    def utilisation(self) -> float:
        """The share of the time in which samples ran, whatever came of it; 0 without any time."""
        ran = self.finished + self.failed + self.again + self.interrupted + self.lost + self.running
        return ran / self.total if self.total else 0.0

    def parts(self) -> dict[str, float]:
        """Return the parts by name."""
        return dataclasses.asdict(self)

    def __add__(self, other: SlotTime) -> SlotTime:
        """Return the sum, part by part."""
        others = other.parts()
        return SlotTime(**{name: seconds + others[name] for name, seconds in self.parts().items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """How many slots were busy at a time.

    Attributes:
        began_at: The start of the first bin.
        bin_s: The length of a bin.
        busy: The mean number of busy slots in each bin, by step.
    """

    began_at: float
    bin_s: float
    busy: dict[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DurationBin:
    """Finished and failed attempts whose durations are in [start_s, stop_s)."""

    start_s: float
    stop_s: float
    finished: int
    failed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSummary:
    """The samples of a step, summed over its step records; one sample for a record that is not sampled.

    Attributes:
        name: Name of the step.
        records: Number of step records by Maestro's state.
        samples: Number of samples.
        finished: Number of finished samples.
        failed: Number of failed samples.
        first_start: The first start of an attempt; None without one.
        last_end: The last end of an attempt; None without one.
        median_s: Median duration of finished samples; None without one, as the following.
        p95_s: The duration that 95 % of the finished samples do not exceed.
        longest_s: The longest duration of a finished sample.
        durations: The distribution of the durations of attempts.
        attempts: Number of attempts by their end, by the names of `SlotTime`, and `not_run`: it could not run.
        samples_by_attempts: Number of samples with 1, 2, ... attempts; the last number counts all with more.
    """

    name: str
    records: dict[str, int]
    samples: int
    finished: int
    failed: int
    first_start: float | None
    last_end: float | None
    median_s: float | None
    p95_s: float | None
    longest_s: float | None
    durations: tuple[DurationBin, ...]
    attempts: dict[str, int]
    samples_by_attempts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationSummary:
    """An allocation, or the workers of a group outside of the study's allocations.

    Attributes:
        label: Its name and number, such as ``sim/2``.
        job: Identifier of its batch job; empty outside of an allocation.
        state: Name of its state; empty outside of an allocation.
        reason: The message of the batch system.
        slots: The number of its slots.
        submitted_at: When it was submitted; None outside of an allocation.
        began_at: When it began; None if it has not.
        first_work_at: When a slot first took samples; None if none did, as the following.
        draining_at: When the first slot ran out of samples for good.
        last_work_at: When the last slot was released.
        ended_at: Its end; None while it is open.
        slot_time: Where the time of its slots went.
    """

    label: str
    job: str
    state: str
    reason: str
    slots: int
    submitted_at: float | None
    began_at: float | None
    first_work_at: float | None
    draining_at: float | None
    last_work_at: float | None
    ended_at: float | None
    slot_time: SlotTime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """Samples whose values are in [start, stop): how many have an outcome, and how many of these have failed."""

    start: float
    stop: float
    samples: int
    failed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
    """Samples with one value: how many have an outcome, and how many of these have failed."""

    value: str
    samples: int
    failed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnFailures:
    """Failures by the values of a column of the sample table, or of a parameter.

    Attributes:
        label: The column label, or the name of the parameter.
        bins: The bins of a column of numbers; empty for text.
        categories: The values of a column of text, those with most failures first; empty for numbers.
        others: Number of values that are not among the categories.
        sentence: What distinguishes the failed samples; empty if nothing does.
        weight: How well the values separate failed samples from others, from 0 to 1.
        is_log: Whether the bins have equal widths on a logarithmic scale.
    """

    label: str
    bins: tuple[Bin, ...] = ()
    categories: tuple[Category, ...] = ()
    others: int = 0
    sentence: str = ""
    weight: float = 0.0
    is_log: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """Failures over the two columns that separate failed samples best.

    Attributes:
        x: Label of the first column.
        y: Label of the second column.
        x_edges: Edges of the bins of the first column.
        y_edges: Edges of the bins of the second column.
        cells: (bin of x, bin of y, samples, failed) for each cell with samples.
        logs: Whether the bins of each column have equal widths on a logarithmic scale.
    """

    x: str
    y: str
    x_edges: tuple[float, ...]
    y_edges: tuple[float, ...]
    cells: tuple[tuple[int, int, int, int], ...]
    logs: tuple[bool, bool] = (False, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureKind:
    """Failed samples of one step with one exit code.

    Attributes:
        step: Name of the step.
        end: How they ended, such as ``exit code 3``.
        samples: Their number.
        example: Directory of the first one, relative to the study.
        values: Its values by label.
        stderr: The last lines of its stderr.
    """

    step: str
    end: str
    samples: int
    example: str
    values: dict[str, str]
    stderr: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowSample:
    """One of the slowest samples.

    Attributes:
        step: Name of the step.
        sample: Its directory, relative to the study.
        seconds: Its duration.
        ratio: Its duration divided by the median of its step.
        end: How it ended.
        node: The machine of its last attempt; the worker where the machine is unknown.
        values: Its values by label.
    """

    step: str
    sample: str
    seconds: float
    ratio: float
    end: str
    node: str
    values: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeSummary:
    """A machine, or a worker whose machine is unknown.

    Attributes:
        name: Its name.
        workers: Number of its workers.
        attempts: Number of attempts that have ended there.
        failed: Number of those that have failed.
        not_run: Number of attempts that could not run because of a fault of the worker or the machine.
        lost: Number of attempts whose worker has died.
        slowness: Geometric mean of the durations of its finished attempts, divided by that of all machines, step by
            step; None without a finished attempt.
        remarks: Why it stands out; empty for most.
    """

    name: str
    workers: int
    attempts: int
    failed: int
    not_run: int
    lost: int
    slowness: float | None
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySummary:
    """The summary of a study.

    Attributes:
        study: Its name.
        path: Its directory.
        state: Its state.
        launched: Time of the launch, as text.
        made_at: When the summary was made.
        timeline: Busy slots by step; None if nothing ran.
        slot_time: Where the time of all slots went.
        steps: Its steps, in Maestro's order.
        allocations: Its allocations.
        columns: Failures by the values of samples and parameters, those that separate best first.
        plane: Failures over two columns; None with fewer than two columns of numbers, and without failures.
        failures: Kinds of failures, the most frequent first.
        slowest: The slowest samples.
        nodes: Its machines, those that stand out first.
        versions: Versions of programs.
        settings: What the study runs with, as text by name; no variable of the environment.
        specification: The specification of the launch.
        remarks: What a reader of the report must know.
    """

    study: str
    path: str
    state: str
    launched: str
    made_at: float
    timeline: Timeline | None
    slot_time: SlotTime
    steps: tuple[StepSummary, ...]
    allocations: tuple[AllocationSummary, ...]
    columns: tuple[ColumnFailures, ...]
    plane: Plane | None
    failures: tuple[FailureKind, ...]
    slowest: tuple[SlowSample, ...]
    nodes: tuple[NodeSummary, ...]
    versions: dict[str, str]
    settings: dict[str, str]
    specification: str
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary for `report --json`; scripts rely on these keys."""
        utilisation = {"utilisation": self.slot_time.utilisation}
        return dataclasses.asdict(self) | utilisation
