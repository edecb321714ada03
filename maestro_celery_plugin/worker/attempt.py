"""The runner: one attempt of one sample, from its directory to its exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from maestro_celery_plugin.config.tokens import Template, sample_values
from maestro_celery_plugin.states import ExitCode
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["KILL_AFTER_S", "Attempt", "CannotRunError", "Runner"]

# Time between SIGTERM and SIGKILL for a sample that is ended.
KILL_AFTER_S = 5.0


class CannotRunError(Exception):
    """A sample could not be started at all: no space, no such interpreter, no memory."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.errno = cause.errno or 0


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One execution of one sample, after its end.

    Attributes:
        record: Name of the step record.
        sample: Index of the sample.
        code: Exit code; negative for a signal, as in `subprocess`.
        duration_s: Wall time.
        was_ended: Whether we ended it, so that its code says nothing of the sample.
    """

    record: str
    sample: int
    code: int
    duration_s: float
    was_ended: bool


class Runner:
    """Runs the samples of one step record; safe to use from several threads.

    Args:
        manifest: The step record.
        row: Returns the values of a sample.
    """

    def __init__(self, manifest: Manifest, row: Callable[[int], Sequence[str]]) -> None:
        self._manifest, self._row = manifest, row
        # Asked for several times for each sample that runs, and not again after its end.
        self._path_of = functools.lru_cache(maxsize=256)(manifest.paths.of)
        names = (*manifest.labels, "MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", "MERLIN_SAMPLE_VECTOR")
        names = (*names, "MERLIN_SAMPLE_NAMES") if manifest.sampled else ()
        self._templates = {
            again: Template(f"#!{manifest.shell}\n\n{text}\n", names)
            for again, text in ((False, manifest.cmd), (True, manifest.restart))
        }
        self._interpreter = shlex.split(manifest.shell)

    def directory(self, sample: int) -> str:
        """Return the directory in which a sample runs."""
        path = self._path_of(sample) if self._manifest.sampled else "."
        return self._manifest.workspace if path == "." else f"{self._manifest.workspace}/{path}"

    def claim(self, sample: int) -> bool:
        """Write a sample's script unless it is there; return whether this call has.

        The script of a sample is written when the sample is started, by whoever creates the file: of two
        workers that have the same message, one does. A record that is not sampled, or has one sample,
        has its script from the start and is never claimed here.

        Raises:
            CannotRunError: there is no space, or no permission, for it.
        """
        directory = self.directory(sample)
        if directory == self._manifest.workspace:
            return False
        try:
            _make_directory(directory)
            self._write(sample, directory, ".sh", again=False, flags=os.O_EXCL)
        except FileExistsError:
            return False
        except OSError as cause:
            raise CannotRunError(cause) from cause
        return True

    def write_script(self, sample: int, *, again: bool) -> str:
        """Write the sample's script, `cmd` or `restart`, and return its path."""
        suffix = ".restart.sh" if again else ".sh"
        return self._write(sample, self.directory(sample), suffix, again=again, flags=os.O_TRUNC)

    def _write(self, sample: int, directory: str, suffix: str, *, again: bool, flags: int) -> str:
        values = {}
        if self._manifest.sampled:
            values = sample_values(self._manifest.labels, self._row(sample), sample, self._path_of(sample))
        script = f"{directory}/{self._manifest.script}{suffix}"
        text = self._templates[again].fill(values).encode()
        descriptor = os.open(script, os.O_WRONLY | os.O_CREAT | flags, 0o755)
        try:
            while text:
                text = text[os.write(descriptor, text) :]
        except OSError:
            if flags & os.O_EXCL:  # not one of an earlier attempt: that says that the sample was started
                Path(script).unlink()
            raise
        finally:
            os.close(descriptor)
        return script

    def start(
        self, sample: int, *, first: bool, again: bool = False, environment: Mapping[str, str] | None = None
    ) -> RunningAttempt:
        """Start an attempt in a process group of its own.

        Args:
            sample: Index of the sample, whose directory exists.
            first: Whether the sample was claimed, so that its script is there and its outputs are not.
            again: Whether it runs `restart` instead of `cmd`.
            environment: Its environment; None for that of this process.

        Raises:
            CannotRunError: it could not be started.
        """
        outputs: list[_Output] = []
        directory = self.directory(sample)
        try:
            script = f"{directory}/{self._manifest.script}.sh" if first else self.write_script(sample, again=again)
            header = "" if first else _header(again=again)
            for suffix in ("out", "err"):
                outputs.append(_Output(f"{directory}/{self._manifest.script}.{suffix}", header))
            begin = time.perf_counter()
            # The interpreter is given the script as an argument: executing a file that another
            # thread's child may still hold open for writing would fail with ETXTBSY.
            process = subprocess.Popen(
                [*self._interpreter, script],
                cwd=directory,
                env=environment,
                stdin=_dev_null(),
                stdout=outputs[0].descriptor,
                stderr=outputs[1].descriptor,
                start_new_session=True,
            )
        except OSError as cause:
            for output in outputs:
                output.close()
            raise CannotRunError(cause) from cause
        return RunningAttempt(self._manifest.name, sample, process, outputs, begin)


