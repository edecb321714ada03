"""The launch: what happens in `maestro run`, in the foreground, between the specification and the conductor.

Maestro has a place for this: a `Dependency` of the study environment, acquired when the output path is
known (maestro.py:478, Study.setup_environment). Errors here stop the launch.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maestrowf.abstracts import Dependency

from maestro_celery_plugin.batch.base import LOCAL, batch_system
from maestro_celery_plugin.config.settings import EnsembleSettings, SampleSettings
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.errors import SampleError, SpecificationError, StudyError
from maestro_celery_plugin.study.layout import StudyPlan

__all__ = ["OPTIONS", "EnsembleDependency", "LaunchOptions", "check_before"]

LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass
class LaunchOptions:
    """Options of `maestro run` that concern us; filled in by the argument parser (`maestro_hooks.py`)."""

    launching: bool = False
    broker: str | None = None
    broker_host: str | None = None
    dry_run: bool = False
    parameter_generator: bool = False


OPTIONS = LaunchOptions()


def check_output(directory: str | None) -> None:
    """Make sure that `maestro run --out` does not overwrite a study that is running.

    Raises:
        StudyError: it would.
    """
    lock = Path(directory or "", "merlin_info", "conductor.lock")
    if directory and lock.exists():
        from maestro_celery_plugin.study.status_csv import shared_lock

        with shared_lock(lock) as is_free:
            if not is_free:
                raise StudyError(
                    f"--out: a study is running in '{directory}'; end it with `maestro cancel {directory}`, "
                    "or name another directory."
                )


def check_before(settings: EnsembleSettings, file: str) -> None:
    """Make sure, before `maestro run` creates anything, that workers and broker can be had.

    Raises:
        SpecificationError: workers of a group cannot be started here.
        BrokerError: the broker cannot be used.
    """
    if OPTIONS.launching and not OPTIONS.dry_run:
        from maestro_celery_plugin.broker import choice as broker

        if not settings.needs_workers:
            os.environ.pop(broker.ENVIRONMENT_VARIABLE, None)
            return
        _check_batch_systems(settings, file)
        choice = broker.choose(OPTIONS.broker)
        broker.check(choice)
        if choice.url is None and OPTIONS.broker_host:
            broker.check_address(OPTIONS.broker_host)
        OPTIONS.broker = choice.url
        # Maestro stores the environment (meta/environment.yaml), and samples inherit it.
        os.environ.pop(broker.ENVIRONMENT_VARIABLE, None)


def _check_batch_systems(settings: EnsembleSettings, file: str) -> None:
    """Make sure that each group's batch system is there.

    Raises:
        SpecificationError: it is not.
    """
    from maestro_celery_plugin.conductor.worker_sources import batch_of, is_for_this_machine

    for name, group in settings.resources.workers.items():
        if not group.task_queues or not is_for_this_machine(group):
            continue
        kind = batch_of(settings, group).type
        system = batch_system(kind)
        missing = [command for command in (system.commands if system else ()) if shutil.which(command) is None]
        if missing:
            raise SpecificationError.at(
                file,
                "batch.type",
                f"found '{kind}' for the worker group '{name}', but there is no '{missing[0]}' on PATH here; run "
                "`maestro` on a machine of the cluster, or use 'local'.",
            )
        absent = [name for name in (system.modules if system else ()) if importlib.util.find_spec(name) is None]
        if absent:
            raise SpecificationError.at(
                file,
                "batch.type",
                f"found '{kind}' for the worker group '{name}', but this Python has no package '{absent[0]}', which "
                "Maestro needs for it; put it on PYTHONPATH.",
            )


class EnsembleDependency(Dependency):  # type: ignore[misc]
    """The samples and the session of a study, as a dependency that Maestro acquires.

    Args:
        settings: The ensemble's settings.
        batch: The batch dictionary that Maestro will store; acquiring completes it.
    """

    name = "merlin samples"

    def __init__(self, settings: EnsembleSettings, batch: dict[str, Any]) -> None:
        self._settings, self._batch = settings, batch
        self._is_acquired = False

    def _verify(self) -> bool:
        return True

    def substitute(self, data: str) -> str:
        """Return `data`: the adapter puts our tokens in, when it knows the step record."""
        return data

    def acquire(self, substitutions: Iterable[Any] | None = None) -> None:
        """Generate and check the samples, and make the session.

        Raises:
            SampleError: the samples cannot be generated or read.
        """
        if self._is_acquired:
            return
        values = {item.name: str(item.value) for item in substitutions or ()}
        root = Path(values["OUTPUT_PATH"])
        _check_path(root, self._settings)
        plan = StudyPlan(root=root, timestamp=_timestamp(root), settings=self._settings)
        plan.info.mkdir(parents=True, exist_ok=True)
        if self._settings.samples:
            plan = _with_samples(plan, self._settings.samples, values)
        if not OPTIONS.dry_run:
            _make_session(plan)
        self._batch.clear()
        self._batch.update(plan.to_batch())
        self._is_acquired = True


def _check_path(root: Path, settings: EnsembleSettings) -> None:
    """Make sure that Maestro's adapters can submit from a study's directory.

    Raises:
        StudyError: its path has a blank, and they hand it to a shell unquoted (slurmscriptadapter.py:233).
    """
    from maestro_celery_plugin.conductor.worker_sources import batch_of

    groups = [group for group in settings.resources.workers.values() if group.task_queues]
    if len(str(root).split()) > 1 and any(batch_of(settings, group).type != LOCAL for group in groups):
        raise StudyError(
            f"The study's directory '{root}' has a blank in its path, which Maestro cannot submit batch jobs from; "
            "name another with --out, or in OUTPUT_PATH."
        )


def _timestamp(root: Path) -> str:
    """Return when the study was launched, which Maestro puts into the name of its directory."""
    found = re.search(r"_(\d{8}-\d{6})$", root.name)
    return found[1] if found else time.strftime("%Y%m%d-%H%M%S")


def _with_samples(plan: StudyPlan, samples: SampleSettings, values: dict[str, str]) -> StudyPlan:
    from maestro_celery_plugin.samples.table import open_table

    known = {
        **values,
        "MERLIN_INFO": str(plan.info),
        "MERLIN_WORKSPACE": str(plan.root),
        "MERLIN_TIMESTAMP": plan.timestamp,
    }
    path = Path(substitute(samples.file, known)).expanduser().absolute()
    if samples.generate:
        _generate(plan, substitute(samples.generate.cmd, known))
    try:
        table = open_table(path, samples.column_labels, plan.info)
        first = table.row(0)
    except SampleError as cause:
        raise SampleError(f"{cause}{_what_it_printed(plan) if samples.generate else ''}") from cause
    LOGGER.info("%d samples in '%s'.", len(table), path)
    if tuple(value.strip() for value in first) == samples.column_labels:
        LOGGER.warning(
            "'%s': the first row is the column labels; it is sample 0. Begin a header with '# '.", path
        )
    return dataclasses.replace(plan, table=path, rows=len(table))


def _generate(plan: StudyPlan, command: str) -> None:
    """Run the sample generation in the study's ``merlin_info``, keeping script, stdout and stderr.

    Raises:
        SampleError: it cannot be started, or ends with a code other than 0.
    """
    shell = plan.settings.batch.shell
    script = plan.info / "cmd.sh"
    script.write_text(f"#!{shell}\n\n{command}\n")
    script.chmod(0o755)
    with (plan.info / "cmd.out").open("wb") as out, (plan.info / "cmd.err").open("wb") as err:
        try:
            code = subprocess.run(
                [*shlex.split(shell), str(script)],
                cwd=plan.info,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
            ).returncode
        except OSError as cause:
            raise SampleError(
                f"merlin.samples.generate.cmd: '{shell}' (batch.shell) cannot be run: {cause}"
            ) from cause
    if code != 0:
        end = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise SampleError(f"merlin.samples.generate.cmd: it ended with {end}.{_what_it_printed(plan)}")


def _what_it_printed(plan: StudyPlan, count: int = 10) -> str:
    """Return the last lines of the sample generation, and where its script is."""
    text = f"\nThe script of generate.cmd is '{plan.info / 'cmd.sh'}'. Its last lines:"
    for name in ("cmd.err", "cmd.out"):
        lines = (plan.info / name).read_text(errors="replace").splitlines()
        if lines:
            return "\n".join((text, *(f"  {line}" for line in lines[-count:])))
    return f"{text} (it printed nothing)"


def _make_session(plan: StudyPlan) -> None:
    from maestro_celery_plugin.broker.choice import choose, cluster_address
    from maestro_celery_plugin.conductor.worker_sources import has_other_hosts, terms_of
    from maestro_celery_plugin.study.session import Session

    session = Session.create(plan.session)
    if not plan.settings.needs_workers:
        return
    host = OPTIONS.broker_host or (cluster_address() if has_other_hosts(plan.settings) else None)
    if host:
        session.write_broker_host(host)
    for name, group in plan.settings.resources.workers.items():
        if group.task_queues:
            terms_of(plan.settings, name).write(session)
    choice = choose(OPTIONS.broker)
    if choice.url:
        session.write_broker({"url": choice.url})
