"""Worker groups: the batch settings that apply to a group, and the configuration that the conductor stores for it."""

from __future__ import annotations

import math

import pytest

from maestro_celery_plugin.config.conversion import from_dict, from_json, to_json
from maestro_celery_plugin.config.groups import GroupConfig, batch_of, group_config, has_other_hosts, nodes_of
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings

STEPS = {
    "sim": {"sampled": True, "queues": ["sim"], "launches": True, "needs": {"procs": 3}},
    "collect": {"sampled": False, "queues": ["sim"]},
    "other": {"sampled": True, "queues": ["other"]},
}


def settings(group: dict, batch: dict, steps: dict = STEPS) -> EnsembleSettings:
    workers = {"w": {"task_queues": ["sim"], **group}}
    return from_dict(EnsembleSettings, {"resources": {"workers": workers}, "batch": batch, "steps": steps})


def test_the_keys_of_a_group_override_those_of_the_study():
    study = settings({"batch": {"bank": "mine"}, "nodes": 4}, {"type": "slurm", "bank": "ours", "queue": "q", "nodes": 2})
    batch = batch_of(study, study.resources.workers["w"])
    assert (batch.type, batch.bank, batch.queue, batch.nodes) == ("slurm", "mine", "q", 4)


@pytest.mark.parametrize(
    ("requested", "current", "nodes"),
    [(3, None, 3), (3, 8, 3), (8, 3, 3), (None, 5, 5), (None, None, 1), ("all", 5, 5), ("all", None, 1)],
)
def test_a_group_never_uses_more_nodes_than_its_allocation_has(requested, current, nodes):
    assert nodes_of(BatchSettings(type="slurm", nodes=requested), current) == nodes


def test_the_needs_of_a_group_are_those_of_sampled_steps_in_its_task_queues():
    config = group_config(settings({}, {"type": "slurm", "nodes": 2}), "w", None)
    assert [needs.procs for needs in config.needs] == [3]
    assert config.samples_launch
    assert (config.nodes, config.queues) == (2, ("sim",))


def test_a_local_group_has_neither_nodes_nor_a_time_limit():
    config = group_config(settings({"nodes": 3}, {"type": "local", "walltime": "00:10:00"}), "w", 4)
    assert (config.nodes, config.needs, config.walltime_s) == (0, (), None)


def test_a_worker_reads_the_configuration_that_the_conductor_has_stored():
    config = group_config(settings({"drain": 5, "warn": 7, "idle_limit": math.inf}, {"type": "slurm", "walltime": "00:10:00"}), "w", None)
    assert from_json(GroupConfig, to_json(config)) == config
    assert config.walltime_s == 600


@pytest.mark.parametrize(
    ("group", "batch", "others"),
    [({}, {"type": "local"}, False), ({"machines": ["m"]}, {"type": "local"}, True), ({}, {"type": "slurm"}, True)],
)
def test_a_study_has_other_hosts_with_a_batch_system_or_with_machines(group, batch, others):
    assert has_other_hosts(settings(group, batch)) is others
