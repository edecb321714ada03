"""The gate of a worker process: whether it may accept a further message."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Protocol

from maestro_celery_plugin.broker.envelope import Refusal

__all__ = ["Gate", "Pause", "gate"]

LOGGER = logging.getLogger(__name__)


class Pause(Protocol):
    """Pauses the consumer of messages while the gate accepts none."""

    def adjust(self) -> None:
        """Check the gate now; only the thread of the consumer calls this method."""

    def wake(self) -> None:
        """Let the thread of the consumer check the gate now; any thread may call this method."""


class Gate:
    """Counts the messages that this worker process has accepted and not finished.

    A slot that runs a short sample as its last one counts as free, so that its next message arrives meanwhile. If the
    sample takes longer than expected, another slot gets the samples of this message, because the coordinator sends them
    again after seconds.

    Attributes:
        slots: How many messages may be accepted at the same time.
        is_closed: Whether no further message is accepted.
        is_held: Whether no message is accepted for now.
        received: Number of messages that have arrived, refused ones included.
        refused: Number of refused messages.
        step: The bootstep that pauses the consumer.
    """

    def __init__(self) -> None:
        self.slots = 1
        self.is_closed = self.is_held = False
        self.received = 0
        self.refused: Counter[Refusal] = Counter()
        self.step: Pause | None = None
        self._accepted: set[str] = set()
        self._soon_free: set[int] = set()

    @property
    def has_free_slot(self) -> bool:
        """Whether a further message may be accepted."""
        return not (self.is_closed or self.is_held) and len(self._accepted) < self.slots + len(self._soon_free)

    def expect_free(self, slot: int) -> None:
        """Accept the next message of a slot, whose last sample will end soon; any thread may call this method."""
        if self.step is not None:
            self._soon_free.add(slot)
            self.step.wake()

    def end_expectation(self, slot: int) -> None:
        """Forget that a slot will be free soon, because `finish` follows; any thread may call this method."""
        self._soon_free.discard(slot)

    def accept(self, message_id: str) -> None:
        """Take a slot for a verified message."""
        self._accepted.add(message_id)
        if self.step is not None:
            self.step.adjust()

    def finish(self, message_id: str) -> None:
        """Free the slot of a message; any thread may call this method."""
        self._accepted.discard(message_id)
        if self.step is not None:
            self.step.wake()

    def refuse(self, refusal: Refusal) -> None:
        """Count a refused message; log the first of each kind, because anyone can send thousands."""
        if not self.refused[refusal]:
            LOGGER.error("Refused a message that %s. Further messages of this kind are only counted.", refusal.value)
        self.refused[refusal] += 1
        self.received += 1

    def hold(self, *, held: bool) -> None:
        """Pause or continue taking messages; any thread may call this method, and may repeat the call."""
        if self.is_held != held:
            self.is_held = held
            if self.step is not None:
                self.step.wake()

    def close(self) -> None:
        """Stop taking messages; any thread may call this method, and may repeat the call."""
        if not self.is_closed:
            self.is_closed = True
            if self.step is not None:
                self.step.wake()


# The gate of this process.
gate = Gate()
