"""The launch: the work of `maestro run` in the foreground, before it starts the conductor.

Maestro acquires the dependencies of a study when the output path is known (maestro.py:478, Study.setup_environment).
The samples and the session are such a dependency; its errors stop the launch.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from maestrowf.abstracts import Dependency

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import BatchSystem, import_problem
from maestro_celery_plugin.config.groups import (
    LOCAL,
    batch_of,
    has_other_hosts,
    is_for_this_machine,
    serving_groups,
)
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.config.user_configuration import configuration_path, read_configuration
from maestro_celery_plugin.errors import ConfigurationError, StudyError
from maestro_celery_plugin.ledger.claims import Claims
from maestro_celery_plugin.maestro.launch_options import LAUNCH_LOCK, OPTIONS
from maestro_celery_plugin.maestro.sample_generation import with_samples
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.processes import forget_variable
from maestro_celery_plugin.spec.notify_command import notify_problem
from maestro_celery_plugin.spec.problems import Kind, Problem, passed
from maestro_celery_plugin.study.additions import Additions, write_additions
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.notifications import store_notify
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import SpecificationTexts, write_specifications
from maestro_celery_plugin.study.sample_commands import write_commands
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, BrokerLocation, Session

__all__ = ["EnsembleDependency", "check_batch_systems", "check_launch", "check_notify"]

LOGGER = logging.getLogger(__name__)


def check_launch(settings: EnsembleSettings, path: Path) -> None:
    """Check, before `maestro run` creates files, that workers can start and that the broker answers.

    Args:
        settings: The settings of the study.
        path: The specification.

    Raises:
        SpecificationError: workers of a group, or the command of notifications, cannot start on this machine.
        StudyError: the command of `--notify` cannot start.
        ConfigurationError: the user's configuration, or its command, cannot be used.
        BrokerError: the broker cannot be used.
    """
    file = path.name
    if OPTIONS.launching and OPTIONS.parent is None:
        if not OPTIONS.dry_run:
            _check_notify(settings, path)
        _check_launch(settings, file)
        # Maestro stores the environment (meta/environment.yaml) and samples inherit it; the URL must not remain in it.
        forget_variable(ENVIRONMENT_VARIABLE)


def _check_notify(settings: EnsembleSettings, path: Path) -> None:
    """Check the command of notifications that the study will have.

    Raises:
        StudyError: the command of `--notify` cannot run.
        SpecificationError: that of the specification cannot.
        ConfigurationError: that of the user's configuration cannot.
    """
    if OPTIONS.notify is not None:
        problem = notify_problem(OPTIONS.notify) if OPTIONS.notify else ""
        if problem:
            raise StudyError(f"--notify: {problem}")
    elif settings.notify:
        passed(check_notify(settings, path.absolute().parent), path.name)
    else:
        command = read_configuration().notify
        problem = notify_problem(command) if command else ""
        if problem:
            raise ConfigurationError(f"{configuration_path()}: notify: {problem}")


def check_notify(settings: EnsembleSettings, directory: Path) -> Iterator[Problem]:
    """Check that this machine has the program of the specification's command of notifications.

    Args:
        settings: The settings of the study.
        directory: The directory of the specification.
    """
    command = substitute(settings.notify or "", {"SPECROOT": str(directory)})
    problem = notify_problem(command) if command else ""
    if problem:
        yield Problem("merlin.notify", problem, Kind.MACHINE)


def _check_launch(settings: EnsembleSettings, file: str) -> None:
    if not OPTIONS.dry_run:
        passed(check_batch_systems(settings), file)
    elif not OPTIONS.overrides.no_errors:
        passed(_check_native_packages(settings), file)
    if settings.needs_workers and not OPTIONS.dry_run:
        # Imported in functions only: the broker imports Celery, which a dry run does not need.
        from maestro_celery_plugin.broker import choice as broker
        from maestro_celery_plugin.broker.private import check_address

        choice = broker.choose(OPTIONS.broker)
        broker.check(choice)
        if choice.url is None and OPTIONS.broker_host:
            check_address(OPTIONS.broker_host)
        for note in choice.notes:
            LOGGER.warning("%s", note)
        OPTIONS.broker = choice.url or broker.PRIVATE
        OPTIONS.location = BrokerLocation(url=choice.url, celery=dict(choice.celery)) if choice.url else None


def check_batch_systems(settings: EnsembleSettings) -> Iterator[Problem]:
    """Check that this machine has the batch system of each group, and that Maestro's adapters can be used."""
    for name, group in serving_groups(settings).items():
        if is_for_this_machine(group):
            user, system = f"the worker group '{name}'", batch_system(batch_of(settings, group).type)
            missing = [command for command in (system.commands if system else ()) if shutil.which(command) is None]
            if system is not None and missing:
                problem = (
                    f"there is no '{missing[0]}' on PATH; run `maestro` on a machine of the cluster, or use 'local'"
                )
                yield _unusable(system, user, problem)
            yield from _check_packages(system, user)
    yield from _check_native_packages(settings)


