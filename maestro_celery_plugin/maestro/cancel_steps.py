"""Cancellation of single steps or step records: by the conductor of the study, or here if there is none."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from filelock import Timeout

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.reader import read_by_record
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.maestro.cancel_report import CancelReport
from maestro_celery_plugin.maestro.native_orphans import NativeOrphans
from maestro_celery_plugin.maestro.native_step_state import NativeStepState, state_path
from maestro_celery_plugin.maestro.step_graph import GraphNode, graph_of, load_study, named
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.conductor_lock import LOCK_LIMIT_S, file_lock, has_conductor
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.study_processes import StudyProcesses

__all__ = ["cancel_steps"]


def cancel_steps(directory: Path, names: tuple[str, ...]) -> CancelReport:
    """Cancel what has not finished of steps; what depends on it is cancelled as well, by Maestro.

    Args:
        directory: The study's workspace.
        names: Names of steps, or of step records.

    Raises:
        StudyError: the directory is not that of an ensemble study, or the study has no such step.
        OSError: a file of the study cannot be read or written.
    """
    plan = StudyPlan.read(directory)
    if not plan.session.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run; nothing of it runs.")
    nodes = named(graph_of(load_study(plan.root)), names)
    manifests = {manifest.name: manifest for manifest in Manifest.read_all(plan.records)}
    states = _states_of(plan, manifests)
    unfinished = {node.name for node in nodes if not _has_finished(plan, node, states)}
    report = CancelReport()
    if not unfinished:
        report.add("Nothing is cancelled: it has finished.")
        return report
    CancelledSteps(plan.cancelled_steps).add(unfinished)
    records = "1 step record" if len(unfinished) == 1 else f"{len(unfinished)} step records"
    try:
        if has_conductor(plan):
            raise Timeout(str(plan.conductor_lock))
        with file_lock(plan).acquire(timeout=LOCK_LIMIT_S):
            report.add(f"This study has no conductor. {records} will not run when it is resumed.")
            _end_running(plan, {name: manifests[name] for name in unfinished & manifests.keys()}, states)
            _end_orphans(plan, unfinished, manifests, report)
    except Timeout:  # a conductor lives or starts, and reads what is cancelled
        them = "it" if len(unfinished) == 1 else "them"
        report.add(f"The conductor cancels {records}, and what depends on {them}, within seconds.")
    return report


def _states_of(plan: StudyPlan, manifests: dict[str, Manifest]) -> dict[str, SampleStates]:
    """Return the states of the samples by step record."""
    states = {name: SampleStates(manifest.samples, manifest.max_retries) for name, manifest in manifests.items()}
    by_number = {manifest.number: states[name] for name, manifest in manifests.items()}
    for number, entries in read_by_record(plan.ledger, plan.number):
        if number in by_number:
            by_number[number].apply(entries)
    return states


def _has_finished(plan: StudyPlan, node: GraphNode, states: dict[str, SampleStates]) -> bool:
    if node.is_native:
        return NativeStepState(state_path(plan.native, node.name)).has_finished
    return node.name in states and states[node.name].is_complete


def _end_running(plan: StudyPlan, manifests: dict[str, Manifest], states: dict[str, SampleStates]) -> None:
    """Record the cancellation in the ledger, which the workers follow that still live."""
    if not manifests:
        return
    ledger = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}", plan.number, to_disk=True)
    try:
        for name, manifest in manifests.items():
            of_record = states[name]
            epoch = max(of_record.epoch, int(of_record.started.max()), int(of_record.ended.max())) + 1
            ledger.append(Kind.CANCELLED, manifest.number, epoch, 0, manifest.samples)
        ledger.flush()
    finally:
        ledger.close()


def _end_orphans(plan: StudyPlan, names: Set[str], manifests: dict[str, Manifest], report: CancelReport) -> None:
    """End the batch jobs of native steps, and the samples whose worker has died."""
    NativeOrphans(plan).cancel(report, names)
    with report.part("Samples of dead workers may still run"):
        workspaces = [Path(manifests[name].workspace) for name in names & manifests.keys()]
        ended = StudyProcesses(plan.root).end_orphans(workspaces)
        if ended.text:
            report.add(f"Ended {ended.text}.")
        if ended.remaining:
            numbers = ", ".join(map(str, ended.remaining))
            report.add_left(f"The processes {numbers} of dead workers cannot be ended; end them as their user.")
