"""The notification: the command of the user's configuration that runs in the conductor when a study ends."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import subprocess
from pathlib import Path

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["notify_at_end"]

LOGGER = logging.getLogger(__name__)

# The end of the conductor waits this long for the command.
LIMIT_S = 60.0


@functools.cache
def notify_at_end(root: Path) -> None:
    """Run the study's command at the end of this process; call this function before the coordinator starts.

    Exit handlers run in the reverse order, so the command runs when the coordinator has closed, and the state is final.

    Args:
        root: The study's workspace.
    """
    atexit.register(_notify, root)


def _notify(root: Path) -> None:
    """Run the command, if there is one; log its failure, which does not change the study."""
    try:
        plan = StudyPlan.read(root)
        command = Session(plan.session).read_notify()
        if command and not has_conductor(plan):  # otherwise this process was a second conductor, which has given up
            _run(command, plan)
    except (EnsembleError, OSError) as error:
        LOGGER.warning("The notify command has not run: %s", error)


def _run(command: str, plan: StudyPlan) -> None:
    status = StatusReader(plan.root).read()
    variables = {
        "MAESTRO_CELERY_STUDY": str(plan.root),
        "MAESTRO_CELERY_NAME": status.study,
        "MAESTRO_CELERY_STATE": status.state.name,
        "MAESTRO_CELERY_FAILED_SAMPLES": str(status.failed_samples),
    }
    with (plan.info / "notify.log").open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env={**os.environ, **variables},
            cwd=plan.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        LOGGER.warning("The notify command took longer than %.0f s and was killed.", LIMIT_S)
        return
    if code:
        LOGGER.warning("The notify command has failed with exit code %d; its output is in '%s'.", code, output.name)
