"""The keys that a user types, one by one."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Any

__all__ = ["Keyboard", "decoded"]

# The names of keys by what a terminal sends. An arrow has a form of its own in the application mode of a terminal.
_SEQUENCES = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[C": "right",
    "\x1bOC": "right",
    "\x1b[D": "left",
    "\x1bOD": "left",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[7~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    "\x1b[8~": "end",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x1b": "escape",
    " ": "space",
}
# The rest of a sequence follows its first character within this time, also over a slow connection.
_SEQUENCE_S = 0.1


class Keyboard:
    """Reads keys from the standard input while it is entered; lines and their echo are off then.

    Ctrl-C and Ctrl-Z keep their meaning.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._settings: list[Any] | None = None

    def __enter__(self) -> Keyboard:
        self._settings = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._settings is not None:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._settings)

    def read(self, timeout_s: float) -> list[str]:
        """Return the keys typed since the last call; wait for one for some seconds.

        Raises:
            EOFError: the terminal is closed.
        """
        text = self._available(timeout_s)
        while text.endswith(("\x1b", "\x1b[", "\x1bO")):
            more = self._available(_SEQUENCE_S)
            if not more:
                break
            text += more
        return decoded(text)

    def _available(self, timeout_s: float) -> str:
        if not select.select([self._input], [], [], max(0.0, timeout_s))[0]:
            return ""
        data = os.read(self._input, 1024)
        if not data:
            raise EOFError
        return data.decode(errors="ignore")


def decoded(text: str) -> list[str]:
    """Return the names of keys, or their characters; keys without a meaning are left out."""
    keys = []
    while text:
        sequence = next((one for one in _SEQUENCES if text.startswith(one) and one != "\x1b"), "")
        if not sequence and text.startswith(("\x1b[", "\x1bO")):  # another key, such as F5
            end = next((place for place, sign in enumerate(text[2:], 3) if "@" <= sign <= "~"), len(text))
            text = text[end:]
            continue
        sequence = sequence or text[0]
        key = _SEQUENCES.get(sequence, sequence)
        if len(key) > 1 or key.isprintable():
            keys.append(key)
        text = text[len(sequence) :]
    return keys
