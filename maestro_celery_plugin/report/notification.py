"""The notification: what a command receives about an event of a study, as one JSON object on its standard input."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.report.model import AllocationStatus, StudyState, StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import command_words, count_words
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.notifications import Event, Occurrence

__all__ = ["Notification", "notification_of"]

_ENDS = {
    StudyState.FINISHED: "The study has finished",
    StudyState.FAILED: "The study has failed",
    StudyState.CANCELLED: "The study was cancelled",
    StudyState.INTERRUPTED: "The study was interrupted: its conductor has ended before its steps",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notification:
    """What a command receives.

    Attributes:
        event: ``failure``, ``reallocation`` or ``end``.
        study: Name of the study.
        path: Its directory.
        state: Its state at the event: ``RUNNING``; at its end ``FINISHED``, ``FAILED``, ``CANCELLED`` or
            ``INTERRUPTED``.
        counts: ``steps``: the number of step records, in total and by Maestro's state in small letters; ``samples``:
            ``total``, ``finished``, ``failed``, ``running``, ``pending``. They are counted when the command starts.
        time: When the command starts, in UTC, in the form ``2026-01-31T12:00:00+00:00``.
        message: What has happened, in sentences.
        next: A command that shows more, or that continues the study.
    """

    event: str
    study: str
    path: str
    state: str
    counts: dict[str, dict[str, int]]
    time: str
    message: str
    next: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; commands rely on these keys."""
        return dataclasses.asdict(self)

    def environment(self) -> dict[str, str]:
        """Return the variables for commands that do not read JSON."""
        return {
            "MAESTRO_CELERY_EVENT": self.event,
            "MAESTRO_CELERY_STUDY": self.path,
            "MAESTRO_CELERY_NAME": self.study,
            "MAESTRO_CELERY_STATE": self.state,
            "MAESTRO_CELERY_FAILED_SAMPLES": str(self.counts["samples"]["failed"]),
            "MAESTRO_CELERY_MESSAGE": self.message,
        }


def notification_of(root: Path, occurrence: Occurrence) -> Notification:
    """Return the notification of an event.

    Args:
        root: Directory of the study.
        occurrence: The event.

    Raises:
        StudyError: a file of the study cannot be read.
    """
    reader = StatusReader(root)
    status = reader.read()
    if occurrence.event is Event.FAILURE:
        message, command = _failure(reader, occurrence.subject)
    elif occurrence.event is Event.REALLOCATION:
        message, command = _reallocation(status, occurrence.subject), "maestro-celery status"
    else:
        message, command = _end(status, StudyState[occurrence.state])
    samples = Counter[str]()
    for step in status.steps:
        samples.update(dataclasses.asdict(step.samples))
    states = Counter(step.state.lower() for step in status.steps)
    return Notification(
        event=occurrence.event.value,
        study=status.study,
        path=str(status.path),
        state=occurrence.state,
        counts={
            "steps": {"total": len(status.steps), **states},
            "samples": {key: samples[key] for key in ("total", "finished", "failed", "running", "pending")},
        },
        time=datetime.datetime.fromtimestamp(clock.now(), datetime.timezone.utc).isoformat(timespec="seconds"),
        message=message,
        next=command_words(command, status.path),
    )


def _failure(reader: StatusReader, name: str) -> tuple[str, str]:
    record = reader.record(name)
    failed = record.failed(1) if record is not None else []
    if not failed:
        return f"The step record '{name}' has failed.", "maestro-celery explain"
    sample = failed[0]
    who = f"Sample {sample.index} of '{name}'" if sample.manifest.sampled else f"The step record '{name}'"
    return f"{who} has failed: {sample.end}.", "maestro-celery failed"


def _reallocation(status: StudyStatus, label: str) -> str:
    name, _, number = label.rpartition("/")
    by_number = {str(one.number): one for one in status.allocations if one.name == name}
    current, before = by_number.get(number), by_number.get(str(int(number) - 1))
    text = f"Allocation '{label}' is submitted" + (f" as job {current.job}" if current and current.job else "")
    return f"{text}. {_how_it_ended(before)}" if before else f"{text}."


def _how_it_ended(allocation: AllocationStatus) -> str:
    reason = allocation.reason.rstrip(".")
    words = f"'{allocation.name}/{allocation.number}' before it has ended: {AllocationState[allocation.state].value}"
    return f"{words} ({reason})." if reason else f"{words}."


def _end(status: StudyStatus, state: StudyState) -> tuple[str, str]:
    failed = status.failed_samples
    text = _ENDS.get(state, f"The study is {state.name}")
    verb = "has" if failed == 1 else "have"
    message = f"{text}; {count_words(failed, 'sample')} {verb} failed." if failed else f"{text}."
    if state in (StudyState.CANCELLED, StudyState.INTERRUPTED):
        return message, "maestro-celery resume"
    if failed:
        return message, "maestro-celery failed"
    return message, "maestro-celery explain" if state is StudyState.FAILED else "maestro-celery status"