@functools.lru_cache(maxsize=1)
def _dev_null() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def _make_directory(directory: str) -> None:
    try:
        os.mkdir(directory)  # noqa: PTH102 (a Path costs time, for each sample)
    except FileExistsError:
        return
    except FileNotFoundError:
        Path(directory).mkdir(parents=True, exist_ok=True)


def _header(*, again: bool) -> str:
    what = "restart" if again else "cmd"
    return f"=== run again with {what}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===\n"


class _Output:
    """A sample's stdout or stderr file, appended to by each attempt and not kept when empty.

    Args:
        path: The file.
        header: Line that separates an attempt from the one before; empty for the first attempt.
    """

    def __init__(self, path: str, header: str) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._before = self._begin = os.fstat(self.descriptor).st_size if header else 0
        if self._before:
            try:
                self._begin += os.write(self.descriptor, header.encode())
            except OSError:
                os.close(self.descriptor)
                raise

    def close(self) -> None:
        """Close the file; take the header back when nothing follows it."""
        try:
            ours = os.fstat(self.descriptor)
            if ours.st_size == self._begin:
                if self._before:
                    os.ftruncate(self.descriptor, self._before)
                elif os.path.samestat(ours, os.stat(self._path)):  # noqa: PTH116 (a Path costs time, for each sample)
                    os.unlink(self._path)  # noqa: PTH108
        except OSError:
            return  # the sample has removed the file
        finally:
            os.close(self.descriptor)


class RunningAttempt:
    """An attempt that has begun."""

    def __init__(
        self, record: str, sample: int, process: subprocess.Popen[bytes], outputs: list[_Output], begin: float
    ) -> None:
        self._record, self._sample, self._process = record, sample, process
        self._outputs, self._begin = outputs, begin
        self._ended_at: float | None = None
        self._warned = False

    def wait(self) -> Attempt:
        """Wait for its end."""
        code = self._process.wait()
        duration_s = time.perf_counter() - self._begin
        # A sample that was warned may still say of itself that it is done. That it wants a restart is the
        # allocation's doing, and does not count against `max_retries`.
        is_own = code in ExitCode._value2member_map_ and code != ExitCode.RESTART
        was_ended = self._ended_at is not None or (self._warned and not is_own)
        if was_ended:
            self._signal(signal.SIGKILL)  # what it has left in its process group
        for output in self._outputs:
            output.close()
        return Attempt(self._record, self._sample, code, duration_s, was_ended)

    @property
    def elapsed_s(self) -> float:
        """Seconds since its begin."""
        return time.perf_counter() - self._begin

    @property
    def is_warned(self) -> bool:
        """Whether it knows that its allocation ends soon."""
        return self._warned

    def warn(self, number: signal.Signals | None) -> None:
        """Note that it is told that its allocation ends soon.

        Args:
            number: The signal that tells it; None when it has been sent already.
        """
        self._warned = True
        if number is not None:
            self._signal(number)

    def end(self, *, at_once: bool = False) -> None:
        """Ask it to end, or make it: the first call sends SIGTERM, calls after `KILL_AFTER_S` SIGKILL.

        Args:
            at_once: Whether there is no time for SIGTERM.
        """
        if at_once:
            self._ended_at = self._ended_at or time.monotonic()
            self._signal(signal.SIGKILL)
        elif self._ended_at is None:
            self._ended_at = time.monotonic()
            self._signal(signal.SIGTERM)
        elif time.monotonic() - self._ended_at > KILL_AFTER_S:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


