"""The conductor in the foreground of a terminal: a display of the progress in place of the log lines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.maestro.foreground_log import ForegroundLog
from maestro_celery_plugin.output import replace_unknown_characters
from maestro_celery_plugin.report.live.progress_display import ProgressDisplay
from maestro_celery_plugin.report.reader import StatusReader, study_name

__all__ = ["displayed"]

LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def displayed(study: Path, log: ForegroundLog) -> Iterator[None]:
    """Show the progress of a study whose conductor runs in this process, and log lines that matter above it."""
    replace_unknown_characters()
    console = Console(highlight=False)
    log.keep_in(study / f"{study_name(study)}.txt")
    try:
        reader = StatusReader(study)
    except EnsembleError as error:  # the study runs without a display
        LOGGER.warning("There is no display: %s", error)
        yield
        return
    with ProgressDisplay(reader, console, conducts=True):
        log.show_with(lambda line: console.print(Text.from_ansi(line)))
        try:
            yield
        finally:
            log.show_with(None)