def _check_native_packages(settings: EnsembleSettings) -> Iterator[Problem]:
    if any(not step.queues for step in settings.steps.values()):
        yield from _check_packages(batch_system(settings.batch.type), "the steps that Maestro runs itself")


def _check_packages(system: BatchSystem | None, user: str) -> Iterator[Problem]:
    problem = import_problem(system) if system else None
    if system is not None and problem is not None:
        yield _unusable(system, user, problem)


def _unusable(system: BatchSystem, user: str, problem: str) -> Problem:
    return Problem("batch.type", f"found '{system.type}' for {user}, but {problem}.", Kind.MACHINE)


class EnsembleDependency(Dependency):  # type: ignore[misc]
    """The samples and the session of a study, as a dependency that Maestro acquires.

    Args:
        settings: The settings of the study.
        batch: The batch dictionary that Maestro will store; `acquire` completes it.
        specification: The specification; None for one from a stream.
        check_parameters: Checks the parameters that `--pgen` has generated.
        batch_defaults: The keys of `batch` that the user's configuration has added.
        texts: Returns the versions of the specification for a study.
    """

    name = "merlin samples"

    def __init__(
        self,
        settings: EnsembleSettings,
        batch: dict[str, Any],
        specification: Path | None = None,
        check_parameters: Callable[[Any], None] = lambda parameters: None,
        batch_defaults: Mapping[str, Any] | None = None,
        texts: Callable[[StudyPlan], SpecificationTexts] | None = None,
    ) -> None:
        self._settings, self._batch, self._specification = settings, batch, specification
        self.check_parameters, self._batch_defaults = check_parameters, dict(batch_defaults or {})
        self._texts = texts
        self._is_acquired = False
        self._lock: FileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for Maestro's pickle of the study; the settings are in ``batch.info``."""
        return {"_is_acquired": self._is_acquired}

    def _verify(self) -> bool:
        return True

    def substitute(self, data: str) -> str:
        """Return `data` unchanged: the adapter inserts the values of tokens later, for each step record."""
        return data

    def acquire(self, substitutions: Iterable[Any] | None = None) -> None:
        """Generate and check the samples, and create the session.

        Raises:
            SampleError: the samples cannot be generated or read.
            StudyError: a file cannot be read or written.
        """
        if self._is_acquired:
            return
        values = {item.name: str(item.value) for item in substitutions or ()}
        root = Path(values["OUTPUT_PATH"])
        try:
            self._acquire(root, values)
            self._is_acquired = True
        except OSError as cause:  # for example a full disk; `_guarded_run` cannot tell it from an error of Maestro
            raise StudyError(
                f"The study '{root}' cannot be prepared: {cause}. Correct this, and launch the study again."
            ) from cause
        finally:
            if self._lock is not None and not self._is_acquired:
                self._lock.release()

    def _acquire(self, root: Path, values: dict[str, str]) -> None:
        _check_path(root, self._settings)
        OPTIONS.directory = root
        plan = StudyPlan(
            root=root,
            timestamp=_timestamp(root),
            settings=self._settings,
            id=OPTIONS.member.id if OPTIONS.member else f"{secrets.randbits(64):016x}",
            specification=self._specification,
            batch_defaults=self._batch_defaults,
            overrides=OPTIONS.overrides,
            home=_home() if OPTIONS.member else None,
        )
        plan.info.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_of(plan)
        if self._texts is not None:
            write_specifications(plan.specification_files, OPTIONS.version or plan.specification, self._texts(plan))
        if self._settings.samples:
            plan = with_samples(plan, self._settings.samples, values)
        if not OPTIONS.dry_run:
            if plan.rows:
                # Now, because NFS shows a new file late, but a replaced one at once.
                write_additions(plan, Additions(study_id=plan.id))
            _make_session(plan) if OPTIONS.member is None else _complete_member(plan)
            store_notify(plan, option=OPTIONS.notify, configuration=read_configuration().notify)
            OPTIONS.study = root
        self._batch.clear()
        self._batch.update(plan.to_batch())


