"""Maestro's adapters for batch systems: how the plugin creates and uses them, and how it reads their errors.

The adapters return a code instead of an error, and log the message of the batch system, in different modules.
Some connect to the batch system when they are created.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from maestrowf.interfaces import ScriptAdapterFactory

from maestro_celery_plugin.batch.base import BatchSystem, import_problem
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError

__all__ = ["OpenAdapter", "failure", "open_adapter"]

# The parent of the loggers of all adapters and of the interfaces to Flux.
_LOGGER = logging.getLogger("maestrowf")
# What the adapters themselves log at a refusal; the message of the batch system precedes or follows it.
_OWN_WORDS = re.compile(
    r"Submission returned an error(?: \(see next line\))?\.|Error code '[^']*' seen\. Unexpected behavior encountered\."
)


class OpenAdapter:
    """One of Maestro's adapters, and the messages that it logs.

    Args:
        adapter: The adapter.
        messages: Keeps the messages; None to keep none.

    Attributes:
        adapter: The adapter.
    """

    def __init__(self, adapter: Any, messages: _Messages | None = None) -> None:
        self.adapter, self._messages = adapter, messages

    @property
    def words(self) -> str:
        """The message of the batch system after a failure; empty if the adapter has logged none."""
        return self._messages.text if self._messages else ""


@contextlib.contextmanager
def open_adapter(system: BatchSystem, keywords: Mapping[str, Any]) -> Iterator[OpenAdapter]:
    """Yield Maestro's adapter for a batch system.

    Args:
        system: The batch system.
        keywords: Keyword arguments of the adapter.

    Raises:
        BatchSystemUnavailableError: the adapter cannot connect to the batch system now.
        AllocationError: the adapter cannot be created.
    """
    with system.adapter_context(), _kept_messages() as messages:
        try:
            adapter = ScriptAdapterFactory.get_adapter(system.adapter)(**keywords)
        except Exception as cause:  # Maestro's adapters do not document their errors
            problem = import_problem(system)
            if problem is not None:
                raise AllocationError(f"{problem[0].upper()}{problem[1:]}.") from cause
            if isinstance(cause, OSError):  # at the creation of an adapter, only a connection can fail
                raise BatchSystemUnavailableError(
                    f"The batch system '{system.type}' does not answer now: {cause}"
                ) from cause
            raise failure(system, f"Maestro's adapter for '{system.type}' cannot be used", str(cause)) from cause
        yield OpenAdapter(adapter, messages)


def failure(system: BatchSystem, what: str, reason: str) -> AllocationError:
    """Return the error for a message of a batch system, which refuses something or does not answer now."""
    if system.unavailable.search(reason):
        return BatchSystemUnavailableError(f"The batch system '{system.type}' does not answer now: {reason}")
    return AllocationError(f"{what}: {reason}")


@contextlib.contextmanager
def _kept_messages() -> Iterator[_Messages]:
    """Yield the messages that Maestro's adapters log in this thread, even if the user has turned off the log."""
    messages = _Messages()
    before = _LOGGER.level
    if _LOGGER.getEffectiveLevel() > logging.WARNING:
        _LOGGER.setLevel(logging.WARNING)
    _LOGGER.addHandler(messages)
    try:
        yield messages
    finally:
        _LOGGER.removeHandler(messages)
        _LOGGER.setLevel(before)


class _Messages(logging.Handler):
    """Keeps the warnings and errors that one thread logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self._lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message; of a logged exception, its own text."""
        if record.thread == self._thread:
            cause = str(record.exc_info[1]) if record.exc_info else ""
            line = _OWN_WORDS.sub("", cause or record.getMessage()).strip()
            self._lines += [(record.levelno, line)] if line else []

    @property
    def text(self) -> str:
        """The errors; without one, the warnings."""
        errors = [line for level, line in self._lines if level >= logging.ERROR]
        return " ".join(" ".join(errors or [line for _, line in self._lines]).split())
