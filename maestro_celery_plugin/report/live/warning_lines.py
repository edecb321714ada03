"""The warnings and errors that a conductor in another process has written to its log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LEVEL_TEST", "WarningLines"]

# Maestro tells with a line of each level that it logs this level (maestro.py:363-366, conductor.py:93-96).
LEVEL_TEST = "Logging Level -- Enabled"
_LINE = re.compile(r"\[[-0-9 :,.]+: (?P<level>[A-Z]+)\]")
_LEVELS = ("WARNING", "ERROR", "CRITICAL")
# The bytes that are read at once; of more lines, the last ones are shown.
_LIMIT_BYTES = 64 * 1024


class WarningLines:
    """Follows a log from its end at the time of the construction.

    Args:
        log: The file, which may not exist yet.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._place = log.stat().st_size if log.exists() else 0
        self._is_shown = False

    def read(self) -> Iterator[str]:
        """Yield the new lines of warnings and errors, with their tracebacks; nothing of a log that cannot be read."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._place, self._log.stat().st_size - _LIMIT_BYTES))
                data = file.read(_LIMIT_BYTES)
                end = data.rfind(b"\n") + 1
                self._place = file.tell() - len(data) + end
        except OSError:
            return
        for line in data[:end].decode(errors="replace").splitlines():
            match = _LINE.match(line)
            if match:
                self._is_shown = match["level"] in _LEVELS and LEVEL_TEST not in line
            if self._is_shown:
                yield line
