"""The signals that end the conductor through its exit handlers."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

__all__ = ["end_on_signals"]


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the conductor through its exit handlers, so that no process remains."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
