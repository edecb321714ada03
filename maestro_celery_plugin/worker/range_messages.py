"""The messages of a range task in a slot: the claim of its own message, and messages about the rest of its range."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable

from maestro_celery_plugin.broker.messages import RangeTask, halves
from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.claims import Claims, owner_text
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.worker.slot_ledger import SlotLedger

__all__ = ["RangeMessages", "Send"]

LOGGER = logging.getLogger(__name__)

Send = Callable[[RangeTask, str, int], None]

# Delay before a claim with an unknown result is tried again.
CLAIM_DELAY_S = 1.0


class RangeMessages:
    """Claims messages for a slot, and sends the rest of its range to the task queue.

    Args:
        claims: The claims of the study.
        writer: Name of the worker process.
        ledger: The ledger entries of the range task.
        send: Sends a range task to a task queue, with a level; raises an error when the broker does not answer.
        stopping: Set when the worker stops.
        series: The series of the message of the range task.
    """

    def __init__(
        self, claims: Claims, writer: str, ledger: SlotLedger, send: Send, stopping: threading.Event, series: int
    ) -> None:
        self._claims, self._owner, self._ledger, self._send = claims, owner_text(writer), ledger, send
        self._stopping, self._series = stopping, series

    def claim(self, task: RangeTask) -> bool:
        """Claim a message; return whether this slot is the first to claim it.

        After an error, the claim may exist or not. So the same claim is tried again until the answer is known.
        Otherwise nobody else could take the message as long as this worker lives.

        Raises:
            FileNotFoundError: the study does not exist any more.
            OSError: the answer is not known, and the worker stops.
        """
        while True:
            try:
                return self._claims.claim(task.name, self._owner)
            except FileNotFoundError:
                raise
            except OSError as error:
                LOGGER.warning("The claim of a message about '%s' is tried again: %s", task.manifest, error)
                if self._stopping.wait(CLAIM_DELAY_S):
                    raise

    def send_rest(self, rest: RangeTask, task_queue: str, level: int, *, in_halves: bool) -> int:
        """Send a rest of the range; return the end of the range that stays in this slot.

        The ledger shows the parts before they are sent, so that the coordinator knows each message that may exist. If
        the broker does not answer, the samples that could not be sent stay in this slot.
        """
        if rest.start >= rest.stop:
            return rest.stop
        rest = dataclasses.replace(rest, series=self._series)
        parts = halves(rest)[::-1] if in_halves else [rest]
        for part in parts:
            self._ledger.write(Kind.PASSED, part.start, part.stop, code=part.series)
        try:
            self._ledger.flush()
        except LedgerError as cause:
            return self._keep(parts, cause)
        for at, part in enumerate(parts):
            try:
                self._send(part, task_queue, level)
            except Exception as cause:  # each transport has its own errors
                return self._keep(parts[at:], cause)
        return parts[-1].start

    def _keep(self, parts: list[RangeTask], cause: Exception) -> int:
        """Keep parts that could not be sent; return the end of the range that stays in this slot.

        The broker may have received a part although it did not answer. So this slot claims the parts in the order of
        their samples, up to the first that somebody else has claimed.
        """
        self._series += 1
        LOGGER.warning("Samples %d to %d stay in this worker: %s.", parts[-1].start, parts[0].stop - 1, cause)
        end = parts[-1].start
        for part in reversed(parts):
            if not self.claim(part):
                break
            self._ledger.write(Kind.KEPT, part.start, part.stop, code=part.series)
            end = part.stop
        return end
