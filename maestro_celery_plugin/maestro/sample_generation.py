"""Sample generation: `maestro run` generates the sample file and checks the sample table."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maestro_celery_plugin.config.settings import SampleSettings
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.files import refresh_directory, tail
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples.own_table import own_table, plain_table
from maestro_celery_plugin.spec.sources import program_of
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["with_samples"]

LOGGER = logging.getLogger(__name__)

# The number of output lines of the sample generation in an error message.
OUTPUT_LINES = 10
# Shells that read the command of a user; Merlin always runs it with `/bin/sh`.
_SHELLS = ("sh", "bash", "dash", "ksh", "zsh")


def with_samples(plan: StudyPlan, samples: SampleSettings, values: dict[str, str]) -> StudyPlan:
    """Return the plan of a study with its sample table, which `merlin.samples.generate` generates first if it is set.

    The table is the study's own file, so that another launch, an edit or a deletion of the sample file harms nobody.

    Args:
        plan: The plan without a sample table.
        samples: The settings of the samples.
        values: The values of Maestro's variables.

    Raises:
        SampleError: the samples cannot be generated or read.
    """
    defined = {
        **values,
        "MERLIN_INFO": str(plan.info),
        "MERLIN_WORKSPACE": str(plan.root),
        "MERLIN_TIMESTAMP": plan.timestamp,
        "MERLIN_SAMPLE_NAMES": " ".join(samples.column_labels),
        **plan.specification_files,
    }
    path = Path(substitute(samples.file, defined)).expanduser().absolute()
    command = substitute(samples.generate.cmd, defined) if samples.generate else ""
    path, own = _own_table(plan, command, path)
    try:
        table = open_table(own, samples.column_labels, plan.info)
        first = table.row(0)
    except SampleError as cause:
        text = str(cause).replace(str(own), str(path))  # the user knows the sample file, not the copy
        raise SampleError(f"{text}{_output_of(plan) if command else ''}") from cause
    LOGGER.info("%d samples in '%s'.", len(table), path)
    if tuple(value.strip() for value in first) == samples.column_labels:
        LOGGER.warning("'%s': the first row contains the column labels, but counts as sample 0; remove it.", path)
    _check_limit(samples, len(table), path)
    return dataclasses.replace(plan, table=own, rows=len(table), planned=samples.max_samples or 0)


def _own_table(plan: StudyPlan, command: str, path: Path) -> tuple[Path, Path]:
    """Generate the sample file if there is a command for it; return its path, and the table of the study.

    Raises:
        SampleError: the samples cannot be generated or copied.
    """
    if not command:
        return path, own_table(path, plan.info)
    alone: contextlib.AbstractContextManager[Any]
    alone = contextlib.nullcontext() if path.is_relative_to(plan.root) else _alone(path)
    with alone:
        path, is_new = _generated(plan, command, path)
        try:
            return path, (plain_table(path, plan.info) if is_new else None) or own_table(path, plan.info)
        except SampleError as cause:
            raise SampleError(f"{cause}{_output_of(plan)}") from cause


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other launches from writing a sample file while this one generates and copies it.

    Studies that the samples of another study start at the same time have the same current directory, and so has the
    command of each: without a lock, a study could have the samples of another one.
    """
    directory = path.parent if path.parent.is_dir() else Path.cwd()
    lock = FileLock(directory / f".{path.name}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            LOGGER.info("Another launch generates '%s'; this one waits for it.", path)
            lock.acquire()
    except (OSError, NotImplementedError) as cause:  # filelock raises the second one where the file system has no locks
        LOGGER.warning(
            "'%s' cannot be locked (%s): no other launch may write it now. With '$(MERLIN_INFO)/%s', each study has a "
            "file of its own.",
            path, cause, path.name,
        )  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def _check_limit(samples: SampleSettings, rows: int, path: Path) -> None:
    """Check that a study does not begin with more samples than it may have.

    Raises:
        SampleError: it does.
    """
    if samples.max_samples is not None and rows > samples.max_samples:
        raise SampleError(
            f"merlin.samples.max_samples: found '{samples.max_samples}', but '{path}' has {rows} samples; give a "
            "larger number, or fewer samples."
        )


def _generated(plan: StudyPlan, command: str, path: Path) -> tuple[Path, bool]:
    """Generate the sample file; return its path, and whether it did not exist before.

    Raises:
        SampleError: the command fails, or does not write the file.
    """
    stray = _stray(plan, path)
    before, stray_before = _stamp(path), _stamp(stray)
    _run(plan, command)
    if not path.exists():  # this machine may not see yet what another one has written for the command
        with contextlib.suppress(OSError):
            refresh_directory(path.parent)
    after, stray_after = _stamp(path), _stamp(stray)
    if after is None and stray_after not in (None, stray_before):
        if plan.home is not None:
            raise SampleError(
                f"merlin.samples.generate.cmd: the command has written '{stray.name}' into '{Path.cwd()}', where other "
                f"studies of the session write it as well; let it write '{_in_info(plan, path)}'."
            )
        LOGGER.warning(
            "merlin.samples.generate.cmd: the command runs in '%s' and has written '%s' there; the samples are read "
            "from it. Let the command write '%s'.",
            Path.cwd(), stray.name, _in_info(plan, path),
        )  # fmt: skip
        return stray, stray_before is None
    if before is not None and after == before:
        raise SampleError(
            f"merlin.samples.file: '{path}' is older than this launch: generate.cmd, which runs in '{Path.cwd()}', has "
            f"not written it. Correct the command, or remove 'generate' to use the file as it is.{_output_of(plan)}"
        )
    return path, before is None


def _in_info(plan: StudyPlan, path: Path) -> str:
    return f"$(MERLIN_INFO)/{path.relative_to(plan.info)}"


def _stray(plan: StudyPlan, path: Path) -> Path:
    """Return the file of a command that writes to its directory what `merlin_info` of the study was to contain.

    Earlier releases ran the command in ``merlin_info``.
    """
    return Path.cwd() / (path.relative_to(plan.info) if path.is_relative_to(plan.info) else path)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever a file is written; None without the file. Clocks are not compared."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _run(plan: StudyPlan, command: str) -> None:
    """Run the sample generation in the current directory, as Merlin does; ``merlin_info`` has its script and output.

    Raises:
        SampleError: the command cannot start, or ends with a code other than 0.
    """
    shell = plan.settings.batch.shell
    shell = shell if program_of(shell) in _SHELLS else "/bin/bash"
    script = plan.info / "cmd.sh"
    script.write_text(f"#!{shell}\n\n{command}\n")
    script.chmod(0o755)
    with (plan.info / "cmd.out").open("wb") as out, (plan.info / "cmd.err").open("wb") as err:
        try:
            code = subprocess.run(
                [*shlex.split(shell), str(script)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
            ).returncode
        except OSError as cause:
            raise SampleError(f"merlin.samples.generate.cmd: '{shell}' cannot start: {cause}") from cause
    if code != 0:
        end = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise SampleError(f"merlin.samples.generate.cmd: the command ended with {end}.{_output_of(plan)}")


def _output_of(plan: StudyPlan) -> str:
    """Return the path of the script of the sample generation, and the last lines of its output."""
    text = f"\nThe script of generate.cmd is '{plan.info / 'cmd.sh'}'. The last lines of its output:"
    for name in ("cmd.err", "cmd.out"):
        lines = tail(plan.info / name, size=10_000).splitlines()
        if lines:
            return "\n".join((text, *(f"  {line}" for line in lines[-OUTPUT_LINES:])))
    return f"{text} (no output)"
