"""Checks of resources and times before a launch: requests that can never fit, and invalid times and numbers.

A value with the token of a parameter, such as ``$(NODES)``, differs between step records and is not checked here.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from maestro_celery_plugin.batch.base import BatchSystem
from maestro_celery_plugin.batch.packing import slot_count
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.groups import LOCAL, allocation_name, batch_of, is_for_this_machine, nodes_of
from maestro_celery_plugin.config.resources import StepNeeds, counted
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, StepSettings, WorkerGroupSettings
from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.config.walltime import clock_text, seconds_of
from maestro_celery_plugin.errors import nearest
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.checks import settings_of
from maestro_celery_plugin.spec.launcher import batch_type_of, needs_of
from maestro_celery_plugin.spec.option_check import check_options
from maestro_celery_plugin.spec.problems import Checked, Kind, Problem
from maestro_celery_plugin.spec.procs_check import check_procs

__all__ = ["check_resources", "step_needs"]

_STEP_KEYS = conversion.keys_of(StepSettings)
# Batch types whose adapter in Maestro requires a walltime (lsfscriptadapter.py:127).
_NEED_WALLTIME = ("lsf", "lsf-srun")
# Keys of `batch` that Maestro's adapters write into comments of the batch script, which no shell expands.
_REQUEST_KEYS = ("walltime", "queue", "bank", "qos", "reservation", "args")
# The time that workers need before they start samples, in seconds.
WORKER_START_S = 10


def step_needs(settings: EnsembleSettings, step: Mapping[str, Any]) -> Checked[StepNeeds]:
    """Return the resources of a sample of a step; the default for a local step, because its resources are not counted.

    Args:
        settings: The settings of the study.
        step: The step as in the specification.
    """
    own = {key: value for key, value in step["run"].items() if key in _STEP_KEYS}
    own_settings = settings_of(StepSettings, own, f"study.{step['name']}.run")
    if batch_type_of(settings, own_settings) == LOCAL:
        return StepNeeds()
    try:
        return needs_of(step["run"])
    except ValueError as cause:  # a value is no number, or a launch requests more than its step: "key: text"
        key, _, text = str(cause).partition(": ")
        yield Problem(f"study.{step['name']}.run.{key}", text)
        return StepNeeds()


def check_resources(settings: EnsembleSettings, data: Mapping[str, Any], *, query_nodes: bool) -> Iterator[Problem]:
    """Check that times are valid, and that samples fit into the allocations of their groups.

    Args:
        settings: The settings of the study, with the properties of each step.
        data: The specification.
        query_nodes: Whether to query batch systems for the size of their nodes.
    """
    yield from check_options(settings)
    steps = {step["name"]: step["run"] for step in data["study"]}
    for step in data["study"]:
        if settings.steps[step["name"]].queues:  # Maestro checks the native steps
            yield from _check_step(step["name"], step["run"])
    shared: dict[str, _Group] = {}
    for name, group in settings.resources.workers.items():
        faults = list(_check_request(settings, name, group))
        yield from faults
        if faults:
            continue
        checked = _Group(settings, name)
        yield from checked.check_keys()
        if checked.system is not None:
            yield from checked.check_shared_allocation(shared.setdefault(allocation_name(name, group), checked))
        for step, facts in settings.steps.items():
            if facts.sampled and set(facts.queues).intersection(group.task_queues):
                yield from checked.check_sample(step, steps[step], facts.needs, query_nodes=query_nodes)


def _check_step(name: str, run: Mapping[str, Any]) -> Iterator[Problem]:
    where = f"study.{name}.run"
    yield from _check_time(run.get("time_request"), f"{where}.time_request")
    signal_name = run.get("signal")
    if signal_name is not None and not names_in(signal_name) and signal_name not in signal.Signals.__members__:
        yield Problem(f"{where}.signal", f"found '{signal_name}'; {nearest(signal_name, signal.Signals.__members__)}")


def _check_request(settings: EnsembleSettings, name: str, group: WorkerGroupSettings) -> Iterator[Problem]:
    """Check the keys of a group's allocation that the batch system reads; the message names the block that sets them.

    An allocation serves all step records, so that a parameter has no value there.
    """
    own = group.batch or {}
    if own.get("type", settings.batch.type) == LOCAL:
        return
    for key in _REQUEST_KEYS:
        is_own = key in own
        value = own[key] if is_own else getattr(settings.batch, key)
        where = f"merlin.resources.workers.{name}.batch.{key}" if is_own else f"batch.{key}"
        tokens = sorted(names_in(str(value)))
        if tokens:
            problem = f"found '{value}', but $({tokens[0]}) is no variable of env; parameters have no value here."
            yield Problem(where, problem)
        elif key == "walltime":
            yield from _check_time(value, where)


def _check_time(text: str | int | None, where: str) -> Iterator[Problem]:
    """Check a time, unless it contains a token."""
    try:
        if text is not None and not names_in(str(text)):
            seconds_of(text)
    except ValueError as cause:
        yield Problem(where, f"{cause}.")


def _seconds(text: str | int | None) -> int | None:
    """Return a time in seconds; None without a time, for a time that contains a token, and for an invalid one."""
    with contextlib.suppress(ValueError):
        return None if text is None or names_in(str(text)) else seconds_of(text)
    return None


class _Group:
    """A worker group with its batch settings.

    Attributes:
        system: The batch system; None for `local`.
        nodes: Nodes of the allocation.
        walltime_s: Time limit of the allocation in seconds; None for no limit.
    """

    def __init__(self, settings: EnsembleSettings, name: str) -> None:
        self.name = name
        self._group = settings.resources.workers[name]
        self.batch: BatchSettings = batch_of(settings, self._group)
        self.system: BatchSystem | None = batch_system(self.batch.type)
        self._where = f"merlin.resources.workers.{name}"
        self.walltime_s: int | None = None
        self.nodes = 0
        if self.system is not None:
            self.walltime_s = _seconds(self.batch.walltime)
            enclosing = self.system.current_allocation(os.environ)
            self.nodes = nodes_of(self.batch, enclosing.nodes if enclosing else None)

    def _problem(self, key: str, text: str, kind: Kind = Kind.FAULT) -> Problem:
        return Problem(f"{self._where}.{key}", text, kind)

    def check_keys(self) -> Iterator[Problem]:
        """Check that the keys of the group are consistent."""
        if self.batch.type == LOCAL and self._group.allocation:
            yield self._problem(
                "allocation",
                f"found '{self._group.allocation}', but workers of the batch type 'local' have no allocation; "
                "remove the key, or set another `batch.type` for the group.",
            )
        if self.system is None:
            return
        name = self._group.allocation or self.name
        if len(name.split()) > 1:
            yield self._problem(
                "allocation",
                f"found '{name}'; Maestro cannot submit batch jobs from a directory with a blank in its name. "
                "Use a name without a blank for the group, or for its `allocation`.",
            )
        yield from self._check_nodes()
        yield from check_procs(self.batch.type, self.nodes, self.batch.procs, f"{self._where}.procs")
        for key in self.system.ignored_keys:
            if getattr(self.batch, key):
                text = f"Maestro's adapter for '{self.batch.type}' ignores this key."
                yield Problem(f"batch.{key}", text, Kind.WARNING)
        if self.walltime_s is None:
            if self.batch.type in _NEED_WALLTIME:
                yield self._problem(
                    "batch",
                    f"the walltime is missing; Maestro requires it for jobs of the type '{self.batch.type}'. Add it "
                    "here, or to `batch`.",
                )
            return
        for key, seconds in (("drain", self._group.drain), ("warn", self._group.warn)):
            if seconds is not None and seconds >= self.walltime_s:
                yield self._problem(
                    key,
                    f"found {seconds:g} seconds, but the allocation has a walltime of {clock_text(self.walltime_s)}; "
                    "no sample could start.",
                )

    def _check_nodes(self) -> Iterator[Problem]:
        if not is_for_this_machine(self._group):
            return
        enclosing = self.system.current_allocation(os.environ) if self.system else None
        if self.batch.nodes == "all" and enclosing is None:
            yield self._problem(
                "nodes",
                "found 'all', which means the nodes of the allocation around `maestro run`, but there is no such "
                "allocation; use a number.",
                Kind.MACHINE,
            )
        if enclosing is not None and isinstance(self.batch.nodes, int) and self.batch.nodes > enclosing.nodes:
            yield Problem(
                "",
                f"worker group '{self.name}' requests {self.batch.nodes} nodes, but the allocation around "
                f"`maestro run` (job {enclosing.job}) has {enclosing.nodes}; the group uses these nodes.",
                Kind.WARNING,
            )

    def check_shared_allocation(self, first: _Group) -> Iterator[Problem]:
        """Check that the group can share its allocation with the first group of this allocation."""
        if first is self:
            return
        if self.batch.type == "lsf":
            yield self._problem(
                "allocation",
                f"found the allocation of '{first.name}'; under LSF, `jsrun` gives the nodes to one group at a time. "
                "Use one allocation per group.",
            )
            return
        for key, own in self._request.items():
            if own != first._request[key]:
                yield self._problem(
                    "allocation",
                    f"found the allocation of '{first.name}', but {key} is {own} here "
                    f"and {first._request[key]} there; groups that share an allocation need the same value.",
                )

    @property
    def _request(self) -> dict[str, str]:
        walltime = "none" if self.walltime_s is None else clock_text(self.walltime_s)
        keys = ("queue", "bank", "qos", "reservation", "procs", "gpus", "args")
        values = {key: str(getattr(self.batch, key) or "none") for key in keys}
        return {"batch.type": self.batch.type, "nodes": str(self.nodes), "walltime": walltime, **values}

    def check_sample(
        self, step: str, run: Mapping[str, Any], needs: StepNeeds, *, query_nodes: bool
    ) -> Iterator[Problem]:
        """Check that a sample of a step fits into the allocation of the group."""
        if self.system is None:
            return
        where, owner = f"study.{step}.run", f"the allocation of worker group '{self.name}' has"
        needs = needs.planned(gpus_are_per_process=self.system.gpus_are_per_process)
        yield from check_procs(self.batch.type, run.get("nodes"), run.get("procs"), f"{where}.procs")
        if needs.nodes > self.nodes:
            yield Problem(
                f"{where}.{'nodes' if run.get('nodes') else 'cmd'}",
                f"found {needs.nodes} nodes; {owner} {counted(self.nodes, 'node')}; request fewer, or set more `nodes` "
                "for the group.",
            )
        time_request = _seconds(run.get("time_request"))
        warn_s = round(self._group.warn)
        if time_request and self.walltime_s and time_request > self.walltime_s - WORKER_START_S - warn_s:
            yield Problem(
                f"{where}.time_request",
                f"found {clock_text(time_request)}; {owner} a walltime of {clock_text(self.walltime_s)}, of which "
                f"workers need {WORKER_START_S} seconds to start, and samples receive their signal {warn_s} seconds "
                "before the end (`warn`); request less time, or set a longer `walltime` for the group.",
            )
        if self.batch.gpus is not None and needs.gpu_count > self.batch.gpus * self.nodes:
            yield Problem(
                f"{where}.{'gpus per task' if run.get('gpus per task') else 'gpus'}",
                f"found {counted(needs.gpu_count, 'GPU')}; {owner} {self.batch.gpus * self.nodes}; request fewer, or "
                "set more `gpus` or `nodes` for the group.",
            )
        delay_s, idle_s = run.get("retry_delay"), self._group.idle_limit
        if isinstance(delay_s, int | float) and delay_s >= idle_s:
            yield Problem(
                f"{where}.retry_delay",
                f"found {delay_s:g} seconds, but workers of the group '{self.name}' leave their allocation after "
                f"{idle_s:g} seconds without work; use a shorter delay, or a longer `idle_limit` for the group.",
            )
        if query_nodes and needs.cores > 1:
            yield from self._check_cores(where, needs, owner, self.system.largest_node(self.batch))

    def _slots(self, needs: StepNeeds, cores: int) -> int:
        shares = self.system is None or self.system.shares_nodes
        return slot_count(needs, self.nodes, cores, self.batch.gpus, shares_nodes=shares)

    def _check_cores(self, where: str, needs: StepNeeds, owner: str, cores: int | None) -> Iterator[Problem]:
        if cores is None or self._slots(needs, cores):
            return
        spread = f" on {counted(needs.nodes, 'node')}" if needs.nodes else ""
        counts_gpus = needs.gpu_count and self.batch.gpus is not None
        gpus = f" and {counted(needs.gpu_count, 'GPU')}" if counts_gpus else ""
        has = f" and {counted(self.batch.gpus or 0, 'GPU')}" if counts_gpus else ""
        yield Problem(
            f"{where}.procs",
            f"found {needs.procs or 1} procs with {counted(needs.cores_per_task, 'core')} each{spread}{gpus}; {owner} "
            f"{counted(self.nodes, 'node')} with at most {counted(cores, 'core')}{has}; request fewer, or set more "
            "`nodes` for the group.",
            Kind.MACHINE,
        )
