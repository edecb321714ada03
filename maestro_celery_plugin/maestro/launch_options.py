"""The options of `maestro run` for ensembles."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import is_locked

__all__ = ["OPTIONS", "LaunchOptions", "check_output"]


@dataclasses.dataclass
class LaunchOptions:
    """The options of `maestro run` for ensembles; the argument parser sets them (`touchpoints.py`).

    Attributes:
        launching: Whether the command is `maestro run`.
        broker: URL of the broker; None for another choice.
        broker_host: Address of this machine at which compute nodes reach the private broker; None for the default.
        dry_run: Whether it is a dry run.
        foreground: Whether the conductor runs in this process.
        parameter_generator: Whether Python code generates the parameters.
        hashes_names: Whether Maestro numbers the directories of step records instead of naming them.
        study: The directory of the ensemble study that was launched; None before.
    """

    launching: bool = False
    broker: str | None = None
    broker_host: str | None = None
    dry_run: bool = False
    foreground: bool = False
    parameter_generator: bool = False
    hashes_names: bool = False
    study: Path | None = None


OPTIONS = LaunchOptions()


def check_output(directory: str | None) -> None:
    """Check that `maestro run --out` does not overwrite a study that is running.

    Raises:
        StudyError: the study in this directory is running, or it is unknown whether it is.
    """
    if not directory:
        return
    try:
        is_running = is_locked(Path(directory, "merlin_info", "conductor.lock"))
    except NotADirectoryError:
        return  # a file, about which Maestro asks the user
    except OSError as cause:
        raise StudyError(
            f"--out: it is unknown whether a study is running in '{directory}' ({cause.strerror or cause}); correct "
            "this, or use another directory."
        ) from cause
    if is_running:
        raise StudyError(
            f"--out: a study is running in '{directory}'; cancel it with `maestro cancel {directory}`, or use another "
            "directory."
        )
