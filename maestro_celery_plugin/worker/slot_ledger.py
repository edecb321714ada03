"""The ledger entries of one range task in one slot."""

from __future__ import annotations

import logging
import threading

from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter

__all__ = ["SlotLedger"]

LOGGER = logging.getLogger(__name__)

# Delay before an entry that cannot be written is tried again.
DELAY_S = 2.0


class SlotLedger:
    """Writes the entries of one range task in one slot.

    Args:
        writer: The ledger file of the worker process.
        task: The range task.
        slot: Number of the slot.
        stopping: Set when the worker stops.
    """

    def __init__(self, writer: LedgerWriter, task: RangeTask, slot: int, stopping: threading.Event) -> None:
        self._writer, self._task, self._slot, self._stopping = writer, task, slot, stopping

    def write(self, kind: Kind, start: int, stop: int = 0, *, code: int = 0) -> None:
        """Append an entry; while the disk is full, wait, because an outcome must not be lost.

        Raises:
            LedgerError: the entry cannot be written, and the worker stops.
        """
        task = self._task
        while True:
            try:
                self._writer.append(kind, task.record, task.epoch, start, stop, code=code, slot=self._slot)
                return
            except LedgerError as cause:
                LOGGER.error("%s The worker tries again; free disk space.", cause)
                if self._stopping.wait(DELAY_S):
                    raise

    def flush(self) -> None:
        """Make the entries visible to other nodes.

        Raises:
            LedgerError: the entries cannot be written now; they are written later.
        """
        self._writer.flush()
