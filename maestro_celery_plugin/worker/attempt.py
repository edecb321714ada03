"""An attempt: one execution of one sample, from its start to its exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from maestro_celery_plugin import clock
from maestro_celery_plugin.hookspecs import Attempt
from maestro_celery_plugin.states import ExitCode
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.worker.sample_directory import SampleDirectories

__all__ = ["KILL_AFTER_S", "Runner", "RunningAttempt"]

LOGGER = logging.getLogger(__name__)

# Seconds between SIGTERM and SIGKILL for an attempt that the worker ends.
KILL_AFTER_S = 5.0


class Runner:
    """Starts the samples of one step record; several threads may use it.

    Args:
        manifest: The step record.
        row: Returns the values of a sample.

    Attributes:
        directories: The directories and scripts of the samples.
    """

    def __init__(self, manifest: Manifest, row: Callable[[int], Sequence[str]]) -> None:
        self._manifest = manifest
        self._interpreter = shlex.split(manifest.shell)
        self.directories = SampleDirectories(manifest, row)

    def start(
        self,
        sample: int,
        *,
        first: bool,
        restart: bool = False,
        environment: Mapping[str, str] | None = None,
        is_cut_off: Callable[[], bool] = lambda: False,
    ) -> RunningAttempt:
        """Start an attempt in its own process group.

        Args:
            sample: Index of the sample; its directory exists.
            first: Whether `SampleDirectories.make` has created the script, so that the sample has no outputs yet.
            restart: Whether the attempt runs `restart` instead of `cmd`.
            environment: The environment; None for the environment of this process.
            is_cut_off: Tells whether another worker may run the sample, because this one was stopped for a while.

        Raises:
            OSError: the sample cannot start, or must not start any more.
        """
        outputs: list[_Output] = []
        stem = self.directories.stem(sample)
        try:
            script = f"{stem}.sh" if first else self.directories.write_script(sample, restart=restart)
            header = "" if first else self._header(restart=restart)
            for suffix in ("out", "err"):
                outputs.append(_Output(f"{stem}.{suffix}", header, keep_header=suffix == "err"))
            begin = clock.monotonic()
            # As late as possible: the operations on files above may have taken minutes.
            if is_cut_off():
                raise TimeoutError(errno.ETIMEDOUT, "The worker was stopped or cut off, and counts as dead")
            # The script is an argument of the interpreter: executing a file fails with ETXTBSY while the child of
            # another thread still has it open for writing.
            process = subprocess.Popen(
                [*self._interpreter, script],
                cwd=self.directories.path(sample),
                env=environment,
                stdin=_dev_null(),
                stdout=outputs[0].descriptor,
                stderr=outputs[1].descriptor,
                start_new_session=True,
            )
        except OSError:
            for output in outputs:
                output.close()
            raise
        return RunningAttempt(self._manifest.name, sample, process, outputs, begin)

    def _header(self, *, restart: bool) -> str:
        """Return the line that separates an attempt from the previous one; a step without `restart` runs `cmd`."""
        what = "restart" if restart and self._manifest.restart != self._manifest.cmd else "cmd"
        return f"=== run again with {what}, {clock.local_time('%Y-%m-%d %H:%M:%S')} ===\n"


@functools.lru_cache(maxsize=1)
def _dev_null() -> int:
    return os.open(os.devnull, os.O_RDONLY)


class _Output:
    """The file for stdout or stderr of a sample. Each attempt appends to it; an empty file is removed.

    Args:
        path: The file.
        header: Line that separates an attempt from the previous attempt; empty for the first attempt.
        keep_header: Whether the header stays if no output follows. It does in stderr: the errors above it are not those
            of the last attempt.
    """

    def __init__(self, path: str, header: str, *, keep_header: bool) -> None:
        self._path, self._keep_header = path, keep_header
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._old_size = self._output_start = os.fstat(self.descriptor).st_size if header else 0
        if self._old_size:
            try:
                self._output_start += os.write(self.descriptor, header.encode())
            except OSError:
                os.close(self.descriptor)
                raise

    def close(self) -> None:
        """Close the file; remove the file if it is empty, or the header if no output follows it."""
        try:
            status = os.fstat(self.descriptor)
            if status.st_size == self._output_start:
                if self._old_size and self._keep_header:
                    return
                if self._old_size:
                    os.ftruncate(self.descriptor, self._old_size)
                elif os.path.samestat(status, os.stat(self._path)):  # noqa: PTH116 (a Path costs time, for each sample)
                    os.unlink(self._path)  # noqa: PTH108
        except OSError:
            return  # the sample has removed the file
        finally:
            try:
                os.close(self.descriptor)
            except OSError as error:  # the result of the sample counts, even if its output could not be stored
                LOGGER.warning("The end of '%s' may be missing: %s", self._path, error)


class RunningAttempt:
    """An attempt that has started."""

    def __init__(
        self, record: str, sample: int, process: subprocess.Popen[bytes], outputs: list[_Output], begin: float
    ) -> None:
        self._record, self._sample, self._process = record, sample, process
        self._outputs, self._started_at = outputs, begin
        self._ended_at: float | None = None
        self._warned = False

    def wait(self) -> Attempt:
        """Wait for the end of the attempt."""
        code = self._process.wait()
        duration_s = clock.monotonic() - self._started_at
        # A warned sample may still report its own result. If it requests a restart, the end of the allocation is the
        # cause, and the attempt does not count against `max_retries`.
        is_result = code in ExitCode._value2member_map_ and code != ExitCode.RESTART
        was_ended = self._ended_at is not None or (self._warned and not is_result)
        if was_ended:
            self._signal(signal.SIGKILL)  # the rest of its process group
        for output in self._outputs:
            output.close()
        return Attempt(self._record, self._sample, code, duration_s, was_ended)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the attempt."""
        return clock.monotonic() - self._started_at

    @property
    def has_ended(self) -> bool:
        """Whether the process of the attempt has ended."""
        return self._process.returncode is not None

    @property
    def is_warned(self) -> bool:
        """Whether the sample was warned that its allocation ends soon."""
        return self._warned

    def warn(self, number: signal.Signals | None) -> None:
        """Warn the sample that its allocation ends soon.

        Args:
            number: The signal to send; None if the sample has already received it.
        """
        self._warned = True
        if number is not None:
            self._signal(number)

    def end(self, *, at_once: bool = False) -> None:
        """End the attempt: the first call sends SIGTERM, a call more than `KILL_AFTER_S` later sends SIGKILL.

        Args:
            at_once: Whether to send SIGKILL at once, because there is no time for SIGTERM.
        """
        if at_once:
            self._ended_at = self._ended_at or clock.monotonic()
            self._signal(signal.SIGKILL)
        elif self._ended_at is None:
            self._ended_at = clock.monotonic()
            self._signal(signal.SIGTERM)
        elif clock.monotonic() - self._ended_at > KILL_AFTER_S:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
