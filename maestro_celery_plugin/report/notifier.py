"""The process that runs the command of a notification, so that neither can delay or end the conductor.

The conductor starts it for one event, in a process session of its own, and does not wait for it. It reads the status of
the study, starts the command in a process group of its own, and kills the group after `LIMIT_S`.

merlin_info/notify.log    what the commands have printed, and how they have ended
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.report.notification import Notification, notification_of
from maestro_celery_plugin.spec.notify_command import words_of
from maestro_celery_plugin.study.notifications import Occurrence

__all__ = ["LIMIT_S", "main"]

# Seconds that a command may take.
LIMIT_S = 60.0
# Bytes of its output that are kept.
OUTPUT_LIMIT = 1 << 16
# Seconds between SIGTERM and SIGKILL.
_GRACE_S = 2.0


def main() -> None:
    """Run the command for the event on the standard input; the argument is the directory of the study."""
    root, occurrence = Path(sys.argv[1]), Occurrence.from_json(sys.stdin.read())
    before = occurrence.after
    if before is not None:
        clock.wait_until(lambda: not before.is_alive, LIMIT_S + 10 * _GRACE_S, interval_s=0.05)
    try:
        notification = notification_of(root, occurrence)
    except (EnsembleError, OSError) as error:
        _say(f"{occurrence.event.value}: the command has not run: {error}")
        return
    _say(f"{notification.event}: {notification.message}")
    try:
        end = _run(occurrence.command, notification)
    except OSError as error:
        end = f"it could not start: {error}"
    if end:
        _say(f"{notification.event}: the command has failed: {end}.")


def _run(command: str, notification: Notification) -> str:
    """Run a command; return how it has failed, or an empty text.

    Raises:
        OSError: it cannot be started.
    """
    with _input_of(notification) as data:
        process = subprocess.Popen(
            words_of(command),
            env={**os.environ, **notification.environment()},
            cwd=notification.path,
            stdin=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    reader = threading.Thread(target=_copy, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        reader.join(_GRACE_S)
        return f"it took longer than {LIMIT_S:g} s and was killed"
    reader.join(_GRACE_S)  # a process that it has left in the background may keep the pipe open
    return f"exit code {code}" if code else ""


def _input_of(notification: Notification) -> IO[bytes]:
    """Return an open file with the JSON object, which a command that does not read it cannot block."""
    read, write = os.pipe()
    with os.fdopen(write, "wb") as stream:  # less than the 64 KiB of a pipe
        stream.write(json.dumps(notification.to_json()).encode() + b"\n")
    return os.fdopen(read, "rb")


def _copy(output: IO[bytes]) -> None:
    """Copy the output of a command to the log, up to a limit; read on, so that the command does not block."""
    left = OUTPUT_LIMIT
    while chunk := output.read1(1 << 14):  # type: ignore[attr-defined]
        if left > 0:
            with contextlib.suppress(OSError):  # a full disk
                sys.stdout.buffer.write(chunk[:left])
                sys.stdout.buffer.flush()
        left -= len(chunk)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{clock.local_time('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
