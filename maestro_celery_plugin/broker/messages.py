"""Range tasks: messages that name samples [start, stop) of a step record."""

from __future__ import annotations

import dataclasses

__all__ = ["RangeTask", "halves"]


@dataclasses.dataclass(frozen=True)
class RangeTask:
    """A message: samples [start, stop) of a step record, under an epoch.

    Attributes:
        study: The study's workspace.
        manifest: The manifest's path below the study's directory of records.
        record: Number of the step record.
        start: First sample.
        stop: Behind the last sample.
        epoch: Under which the range was sent; a later one makes it void.
    """

    study: str
    manifest: str
    record: int
    start: int
    stop: int
    epoch: int

    def part(self, start: int, stop: int) -> RangeTask:
        """Return a part of the range."""
        return dataclasses.replace(self, start=start, stop=stop)

    @property
    def fields(self) -> tuple[str | int, ...]:
        """The message's arguments, without its signature."""
        return (self.study, self.manifest, self.record, self.start, self.stop, self.epoch)


def halves(task: RangeTask) -> list[RangeTask]:
    """Split a range in two; a single sample stays whole, and nothing comes of nothing."""
    middle = (task.start + task.stop) // 2
    parts = [task.part(task.start, middle), task.part(middle, task.stop)]
    return [part for part in parts if part.start < part.stop]
