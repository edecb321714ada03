"""A terminal for tests: a command runs in a pseudo-terminal, and an emulator shows what a user would see."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pyte
import pytest
from support import PATIENCE_S

# The private mode of the alternate screen, as pyte numbers it.
_ALTERNATE = 1049 << 5


class _Screen(pyte.Screen):
    """A screen with the alternate screen of xterm, which pyte does not have."""

    kept: Any = None

    def set_mode(self, *modes: int, **kwargs: Any) -> None:
        if kwargs.get("private") and 1049 in modes and self.kept is None:
            self.kept = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **kwargs)

    def reset_mode(self, *modes: int, **kwargs: Any) -> None:
        if kwargs.get("private") and 1049 in modes and self.kept is not None:
            self.buffer, self.cursor = self.kept
            self.kept = None
        super().reset_mode(*modes, **kwargs)

    def select_graphic_rendition(self, *attributes: int, **kwargs: Any) -> None:
        super().select_graphic_rendition(*attributes)


class Terminal:
    """A command in a terminal of a size.

    Args:
        command: The command.
        environment: Its environment.
        columns: The width.
        lines: The height.
        directory: Its working directory.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        columns: int = 80,
        lines: int = 24,
        directory: Path | None = None,
    ) -> None:
        self.screen = _Screen(columns, lines)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        self._set_size(columns, lines)
        self.settings = termios.tcgetattr(slave)
        environment = {
            name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            command,
            env={"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"} | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._slave = slave

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> None:
        """Apply what the command has written."""
        while select.select([self._master], [], [], 0.02)[0]:
            data = os.read(self._master, 65536)
            self.raw += data
            self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen without the spaces at their ends."""
        self.read()
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The screen, without empty lines at the end."""
        return "\n".join(self.lines).rstrip()

    def type(self, keys: str) -> None:
        """Type keys."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size; the kernel sends SIGWINCH."""
        self.read()
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal to the command, as Ctrl-C does."""
        os.killpg(self.process.pid, number)

    def await_text(self, text: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait until the screen has a text; return the screen."""
        return self.await_screen(lambda screen: text in screen, repr(text), timeout_s)

    def await_screen(self, condition: Any, what: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait until the screen fulfils a condition; return the screen."""
        deadline = time.monotonic() + timeout_s
        while not condition(screen := self.text):
            if time.monotonic() > deadline:
                pytest.fail(f"timed out: {what}; the screen:\n{screen}")
        return screen

    def await_end(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end of the command; return its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self.read()
            if time.monotonic() > deadline:
                pytest.fail(f"timed out: the end of the command; the screen:\n{self.text}")
        self.read()
        return self.process.returncode

    @property
    def is_whole(self) -> bool:
        """Whether the terminal is as before: settings, cursor, screen."""
        self.read()
        modes = self.raw.rfind(b"\x1b[?25l") <= self.raw.rfind(b"\x1b[?25h")
        return termios.tcgetattr(self._slave) == self.settings and modes and self.screen.kept is None

    def hang_up(self) -> None:
        """Close the terminal, as a user does who closes the window."""
        self.read()
        for descriptor in (self._slave, self._master):
            os.close(descriptor)
        self._master = -1

    def close(self) -> None:
        """End the command, and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._master >= 0:
            self.hang_up()
