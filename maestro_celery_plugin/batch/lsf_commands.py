"""The commands of LSF that Maestro's adapter runs: their error messages are kept, and they do not wait for ever.

Maestro's adapter discards the stderr of `bsub` and `bkill` (lsfscriptadapter.py:278, 404). While LSF is away, these
commands repeat their request without end, which would block the conductor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
from typing import Any

__all__ = ["NOTICE", "keep_errors"]

_ADAPTER = "maestrowf.interfaces.script.lsfscriptadapter"
LOGGER = logging.getLogger(_ADAPTER)

# Lines on stderr with which a command of LSF says that it repeats its request; the answer follows them.
NOTICE = re.compile(r".*(?:Please wait|still trying|retrying in \d+ second).*")
# Seconds after which a command of LSF is ended. A job that it has submitted nevertheless is found by its directory.
COMMAND_LIMIT_S = 60.0


def keep_errors() -> None:
    """Let Maestro's adapter for LSF run its commands as `Command`."""
    from maestrowf.interfaces.script import lsfscriptadapter  # not in workers, which need no Maestro

    lsfscriptadapter.Popen = Command


class Command(subprocess.Popen[bytes]):
    """A command of LSF that logs why it has failed, in the log of Maestro's adapter."""

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(command, **options, start_new_session=True)

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Wait for the end of the command; end it if it takes too long."""
        try:
            output, errors = super().communicate(input, COMMAND_LIMIT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            output, errors = super().communicate()
            LOGGER.warning("LSF does not answer for %.0f s.", COMMAND_LIMIT_S)
        if self.returncode and not str(self.args).startswith("bjobs"):  # `bjobs` also fails when there is no job
            lines = errors.decode(errors="replace").splitlines()
            LOGGER.warning("%s", "\n".join([line for line in lines if not NOTICE.fullmatch(line)] or lines))
        return output, errors