def _lock_of(plan: StudyPlan) -> FileLock:
    """Return the lock of this launch, which holds until the process ends.

    Raises:
        StudyError: another launch uses the directory: Maestro creates it when both have seen that it does not exist.
    """
    lock = FileLock(plan.info / LAUNCH_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as cause:
        raise StudyError(
            f"Another `maestro run` is launching a study in '{plan.root}'; use another directory."
        ) from cause
    if (plan.root / "batch.info").exists():
        raise StudyError(f"Another `maestro run` has just launched a study in '{plan.root}'; use another directory.")
    return lock


def _check_path(root: Path, settings: EnsembleSettings) -> None:
    """Check that Maestro's adapters can submit jobs from the directory of a study.

    Raises:
        StudyError: the path is not UTF-8, in which Maestro and this plugin store it; or it has a blank, and the
            adapters do not quote it for the shell (slurmscriptadapter.py:233).
    """
    try:
        str(root).encode()
    except UnicodeEncodeError as cause:
        raise StudyError(
            f"The path of the study {os.fsencode(root)!r} is not UTF-8; set another path with --out or OUTPUT_PATH."
        ) from cause
    groups = serving_groups(settings).values()
    if len(str(root).split()) > 1 and any(batch_of(settings, group).type != LOCAL for group in groups):
        raise StudyError(
            f"The path of the study '{root}' has a blank, and Maestro cannot submit batch jobs from it; set another "
            "path with --out or OUTPUT_PATH."
        )


def _timestamp(root: Path) -> str:
    """Return the time of the launch, which Maestro puts into the name of the directory."""
    found = re.search(r"_(\d{8}-\d{6})(_\d+)?$", root.name)
    return found[1] if found else clock.local_time("%Y%m%d-%H%M%S")


def _home() -> Path:
    """Return the home of the session that the study joins."""
    from maestro_celery_plugin.maestro.joining import session_of_parent

    return session_of_parent().parent


def _complete_member(plan: StudyPlan) -> None:
    """Store what the session needs of a study that joins it."""
    from maestro_celery_plugin.broker.choice import choose

    session, members = Session(plan.session), Members(plan.session)
    for old, new in OPTIONS.renamed.items():
        LOGGER.warning("Another study of the session has a different worker group '%s'; here it is '%s'.", old, new)
    members.write_environment(plan.id, plan.overrides.environment)
    if plan.settings.needs_workers:
        Claims(plan.claims, plan.number).check()
        if session.read_broker() is None and not session.wants_private_broker:  # so far, only native steps have run
            choice = choose(None)
            if choice.url:
                session.write_broker(BrokerLocation(url=choice.url, celery=dict(choice.celery)))


def _make_session(plan: StudyPlan) -> None:
    from maestro_celery_plugin.broker.choice import choose
    from maestro_celery_plugin.broker.private import cluster_address
    from maestro_celery_plugin.host.start import begin
    from maestro_celery_plugin.maestro.joining import first_member

    session = Session.create(plan.session)
    session.write_environment(plan.overrides.environment)
    write_commands(session.path)
    Members(session.path).write(first_member(plan.id, plan.root, plan.settings))
    if not plan.settings.needs_workers:
        return
    Claims(plan.claims, plan.number).check()
    host = OPTIONS.broker_host or (cluster_address() if has_other_hosts(plan.settings) else None)
    if host:
        session.write_broker_host(host)
    choice = choose(OPTIONS.broker)
    if choice.url:
        session.write_broker(OPTIONS.location or BrokerLocation(url=choice.url, celery=dict(choice.celery)))
    elif OPTIONS.foreground:
        begin(session, with_broker=True)  # the conductor, which is this process, needs it soon
