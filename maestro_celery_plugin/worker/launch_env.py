"""The environment of samples, and the signal that warns those that start parallel programs with `$(LAUNCHER)`."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Container, Mapping

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import LAUNCH_CORES, LAUNCH_NAME, LAUNCH_NODES, BatchSystem
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.worker.attempt import RunningAttempt

__all__ = ["LaunchEnvironment", "SampleEnvironment"]

LOGGER = logging.getLogger(__name__)

# The time over which the workers of an allocation spread their questions to the batch system, at the warning.
WARN_SPREAD_S = 2.0


class SampleEnvironment:
    """The environment of a worker before the start of Celery, which stores its own settings for logs in there.

    Celery reads its variables once more when it starts the processes of a pool. So the environment is restored after
    that, in the process that starts samples; they inherit it.

    Args:
        system: The batch system, which tells what the launch of the worker has set; None for a local worker.
    """

    def __init__(self, system: BatchSystem | None = None) -> None:
        self._variables = system.sample_environment(os.environ) if system else dict(os.environ)

    def restore(self) -> None:
        """Give this process the environment of before."""
        for name in os.environ.keys() - self._variables.keys():
            del os.environ[name]
        os.environ.update(self._variables)


class LaunchEnvironment:
    """The environment and the warning of samples that start parallel programs, in one worker process.

    Args:
        writer: Name of the process, unique in the session.
        system: The batch system; None for a local worker, which has no launcher.
        cores: Cores of a node.
    """

    def __init__(self, writer: str, system: BatchSystem | None = None, cores: int = 1) -> None:
        self._writer, self._system, self._cores = writer, system, cores

    def name(self, slot: int) -> str:
        """Return the name of the launches of the sample in a slot."""
        return f"{self._writer}.{slot}"

    def environment(self, slot: int, manifest: Manifest) -> dict[str, str] | None:
        """Return the environment of a sample; None for the environment of the worker."""
        if self._system is None or not manifest.launches:
            return None
        nodes = -(-manifest.needs.cores // max(1, self._cores))
        launch = {LAUNCH_NAME: self.name(slot), LAUNCH_NODES: str(nodes), LAUNCH_CORES: str(self._cores)}
        return {**os.environ, **launch}

    def warn(self, running: Mapping[int, RunningAttempt], launching: Container[int], number: signal.Signals) -> None:
        """Send the signal of its step to each sample that has not been warned yet.

        The launched programs of a sample receive the signal. Without launched programs, its process group receives it.

        Args:
            running: Attempts by slot.
            launching: The slots whose samples start parallel programs.
            number: The signal.
        """
        unwarned = {slot: attempt for slot, attempt in running.items() if not attempt.is_warned}
        launched = {}
        for slot, attempt in unwarned.items():
            if self._system is not None and slot in launching:
                launched[self.name(slot)] = attempt
                attempt.warn(None)
            else:
                attempt.warn(number)
        if launched:
            # A thread, because the caller also writes the heartbeat of the worker.
            threading.Thread(target=self._warn_launched, args=(launched, number), daemon=True).start()

    def _warn_launched(self, launched: Mapping[str, RunningAttempt], number: signal.Signals) -> None:
        """Let the batch system send the signal to launched programs; not all workers ask it at the same time."""
        clock.sleep(random.uniform(0.0, WARN_SPREAD_S))  # noqa: S311 (no secret)
        signalled: set[str] = set()
        if self._system is not None:
            try:
                signalled = self._system.signal_samples(launched, number)
            except AllocationError as error:
                LOGGER.warning("%s", error)
        for name, attempt in launched.items():
            if name not in signalled and not attempt.has_ended:
                attempt.warn(number)
