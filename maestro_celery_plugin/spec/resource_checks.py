"""Checks of resources and times before a launch: requests that can never fit, and invalid times and numbers.

A value with the token of a parameter, such as ``$(NODES)``, differs between step records and is not checked here.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.batch.base import BatchSystem
from maestro_celery_plugin.batch.packing import slot_count
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.groups import LOCAL, allocation_name, batch_of, is_for_this_machine, nodes_of
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, StepSettings, WorkerGroupSettings
from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.config.walltime import clock_text, seconds_of
from maestro_celery_plugin.errors import SpecificationError, nearest
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.checks import settings_of
from maestro_celery_plugin.spec.launcher import batch_type_of, needs_of
from maestro_celery_plugin.spec.option_check import check_options
from maestro_celery_plugin.spec.procs_check import check_procs

__all__ = ["check_resources", "step_needs"]

LOGGER = logging.getLogger(__name__)

_STEP_KEYS = conversion.keys_of(StepSettings)
# Batch types whose adapter in Maestro requires a walltime (lsfscriptadapter.py:127).
_NEED_WALLTIME = ("lsf", "lsf-srun")
# Keys of `batch` that Maestro's adapters write into comments of the batch script, which no shell expands.
_REQUEST_KEYS = ("walltime", "queue", "bank", "qos", "reservation", "args")
# The time that workers need before they start samples, in seconds.
WORKER_START_S = 10


def step_needs(settings: EnsembleSettings, step: Mapping[str, Any], file: str) -> StepNeeds:
    """Return the resources of a sample of a step; the default for a local step, because its resources are not counted.

    Args:
        settings: The settings of the study.
        step: The step as in the specification.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: a value is not a number, or a launch requests more than its step.
    """
    own = {key: value for key, value in step["run"].items() if key in _STEP_KEYS}
    own_settings = settings_of(StepSettings, own, file, f"study.{step['name']}.run")
    if batch_type_of(settings, own_settings) == LOCAL:
        return StepNeeds()
    try:
        return needs_of(step["run"])
    except ValueError as cause:
        raise SpecificationError(f"{file}: study.{step['name']}.run.{cause}") from cause


def check_resources(settings: EnsembleSettings, data: Mapping[str, Any], file: str, *, query_nodes: bool) -> None:
    """Check that times are valid, and that samples fit into the allocations of their groups.

    Args:
        settings: The settings of the study, with the properties of each step.
        data: The specification.
        file: Name of the specification, for messages.
        query_nodes: Whether to query batch systems for the size of their nodes.

    Raises:
        SpecificationError: a value is invalid or can never fit; the message contains the first problem only.
    """
    check_options(settings, file)
    steps = {step["name"]: step["run"] for step in data["study"]}
    for name, run in steps.items():
        if settings.steps[name].queues:  # Maestro checks the native steps
            _check_step(name, run, file)
    shared: dict[str, _Group] = {}
    for name, group in settings.resources.workers.items():
        _check_request(settings, name, group, file)
        checked = _Group(settings, name, file)
        checked.check_keys()
        if checked.system is not None:
            checked.check_shared_allocation(shared.setdefault(allocation_name(name, group), checked))
        for step, facts in settings.steps.items():
            if facts.sampled and set(facts.queues).intersection(group.task_queues):
                checked.check_sample(step, steps[step], facts.needs, query_nodes=query_nodes)


def _check_step(name: str, run: Mapping[str, Any], file: str) -> None:
    where = f"study.{name}.run"
    _seconds(run.get("time_request"), file, f"{where}.time_request")
    signal_name = run.get("signal")
    if signal_name is not None and not names_in(signal_name) and signal_name not in signal.Signals.__members__:
        problem = f"found '{signal_name}'; {nearest(signal_name, signal.Signals.__members__)}"
        raise SpecificationError.at(file, f"{where}.signal", problem)


def _check_request(settings: EnsembleSettings, name: str, group: WorkerGroupSettings, file: str) -> None:
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
            raise SpecificationError.at(file, where, problem)
        if key == "walltime":
            _seconds(value, file, where)


def _seconds(text: str | int | None, file: str, where: str) -> int | None:
    """Return a time in seconds; None without a time, and for a time that contains a token."""
    if text is None or names_in(str(text)):
        return None
    try:
        return seconds_of(text)
    except ValueError as cause:
        raise SpecificationError.at(file, where, f"{cause}.") from cause


class _Group:
    """A worker group with its batch settings.

    Attributes:
        system: The batch system; None for `local`.
        nodes: Nodes of the allocation.
        walltime_s: Time limit of the allocation in seconds; None for no limit.
    """

    def __init__(self, settings: EnsembleSettings, name: str, file: str) -> None:
        self.name, self._file = name, file
        self._group = settings.resources.workers[name]
        self.batch: BatchSettings = batch_of(settings, self._group)
        self.system: BatchSystem | None = batch_system(self.batch.type)
        self._where = f"merlin.resources.workers.{name}"
        self.walltime_s: int | None = None
        self.nodes = 0
        if self.system is not None:
            self.walltime_s = _seconds(self.batch.walltime, file, f"{self._where}.batch.walltime")
            enclosing = self.system.current_allocation(os.environ)
            self.nodes = nodes_of(self.batch, enclosing.nodes if enclosing else None)

    def _error(self, key: str, problem: str) -> SpecificationError:
        return SpecificationError.at(self._file, f"{self._where}.{key}", problem)

    def check_keys(self) -> None:
        """Check that the keys of the group are consistent."""
        if self.batch.type == LOCAL and self._group.allocation:
            raise self._error(
                "allocation",
                f"found '{self._group.allocation}', but workers of the batch type 'local' have no allocation; "
                "remove the key, or set another `batch.type` for the group.",
            )
        if self.system is None:
            return
        if len((self._group.allocation or self.name).split()) > 1:
            text = self._group.allocation or self.name
            raise self._error(
                "allocation",
                f"found '{text}'; Maestro cannot submit batch jobs from a directory with a blank in its name. "
                "Use a name without a blank for the group, or for its `allocation`.",
            )
        self._check_nodes()
        check_procs(self.batch.type, self.nodes, self.batch.procs, self._file, f"{self._where}.procs")
        for key in self.system.ignored_keys:
            if getattr(self.batch, key):
                kind = self.batch.type
                LOGGER.warning("%s: batch.%s: Maestro's adapter for '%s' ignores this key.", self._file, key, kind)
        if self.walltime_s is None:
            if self.batch.type in _NEED_WALLTIME:
                raise self._error(
                    "batch",
                    f"the walltime is missing; Maestro requires it for jobs of the type '{self.batch.type}'. Add it "
                    "here, or to `batch`.",
                )  # fmt: skip
            return
        for key, seconds in (("drain", self._group.drain), ("warn", self._group.warn)):
            if seconds is not None and seconds >= self.walltime_s:
                raise self._error(
                    key,
                    f"found {seconds:g} seconds, but the allocation has a walltime of {clock_text(self.walltime_s)}; "
                    "no sample could start.",
                )

    def _check_nodes(self) -> None:
        if not is_for_this_machine(self._group):
            return
        enclosing = self.system.current_allocation(os.environ) if self.system else None
        if self.batch.nodes == "all" and enclosing is None:
            raise self._error(
                "nodes",
                "found 'all', which means the nodes of the allocation around `maestro run`, but there is no such "
                "allocation; use a number.",
            )
        if enclosing is not None and isinstance(self.batch.nodes, int) and self.batch.nodes > enclosing.nodes:
            LOGGER.warning(
                "%s: worker group '%s' requests %d nodes, but the allocation around `maestro run` (job %s) has %d; the "
                "group uses these nodes.",
                self._file, self.name, self.batch.nodes, enclosing.job, enclosing.nodes,
            )  # fmt: skip

    def check_shared_allocation(self, first: _Group) -> None:
        """Check that the group can share its allocation with the first group of this allocation."""
        if first is self:
            return
        if self.batch.type == "lsf":
            raise self._error(
                "allocation",
                f"found the allocation of '{first.name}'; under LSF, `jsrun` gives the nodes to one group at a time. "
                "Use one allocation per group.",
            )
        for key, own in self._request.items():
            if own != first._request[key]:
                raise self._error(
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

    def check_sample(self, step: str, run: Mapping[str, Any], needs: StepNeeds, *, query_nodes: bool) -> None:
        """Check that a sample of a step fits into the allocation of the group."""
        if self.system is None:
            return
        where, owner = f"study.{step}.run", f"the allocation of worker group '{self.name}' has"
        needs = needs.planned(gpus_are_per_process=self.system.gpus_are_per_process)
        check_procs(self.batch.type, run.get("nodes"), run.get("procs"), self._file, f"{where}.procs")
        if needs.nodes > self.nodes:
            raise SpecificationError.at(
                self._file,
                f"{where}.{'nodes' if run.get('nodes') else 'cmd'}",
                f"found {needs.nodes} nodes; {owner} {_count(self.nodes, 'node')}; request fewer, or set more `nodes` "
                "for the group.",
            )
        time_request = _seconds(run.get("time_request"), self._file, f"{where}.time_request")
        warn_s = round(self._group.warn)
        if time_request and self.walltime_s and time_request > self.walltime_s - WORKER_START_S - warn_s:
            raise SpecificationError.at(
                self._file,
                f"{where}.time_request",
                f"found {clock_text(time_request)}; {owner} a walltime of {clock_text(self.walltime_s)}, of which "
                f"workers need {WORKER_START_S} seconds to start, and samples receive their signal {warn_s} seconds "
                "before the end (`warn`); request less time, or set a longer `walltime` for the group.",
            )
        if self.batch.gpus is not None and needs.gpu_count > self.batch.gpus * self.nodes:
            raise SpecificationError.at(
                self._file,
                f"{where}.{'gpus per task' if run.get('gpus per task') else 'gpus'}",
                f"found {_count(needs.gpu_count, 'GPU')}; {owner} {self.batch.gpus * self.nodes}; request fewer, or "
                "set more `gpus` or `nodes` for the group.",
            )
        delay_s, idle_s = run.get("retry_delay"), self._group.idle_limit
        if isinstance(delay_s, int | float) and delay_s >= idle_s:
            raise SpecificationError.at(
                self._file,
                f"{where}.retry_delay",
                f"found {delay_s:g} seconds, but workers of the group '{self.name}' leave their allocation after "
                f"{idle_s:g} seconds without work; use a shorter delay, or a longer `idle_limit` for the group.",
            )
        if query_nodes and needs.cores > 1:
            self._check_cores(where, needs, owner, self.system.largest_node(self.batch))

    def _slots(self, needs: StepNeeds, cores: int) -> int:
        shares = self.system is None or self.system.shares_nodes
        return slot_count(needs, self.nodes, cores, self.batch.gpus, shares_nodes=shares)

    def _check_cores(self, where: str, needs: StepNeeds, owner: str, cores: int | None) -> None:
        if cores is None or self._slots(needs, cores):
            return
        spread = f" on {_count(needs.nodes, 'node')}" if needs.nodes else ""
        counts_gpus = needs.gpu_count and self.batch.gpus is not None
        gpus = f" and {_count(needs.gpu_count, 'GPU')}" if counts_gpus else ""
        has = f" and {_count(self.batch.gpus or 0, 'GPU')}" if counts_gpus else ""
        raise SpecificationError.at(
            self._file,
            f"{where}.procs",
            f"found {needs.procs or 1} procs with {_count(needs.cores_per_task, 'core')} each{spread}{gpus}; {owner} "
            f"{_count(self.nodes, 'node')} with at most {_count(cores, 'core')}{has}; request fewer, or set more "
            "`nodes` for the group.",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
