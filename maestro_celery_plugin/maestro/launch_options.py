"""The options of `maestro run` for ensembles."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import is_locked
from maestro_celery_plugin.spec.overrides import Overrides

if TYPE_CHECKING:  # a study without an ensemble does not wait for this import
    from maestro_celery_plugin.maestro.foreground_log import ForegroundLog
    from maestro_celery_plugin.study.members import Member
    from maestro_celery_plugin.study.session import BrokerLocation

__all__ = ["LAUNCH_LOCK", "OPTIONS", "LaunchOptions", "check_output"]

# The lock of a launch in `merlin_info`, until its process ends.
LAUNCH_LOCK = "launch.lock"


@dataclasses.dataclass
class LaunchOptions:
    """The options of `maestro run` for ensembles; the argument parser sets them (`touchpoints.py`).

    Attributes:
        launching: Whether the command is `maestro run`.
        broker: URL of the broker; None for another choice.
        location: The broker that the launch has chosen; None before, and for a private broker.
        batch_defaults: Keys of `batch` from the launch of the study; None for those of the user's configuration.
        broker_host: Address of this machine at which compute nodes reach the private broker; None for the default.
        dry_run: Whether it is a dry run.
        notify: The command of `--notify`; None without it.
        foreground: Whether the conductor runs in this process.
        parameter_generator: Whether Python code generates the parameters.
        hashes_names: Whether Maestro numbers the directories of step records instead of naming them.
        overrides: What the command line sets in place of the specification.
        arguments: The command line; None for another command.
        version: The version of an earlier study's specification that is launched (`study/provenance.py`); None for a
            user's file.
        is_ensemble: Whether the specification has an ensemble.
        directory: The directory that the launch uses; None before it is known.
        study: The directory of the ensemble study whose session exists; None before.
        is_conducted: Whether the conductor was started as a process.
        parent: The study whose sample or step has started this launch; None for a launch by a user.
        member: The study of this launch in the session of its parent; None before it has joined.
        renamed: New names of its worker groups that differ from those of other studies of the session.
        waits: Whether the sample waits for the end of the study (`-fg`).
        log: The log lines of `-fg` in a terminal, which shows a display instead of them; None to leave them there.
    """

    launching: bool = False
    broker: str | None = None
    location: BrokerLocation | None = None
    batch_defaults: dict[str, Any] | None = None
    broker_host: str | None = None
    dry_run: bool = False
    notify: str | None = None
    foreground: bool = False
    parameter_generator: bool = False
    hashes_names: bool = False
    overrides: Overrides = dataclasses.field(default_factory=Overrides)
    arguments: argparse.Namespace | None = None
    version: Path | None = None
    is_ensemble: bool = False
    directory: Path | None = None
    study: Path | None = None
    is_conducted: bool = False
    parent: Member | None = None
    member: Member | None = None
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    waits: bool = False
    log: ForegroundLog | None = None

    def give_log_back(self) -> None:
        """Let the terminal have its log lines, as for a study without an ensemble."""
        if self.log is not None:
            self.log.give_back()
            self.log = None


OPTIONS = LaunchOptions()


def check_output(directory: str | None) -> None:
    """Check that `maestro run --out` does not overwrite a study that is running, or that is being launched.

    Raises:
        StudyError: the study in this directory is running or being launched, or it is unknown whether it is.
    """
    if not directory:
        return
    info = Path(directory, "merlin_info")
    try:
        is_running, is_launched = is_locked(info / "conductor.lock"), is_locked(info / LAUNCH_LOCK)
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
    if is_launched:
        raise StudyError(f"--out: another `maestro run` is launching a study in '{directory}'; use another directory.")
