"""Packing: how many samples run in parallel in an allocation, and how many slots each worker has."""

from __future__ import annotations

from collections.abc import Sequence

from maestro_celery_plugin.config.resources import StepNeeds

__all__ = ["fewest_slots", "slot_count", "worker_slots"]


def slot_count(
    needs: StepNeeds,
    nodes: int,
    cores_per_node: int,
    gpus_per_node: int | None = None,
    *,
    shares_nodes: bool = True,
) -> int:
    """Return how many samples fit into an allocation at the same time; 0 when no sample fits.

    * A sample without resource keys uses one core: 4 nodes of 36 cores have 144 slots.
    * A sample with only `nodes` uses whole nodes: 4 nodes and ``nodes: 2`` make 4 // 2 = 2 slots.
    * Other samples share nodes: with 36 cores, ``procs: 36`` makes 4 · (36 // 36) = 4 slots, ``procs: 8`` with
      ``cores per task: 2`` makes 4 · (36 // 16) = 8, and ``procs: 4`` with ``gpus per task: 1`` on nodes of 4 GPUs
      makes 4 · min(36 // 4, 4 // 4) = 4. With ``nodes: 2`` and ``procs: 36``, 18 processes run on each of two
      nodes, which makes (4 // 2) · (36 // 18) = 4.
    * If a step has no `nodes` and one node is too small for its processes, they may run on any nodes:
      ``procs: 48`` makes (4 · 36) // 48 = 3 slots.

    Args:
        needs: Resources of one sample.
        nodes: Nodes of the allocation.
        cores_per_node: Cores of the allocation on each node.
        gpus_per_node: GPUs of the allocation on each node; None to ignore GPUs.
        shares_nodes: Whether samples on several nodes share these nodes; otherwise they use whole nodes.
    """
    sample_nodes, procs = max(1, needs.nodes), needs.procs or max(1, needs.nodes)
    if needs.has_whole_nodes:
        return nodes // sample_nodes
    procs_per_node = cores_per_node // needs.cores_per_task
    per_node = procs_per_node // _ceil_div(procs, sample_nodes)
    if needs.gpu_count and gpus_per_node is not None:
        per_node = min(per_node, gpus_per_node // _ceil_div(needs.gpu_count, sample_nodes))
    if sample_nodes > 1 and not shares_nodes:
        per_node = min(per_node, 1)
    if per_node or needs.nodes:
        return nodes // sample_nodes * per_node
    return nodes * _procs_with_gpus(procs_per_node, needs, gpus_per_node) // procs


def fewest_slots(
    steps: Sequence[StepNeeds], nodes: int, cores_per_node: int, gpus_per_node: int | None = None, *, shares_nodes: bool
) -> tuple[StepNeeds, int]:
    """Return the needs of the step with the fewest slots, and this number of slots, which is safe for all steps.

    Args:
        steps: Resources of a sample of each step; one core per sample when there is no step.
        nodes: As for `slot_count`.
        cores_per_node: As for `slot_count`.
        gpus_per_node: As for `slot_count`.
        shares_nodes: As for `slot_count`.
    """
    candidates = [
        (needs, slot_count(needs, nodes, cores_per_node, gpus_per_node, shares_nodes=shares_nodes))
        for needs in steps or (StepNeeds(),)
    ]
    return min(candidates, key=lambda pair: pair[1])


def _ceil_div(count: int, parts: int) -> int:
    return -(-count // parts)


def _procs_with_gpus(procs: int, needs: StepNeeds, gpus_per_node: int | None) -> int:
    """Return how many processes of a sample on several nodes fit on one node with their GPUs."""
    if not needs.gpu_count or gpus_per_node is None:
        return procs
    return min(procs, gpus_per_node * max(1, needs.procs) // needs.gpu_count)


def worker_slots(slots: int, workers: int, number: int) -> int:
    """Return the number of slots of one worker of an allocation.

    Worked example: 4 workers share 6 slots as 2, 2, 1 and 1.

    Args:
        slots: Slots of the whole allocation.
        workers: Number of workers in the allocation.
        number: Number of the worker, from 1.
    """
    return slots // workers + (number <= slots % workers)
