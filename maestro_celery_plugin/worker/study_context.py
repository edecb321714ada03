"""A study in a worker: its manifests, the ledger file of the worker, its claims and its fences."""

from __future__ import annotations

import threading
from pathlib import Path

from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.config.groups import has_other_hosts
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.claims import Claims
from maestro_celery_plugin.ledger.entries import SUFFIX
from maestro_celery_plugin.ledger.store import STORE, Store
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.samples.table import SampleTable
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.additions import open_samples
from maestro_celery_plugin.study.assignment import Assignment
from maestro_celery_plugin.study.manifest import FILE, Manifest
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import STUDY_VARIABLE
from maestro_celery_plugin.worker.attempt import Runner
from maestro_celery_plugin.worker.fences import Fences

__all__ = ["StudyContext"]

# The number of step records whose manifests a process keeps; a study may have thousands.
MAX_RUNNERS = 64
# The number of tables that a process keeps open: a study has another one after each addition of samples.
MAX_TABLES = 4


class StudyContext:
    """A study in a worker process; several threads may use it.

    Args:
        root: The study's workspace.
        study_id: Identity of the study.
        writer: Name of the ledger file of the process.
        store: The file operations.

    Attributes:
        writer: Name of the process in claims and in the ledger.
        plan: The plan of the study.
        ledger: The ledger file of the process.
        claims: The claims of the study.
        fences: The attempts that may not start, or must end.
        has_other_hosts: Whether workers of the study may run on several machines.
        variables: The environment variables of its samples that those of other studies of the session do not have.

    Raises:
        StudyError: another study has replaced the study, or its plan cannot be read.
    """

    def __init__(self, root: Path, study_id: str, writer: str, store: Store = STORE) -> None:
        self.writer, self.plan = writer, StudyPlan.read(root)
        if self.plan.id != study_id:
            raise StudyError(f"The study '{root}' was launched again; this message belongs to the earlier launch.")
        self.has_other_hosts = has_other_hosts(self.plan.settings)
        self.claims = Claims(self.plan.claims, self.plan.number, store)
        self.variables: dict[str, str] = {}
        if self.plan.home is not None:
            own = {STUDY_VARIABLE: str(root)}
            self.variables = {**Members(self.plan.session).read_environment(self.plan.id), **own}
        # After all that may fail: the file must be new, so that a second try would fail as well.
        path = self.plan.ledger / f"{writer}{SUFFIX}"
        to_disk = self.plan.settings.resources.sync_ledger
        self.ledger = LedgerWriter(path, self.plan.number, new=True, to_disk=to_disk, store=store)
        self.fences = Fences(self.plan.ledger, self.plan.number, store)
        self._lock = threading.Lock()
        # With the epoch of the message for which the manifest was read.
        self._runners: dict[str, tuple[int, Manifest, Runner]] = {}
        self._tables: dict[tuple[str, ...], SampleTable] = {}

    def runner(self, relative: str, epoch: int) -> tuple[Manifest, Runner]:
        """Return the manifest and the runner of a step record; the first call for an epoch reads the manifest.

        The conductor changes a manifest when samples were added to the study, or when the step record runs again. It
        then sends samples under a higher epoch.

        Raises:
            SampleError: the sample table cannot be read any more.
            StudyError: the manifest is damaged or belongs to another study.
            OSError: a file cannot be read.
        """
        with self._lock:
            found = self._runners.pop(relative, None)
            if found is None or found[0] < epoch:
                found = epoch, *self._read(relative, found)
            self._runners[relative] = found
            if len(self._runners) > MAX_RUNNERS:
                del self._runners[next(iter(self._runners))]  # the one that was not used for the longest time
            return found[1:]

    def _read(self, relative: str, known: tuple[int, Manifest, Runner] | None) -> tuple[Manifest, Runner]:
        manifest = Manifest.read(self.plan.records / relative / FILE)
        if manifest.study_id != self.plan.id:
            raise StudyError(f"The manifest of '{relative}' belongs to another study.")
        if known is not None and known[1] == manifest:
            return known[1:]
        if manifest.table is None:
            return manifest, Runner(manifest, lambda sample: ())
        key = manifest.table, str(manifest.samples), *manifest.labels
        if key not in self._tables:  # the step records of a study have one table
            self._tables[key] = open_samples(manifest)
            if len(self._tables) > MAX_TABLES:
                del self._tables[next(iter(self._tables))]
        return manifest, Runner(manifest, self._tables[key].row)

    def modes(self, task: RangeTask, stop: int) -> dict[int, RunMode]:
        """Return how the samples from the start of a task to `stop` run; samples that do not run are not included.

        Raises:
            OSError: the assignment cannot be read.
        """
        if task.mode is not RunMode.ASSIGNED:
            return dict.fromkeys(range(task.start, stop), task.mode)
        return Assignment(self.plan.records / task.manifest, task.epoch).read(task.start, stop)
