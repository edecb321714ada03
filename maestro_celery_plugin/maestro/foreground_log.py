"""The log lines of `maestro run -fg` in a terminal, which shows the display of `foreground.py` instead of them.

Warnings and errors stay on the terminal. All lines go to the file to which a conductor in the background would write
them. Whether the study has an ensemble is known when Maestro has read the specification; without one, the terminal
gets all lines, as without the plugin.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maestro_celery_plugin.maestro.launch_options import OPTIONS

__all__ = ["ForegroundLog", "is_no_level_test", "take_log"]

# The level of Maestro's option -d that brings the log lines back.
_DEBUG = 1
# Maestro tells with a line of each level that it logs this level (maestro.py:363-366).
_LEVEL_TEST = "Logging Level -- Enabled"


def take_log(arguments: argparse.Namespace) -> ForegroundLog | None:
    """Take the log lines off the terminal; return None if they stay: a pipe, a dry run, ``-d 1``, or no `-fg`."""
    if not arguments.fg or arguments.dry or arguments.quiet or arguments.debug_lvl == _DEBUG:
        return None
    # As `progress_display.is_live_terminal`, whose import a study without an ensemble does not need.
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return None
    return ForegroundLog()


def is_no_level_test(record: logging.LogRecord) -> bool:
    """Tell whether a line is another one than those with which Maestro tells its level."""
    return _LEVEL_TEST not in str(record.msg)


class ForegroundLog(logging.Handler):
    """Receives log lines in place of the handlers that write to the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._replaced = [(logger, handler) for logger in _loggers() for handler in _terminal_handlers(logger)]
        self._held: list[logging.LogRecord] = []
        self._file: logging.FileHandler | None = None
        self._show: Callable[[str], None] | None = None
        for logger, handler in self._replaced:
            logger.removeHandler(handler)
        if self._replaced:
            logging.root.addHandler(self)

    def give_back(self) -> None:
        """Let the terminal have all lines, also those of before."""
        logging.root.removeHandler(self)
        for logger, handler in self._replaced:
            logger.addHandler(handler)
        held, self._held = self._held, []
        for record in held:
            self._write(record)

    def keep_in(self, file: Path) -> None:
        """Write all lines to a file, also those of before."""
        if not self._replaced:
            return
        with contextlib.suppress(OSError):  # the study then says what is wrong with its directory
            self._file = logging.FileHandler(file)
            self._file.setFormatter(logging.Formatter("[%(asctime)s: %(levelname)s] %(message)s"))
            held, self._held = self._held, []
            for record in held:
                self._file.handle(record)

    def show_with(self, show: Callable[[str], None] | None) -> None:
        """Set the function that shows a line of the terminal while a display is there; None after its end."""
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Show a warning, and keep every line."""
        if self._file is not None:
            self._file.handle(record)
        else:
            self._held.append(record)
        if OPTIONS.is_ensemble and record.levelno >= logging.WARNING and is_no_level_test(record):
            self._write(record)

    def close(self) -> None:
        """Close the file; `logging` does this at the end of the process."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        for logger, handler in self._replaced:
            is_of_logger = logger is logging.root or f"{record.name}.".startswith(f"{logger.name}.")
            if record.levelno < handler.level or not is_of_logger:
                continue
            if self._show is None:
                handler.handle(record)
                continue
            try:
                self._show(handler.format(record))
            except Exception:  # as in each handler: the study must go on, for example when its terminal was closed
                self._show = None
                self.handleError(record)


def _loggers() -> list[logging.Logger]:
    """Return the root logger, and all loggers whose lines reach its handlers."""
    known: list[Any] = [logging.root, *logging.root.manager.loggerDict.values()]
    return [logger for logger in known if isinstance(logger, logging.Logger) and logger.propagate]


def _terminal_handlers(logger: logging.Logger) -> list[logging.StreamHandler[Any]]:
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "isatty", bool)()
    ]
