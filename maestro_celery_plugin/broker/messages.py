"""The messages of a session: range tasks, their signature, and the check of a received message."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

from maestro_celery_plugin.ledger.claims import MessageName
from maestro_celery_plugin.states import RunMode

__all__ = ["RangeTask", "Signer", "arguments_of", "halves"]


@dataclasses.dataclass(frozen=True)
class RangeTask:
    """A message: samples [start, stop) of a step record, under an epoch.

    Attributes:
        study: The study's workspace.
        study_id: Identity of the study, of which a new launch in the same workspace has another one.
        manifest: Path of the step record's directory, relative to the directory of manifests.
        record: Number of the step record.
        start: Index of the first sample.
        stop: Index after the last sample.
        epoch: The epoch of the range; a later epoch makes the message invalid.
        mode: How the samples run.
        series: The series of the message (`ledger/claims.py`).
    """

    study: str
    study_id: str
    manifest: str
    record: int
    start: int
    stop: int
    epoch: int
    mode: RunMode
    series: int = 0

    def part(self, start: int, stop: int) -> RangeTask:
        """Return the task for a part of the range."""
        return dataclasses.replace(self, start=start, stop=stop)

    @property
    def name(self) -> MessageName:
        """The name of the message."""
        return MessageName(self.record, self.epoch, self.start, self.stop, self.series)

    @property
    def fields(self) -> tuple[str | int, ...]:
        """The arguments of the message, without its signature."""
        place = (self.study, self.study_id, self.manifest, self.record)
        return (*place, self.start, self.stop, self.epoch, int(self.mode), self.series)


def halves(task: RangeTask) -> list[RangeTask]:
    """Split a range into two halves; return one part for a single sample, and no part for an empty range."""
    middle = (task.start + task.stop) // 2
    parts = [task.part(task.start, middle), task.part(middle, task.stop)]
    return [part for part in parts if part.start < part.stop]


def arguments_of(body: bytes | str) -> list[Any] | None:
    """Return the arguments in the body of Celery's message; None if the body is not such a body.

    The body is ``[arguments, keyword arguments, options]`` in JSON (Celery's message protocol, version 2).
    """
    try:
        arguments = json.loads(body)[0]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return arguments if isinstance(arguments, list) else None


class Signer:
    """Signs and checks messages with the secret of a session (HMAC-SHA256 over canonical JSON).

    Args:
        secret: The secret of the session.
    """

    _TYPES = (str, str, str, int, int, int, int, int, int, str)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, *values: str | int) -> str:
        """Return the signature of a message."""
        return hmac.new(self._secret, json.dumps(values).encode(), hashlib.sha256).hexdigest()

    def verify(self, signature: object, *values: str | int) -> bool:
        """Tell whether a signature is valid for a message."""
        return isinstance(signature, str) and hmac.compare_digest(
            signature.encode(errors="replace"), self.sign(*values).encode()
        )

    def encode(self, task: RangeTask) -> list[str | int]:
        """Return the signed message of a task."""
        return [*task.fields, self.sign(*task.fields)]

    def decode(self, message: Sequence[Any]) -> RangeTask | None:
        """Return the task of a message; None if the message has no valid signature of this session."""
        if tuple(type(value) for value in message) != self._TYPES or not self.verify(message[-1], *message[:-1]):
            return None
        study, study_id, manifest, record, start, stop, epoch, mode, series, _ = message
        if mode not in RunMode._value2member_map_:
            return None
        return RangeTask(study, study_id, manifest, record, start, stop, epoch, RunMode(mode), series)
