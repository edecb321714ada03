"""The studies of a simulation: their files, what Maestro knows about them, and the conductors that run them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    StepFacts,
    WorkerGroupSettings,
)
from maestro_celery_plugin.maestro.step_graph import GraphNode
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from simulation.profiles import Profile
from simulation.system import ROOT

__all__ = ["GROUP", "Maestro", "Study"]

GROUP = "w"
# With this text in its script, a step reads the results of all samples of the step that it depends on.
_COLLECTS = "$(MERLIN_GLOB_PATH)"


@dataclasses.dataclass
class Maestro:
    """What one conductor knows about a study: each begins anew, because Maestro stages the study again.

    Attributes:
        names: The step records; with three of them, the last one depends on the first.
        ended: The states of the step records that have ended.
        submitted: The step records that were submitted.
    """

    names: list[str]
    ended: dict[str, str] = dataclasses.field(default_factory=dict)
    submitted: set[str] = dataclasses.field(default_factory=set)
    is_cancelled: bool = False

    @property
    def has_edge(self) -> bool:
        """Whether the last step record depends on the first."""
        return len(self.names) > 2

    def ready(self) -> list[str]:
        """Return the step records to submit."""
        waits = self.has_edge and self.ended.get(self.names[0]) != "FINISHED"
        names = self.names[:-1] if waits else self.names
        return [name for name in names if name not in self.ended]

    @property
    def is_over(self) -> bool:
        """Whether no step record runs or can run."""
        if self.is_cancelled or (self.has_edge and self.ended.get(self.names[0]) in ("FAILED", "CANCELLED")):
            return all(name in self.ended for name in self.names if name in self.submitted)
        return all(name in self.ended for name in self.names)


class Study:
    """A study of the session.

    Args:
        number: Its number; the first study has begun the session.
        profile: The world.

    Attributes:
        plan: The plan.
        manifests: The manifests of its step records.
        maestro: What the last conductor knows that has conducted the study.
        conductors: All its conductors.
        was_cancelled: Whether a user has cancelled it, or one of its step records.
        needs_user: Whether only a user can go on with it: the machine of its session's host was lost.
        is_repeated: Whether a user has let its failed samples run again after its end.
        resumes_at: When its next conductor begins; None while one lives.
        resume: The process of the user that resumes it.
    """

    def __init__(self, number: int, profile: Profile) -> None:
        self.number, self._profile = number, profile
        self.root = Path(ROOT, "study" if not number else f"study{number + 1}")
        prefix = "step" if not number else "other"
        self.names = [f"{prefix}{n}" for n in range(profile.records if not number else 1)]
        self.plan: StudyPlan
        self.manifests: dict[str, Manifest] = {}
        self.maestro = Maestro(self.names)
        self.conductors: list[Any] = []
        self.was_cancelled = self.needs_user = self.is_repeated = False
        self.resumes_at: float | None = None
        self.resume: Any = None

    def create(self) -> None:
        """Store the plan, as `maestro run` does."""
        home = None if not self.number else Path(ROOT, "study", "merlin_info")
        self.root.mkdir()
        identity = str(self.number + 1)
        self.plan = StudyPlan(
            root=self.root, timestamp="20270115-080000", settings=self._settings(), id=identity, home=home
        )
        (self.root / "batch.info").write_text(yaml.safe_dump(self.plan.to_batch()))
        self.plan.info.mkdir()

    def _settings(self) -> EnsembleSettings:
        profile = self._profile
        group: dict[str, Any] = {"task_queues": ("merlin",), "idle_limit": profile.idle_limit_s}
        batch = BatchSettings()
        if profile.workers == "remote":
            group["machines"] = ("n",)
        elif profile.workers == "allocation":
            walltime = f"{profile.walltime_s // 3600:02}:{profile.walltime_s // 60 % 60:02}:00"
            batch = BatchSettings(type="slurm", nodes=profile.nodes, walltime=walltime)
        steps = {name: StepFacts(queues=("merlin",), sampled=True) for name in self.names}
        if self.maestro.has_edge:
            steps[self.names[-1]] = replace(steps[self.names[-1]], depends=(self.names[0],))
        resources = ResourceSettings(workers={GROUP: WorkerGroupSettings(**group)}, sync_ledger=profile.sync_ledger)
        return EnsembleSettings(batch=batch, steps=steps, resources=resources)

    def add_records(self, samples: Any) -> None:
        """Make the workspaces and the manifests of the step records, and their samples."""
        profile = self._profile
        for name in self.names:
            workspace = self.root / name
            workspace.mkdir()
            manifest = self.manifests[name] = Manifest(
                number=1, name=name, step=name, workspace=str(workspace), script=name, cmd="cmd", restart="restart",
                shell="/bin/bash", sampled=True, samples=profile.samples, labels=[], table=None,
                index_cache=str(self.root), level_max_dirs=25, task_queue="merlin", max_retries=profile.max_retries,
                retry_delay_s=profile.retry_delay_s, study_id=self.plan.id,
            )  # fmt: skip
            samples.add(name, manifest)
            if profile.samples == 1:
                for suffix in (".sh", ".restart.sh"):
                    (workspace / f"{name}{suffix}").write_text("#!/bin/bash\n")

    def graph(self) -> list[GraphNode]:
        """Return the step records, each after those that it depends on."""
        edges = {self.names[-1]: (self.names[0],)} if self.maestro.has_edge else {}
        text = _COLLECTS if self._profile.collects else ""
        return [
            GraphNode(
                root=self.root, name=name, step=name, relative=name, parents=edges.get(name, ()), sampled=True,
                is_native=False, text=text,
            )
            for name in self.names
        ]  # fmt: skip

    @property
    def has_conductor(self) -> bool:
        """Whether a process conducts the study."""
        return any(one.process.is_alive for one in self.conductors)

    @property
    def has_ended(self) -> bool:
        """Whether a conductor has ended in order, and no other one lives."""
        return self.maestro.is_over and any(one.has_ended for one in self.conductors) and not self.has_conductor

    def forget(self) -> None:
        """Let the study begin again with what is on the disk, after a power cut."""
        self.maestro = Maestro(self.names)
