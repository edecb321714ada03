"""The display of `-fg`: it reads the files of the study as `status` does, and draws at most once in a second.

A thread draws, because Maestro's conductor runs in the main thread, or waits there. The display keeps to the lines that
it has drawn, so that what is above them stays: it uses neither the whole screen nor a hidden cursor, and whatever ends
the process leaves the terminal as it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from types import TracebackType

from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.report.live.progress_view import end_view, progress_view
from maestro_celery_plugin.report.live.warning_lines import WarningLines
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import plain

__all__ = ["ProgressDisplay", "is_live_terminal"]

LOGGER = logging.getLogger(__name__)

INTERVAL_S = 1.0
# The display reads and draws in at most a tenth of the time.
_PAUSES = 9


def is_live_terminal() -> bool:
    """Tell whether the standard output is a terminal on which lines can be drawn again."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class ProgressDisplay:
    """Shows the progress of a study from `__enter__` to `__exit__`, and its last state after that.

    Args:
        reader: The reader of the study.
        console: The terminal.
        conducts: Whether the conductor of the study runs in this process, and ends with the display.
        log: The warnings of a conductor in another process, which are shown above the display.
    """

    def __init__(
        self, reader: StatusReader, console: Console, *, conducts: bool = False, log: WarningLines | None = None
    ) -> None:
        self._reader, self._console, self._conducts, self._log = reader, console, conducts, log
        self._begin = clock.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress display", daemon=True)
        self._live = self._new_live()
        self._drawn_width, self._size = 0, console.size

    def _new_live(self) -> Live:
        return Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> ProgressDisplay:
        self._start()
        self._thread.start()
        return self

    def _start(self) -> None:
        self._live.start()
        self._console.show_cursor(True)  # so that no signal can leave it hidden

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Replace the display by the last state of the study."""
        self._ended.set()
        self._thread.join()
        try:
            self._end(advises=exc is None)
        except OSError:
            self._leave_terminal()

    def _leave_terminal(self) -> None:
        """Write nowhere any more: the terminal was closed, which must not change how the study ends."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._console.file.fileno())
            os.close(nowhere)

    def _end(self, *, advises: bool) -> None:
        view: RenderableType | None = None
        try:
            with contextlib.suppress(EnsembleError):
                status = self._reader.read(is_over=self._conducts)
                view = end_view(status, self._reader, self._console, self._elapsed_s, advises=advises)
            self._follow_size()
            self._show_warnings()
        finally:
            self._live.stop()
        if view is not None:
            self._console.print(view, crop=False)

    @property
    def _elapsed_s(self) -> float:
        return clock.monotonic() - self._begin

    def _run(self) -> None:
        while not self._ended.is_set():
            begin = clock.monotonic()
            try:
                self._draw()
            except EnsembleError as error:  # a file that cannot be read now; the study goes on
                LOGGER.debug("The display is not up to date: %s", error)
            except OSError:
                self._leave_terminal()
                return
            self._ended.wait(max(INTERVAL_S, _PAUSES * (clock.monotonic() - begin)))

    def _draw(self) -> None:
        status = self._reader.read()
        self._follow_size()
        self._show_warnings()
        view = progress_view(status, self._reader, self._console, self._elapsed_s)
        lines = self._console.render_lines(view, pad=False)
        self._drawn_width = max(sum(segment.cell_length for segment in line) for line in lines)
        self._live.update(view, refresh=True)

    def _show_warnings(self) -> None:
        for line in self._log.read() if self._log is not None else ():
            self._console.print(plain(line, "yellow"))

    def _follow_size(self) -> None:
        """Begin anew below what is there, if the terminal has become too narrow for the lines that are drawn.

        Terminals wrap such lines, or cut them off; nobody can tell how many lines they take now.
        """
        size, before = self._console.size, self._size
        self._size = size
        if size == before or size.width >= self._drawn_width:
            return
        self._live.stop()
        self._console.print("\n" * size.height, end="")  # moves all that is there out of sight, but loses nothing
        self._console.control(Control(ControlType.HOME, (ControlType.ERASE_IN_LINE, 2)))
        self._live = self._new_live()
        self._start()
