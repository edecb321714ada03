"""`status --watch` in a terminal: it reads the status of a study again and again, and obeys keys meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from rich.console import Console, Group
from rich.control import Control
from rich.screen import Screen

from maestro_celery_plugin import clock
from maestro_celery_plugin.report.live.browser import Browser, pressed
from maestro_celery_plugin.report.live.browser_view import StudyScreen
from maestro_celery_plugin.report.live.keyboard import Keyboard
from maestro_celery_plugin.report.model import StudyStatus
from maestro_celery_plugin.report.reader import StatusReader

__all__ = ["watch_with_keys"]

INTERVAL_S = 1.0
# The watch reads, and shows what it has read, in at most a tenth of the time.
_PAUSES = 9
# Interval between two looks at the size of the terminal, which is drawn again after a change.
_SIZE_INTERVAL_S = 0.2
# The signals that end a process without its exit handlers.
_ENDS = (signal.SIGTERM, signal.SIGHUP)


def watch_with_keys(reader: StatusReader, console: Console, *, stays: bool) -> StudyStatus:
    """Show a study on the whole screen, until it has ended or the user leaves; return the last status.

    Args:
        reader: The reader of the study.
        console: The terminal.
        stays: Whether only the user ends the watch; a key has the same effect.

    Raises:
        StudyError: a file of the study cannot be read.
    """
    status = reader.read()
    if status.has_ended and not stays:
        return status
    screen = StudyScreen(reader, console)
    screen.update(status)
    with _whole_screen(console) as keyboard:
        return _Watch(reader, console, screen, keyboard, stays=stays).run()


class _Watch:
    def __init__(
        self, reader: StatusReader, console: Console, screen: StudyScreen, keyboard: Keyboard, *, stays: bool
    ) -> None:
        self._reader, self._console, self._screen, self._keyboard = reader, console, screen, keyboard
        self._stays, self._browser = stays, Browser()
        self._read_at = clock.monotonic() + INTERVAL_S
        self._drawn_size = console.size

    def run(self) -> StudyStatus:
        """Show the study until the end of the watch; return the last status."""
        self._draw()
        while not self._is_over:
            if clock.monotonic() >= self._read_at:
                self._read()
            elif self._console.size != self._drawn_size:
                self._draw()
            keys = self._keyboard.read(min(_SIZE_INTERVAL_S, self._read_at - clock.monotonic()))
            for key in keys:
                self._browser, self._stays = pressed(self._browser, key, self._screen), True
                if self._browser.has_quit:
                    break
            if keys:
                self._draw()
        return self._screen.status

    @property
    def _is_over(self) -> bool:
        return self._browser.has_quit or (self._screen.status.has_ended and not self._stays)

    def _read(self) -> None:
        begin = clock.monotonic()
        self._screen.update(self._reader.read())
        self._draw()
        now = clock.monotonic()
        self._read_at = now + max(INTERVAL_S, _PAUSES * (now - begin))

    def _draw(self) -> None:
        self._drawn_size = self._console.size
        with self._console:  # one write, so that nothing flickers
            self._console.control(Control.home())
            self._console.print(Screen(Group(*self._screen.lines(self._browser))), end="")


@contextlib.contextmanager
def _whole_screen(console: Console) -> Iterator[Keyboard]:
    """Take the whole screen and the keys; give them back at the end, at a signal, and while the process is stopped."""
    with contextlib.ExitStack() as stack:
        keyboard = Keyboard()

        def enter() -> None:
            stack.enter_context(keyboard)
            stack.enter_context(console.screen(hide_cursor=True))

        def stop(number: int, frame: FrameType | None) -> None:
            stack.close()
            os.kill(os.getpid(), signal.SIGSTOP)  # until the user continues it
            enter()

        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTSTP, stop), *((number, _end) for number in _ENDS)):
                signal.signal(number, handler)
        enter()
        yield keyboard


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
