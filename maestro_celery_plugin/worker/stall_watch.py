"""The stall watch: it notices that a worker receives no messages although messages wait for it.

A client can lose its connection in a way that no library notices. Then the worker would stay idle, and its conductor
would count its slots as free and wait for them. Another worker must replace it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from maestro_celery_plugin import clock
from maestro_celery_plugin.machine import host_name

__all__ = ["STALL_LIMIT_S", "StallWatch"]

LOGGER = logging.getLogger(__name__)

# A worker has stalled when messages have waited for it for this long. A worker that works takes them at once.
STALL_LIMIT_S = 15.0
# Interval between two checks of the task queues.
CHECK_INTERVAL_S = 5.0
# The same, while the broker does not answer.
_CUT_OFF_INTERVAL_S = 1.0


class StallWatch:
    """Checks the task queues while the worker could receive messages and receives none.

    Args:
        count_waiting: Returns the number of messages in the task queues, in bounded time; may raise any error.
        can_receive: Returns whether the worker should receive messages now.
        count_received: Returns the number of messages that the worker has received.

    Attributes:
        has_stalled: Whether messages have waited for `STALL_LIMIT_S` seconds, and the worker has received none.
        is_cut_off: Whether the broker has not answered for `CHECK_INTERVAL_S` seconds.
    """

    def __init__(
        self, count_waiting: Callable[[], int], can_receive: Callable[[], bool], count_received: Callable[[], int]
    ) -> None:
        self._count_waiting, self._can_receive, self._count_received = count_waiting, can_receive, count_received
        self._received = 0
        self._waiting_since: float | None = None
        self._unanswered_since: float | None = None
        self.has_stalled = self.is_cut_off = False

    def start(self) -> None:
        """Check at intervals, in a thread of its own: the broker may need seconds to answer."""
        threading.Thread(target=self._run, name="stall watch", daemon=True).start()

    def _run(self) -> None:
        while not self.has_stalled:
            clock.sleep(_CUT_OFF_INTERVAL_S if self.is_cut_off else CHECK_INTERVAL_S)
            try:
                self.check()
            except Exception:  # such as heartbeats that cannot be read now; without this thread, a stall stays unseen
                LOGGER.warning("The task queues cannot be checked now.", exc_info=True)

    def check(self) -> None:
        """Check once."""
        received = self._count_received()
        if received != self._received:
            self._note_answer()
            self._received, self._waiting_since = received, None
        elif not self._can_receive() or not self._has_waiting():
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = clock.monotonic()
        elif clock.monotonic() - self._waiting_since >= STALL_LIMIT_S:
            self.has_stalled = True

    def _has_waiting(self) -> bool:
        asked_at = clock.monotonic()
        try:
            count = self._count_waiting()
        except Exception as cause:  # each transport has its own errors; without an answer, nothing is known
            self._note_silence(asked_at, cause)
            return False
        self._note_answer()
        return count > 0

    def _note_silence(self, asked_at: float, cause: Exception) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = asked_at
        if not self.is_cut_off and clock.monotonic() - self._unanswered_since >= CHECK_INTERVAL_S:
            self.is_cut_off = True
            LOGGER.warning("%s cannot reach the broker and takes no samples until it answers: %s", host_name(), cause)

    def _note_answer(self) -> None:
        if self.is_cut_off:
            LOGGER.warning("%s reaches the broker again.", host_name())
        self._unanswered_since, self.is_cut_off = None, False
