"""Keys of steps that have no effect, or another effect than the user expects: a fault or a warning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.priority import MEDIUM_LEVEL, level_of
from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.config.walltime import clock_text, seconds_of
from maestro_celery_plugin.spec.problems import Checked, Kind, Problem

__all__ = ["check_unused_keys", "ignored_keys", "step_priority", "with_native_values"]

# Keys that Maestro and Merlin accept and do not use, and what to do instead.
_UNUSED = {
    "pre": "remove it, or put its commands at the beginning of 'cmd'",
    "post": "remove it, or put its commands at the end of 'cmd'; keep the exit code if it matters: "
    "`code=$?; ...; exit $code`",
}
_LAUNCHER_ONLY = "only affects programs that the step starts with $(LAUNCHER)"
# Keys of Maestro's own batch jobs, for which a worker group has keys of its own.
_OF_ALLOCATIONS = {
    "exclusive": "samples with `nodes` and without `procs` have whole nodes",
    "nested": "workers run the step, and not a job of its own",
    "qos": "set `qos` in the `batch` of the study or of the worker group",
    "waitable": "workers run the step, and not a job of its own",
}
_LSF = ("lsf",)
_SRUN = ("slurm", "lsf-srun")
# Keys of `$(LAUNCHER)`, and the batch types whose launcher has such an option. A type of an extension may have any.
_LAUNCHERS = {
    "bind": _LSF,
    "bind gpus": _LSF,
    "cpus per rs": _LSF,
    "exit_on_error": _LSF,
    "launch distribution": _LSF,
    "launch_distribution": _LSF,
    "num resource set": _LSF,
    "reservation": _SRUN,
    "rs per node": _LSF,
    "tasks per rs": _LSF,
    "walltime": (*_SRUN, "flux"),
}
_KNOWN_TYPES = ("flux", "lsf", "lsf-srun", "slurm")
# Priorities that Maestro's schema allows and Maestro cannot read (abstracts/enums/__init__.py:92), as numbers of which
# its interface to Flux makes the same urgency, 9 and 31.
_UNREADABLE = {"low": 0.29, "expedited": 1.0}
# Batch types for which Maestro reads a number as minutes.
_MINUTES = ("flux", "lsf", "lsf-srun", "slurm")


def check_unused_keys(run: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Check that a step has no key that nothing uses."""
    for key, remedy in _UNUSED.items():
        if key in run:
            yield Problem(f"{where}.{key}", f"Maestro and Merlin accept this key, but do not run it; {remedy}.")


def ignored_keys(run: Mapping[str, Any], kind: str, where: str, *, launches: bool) -> Iterator[Problem]:
    """Warn of each key that has no effect on a step of the workers.

    Local workers count no resources, so a step may have any such key for other machines.

    Args:
        run: The keys of the step.
        kind: The batch type of the step.
        where: Dotted path of `run`.
        launches: Whether the step starts programs with `$(LAUNCHER)`.
    """
    if kind == LOCAL:
        return
    for key, remedy in _OF_ALLOCATIONS.items():
        if run.get(key):
            text = f"the key has no effect on a step that workers run; {remedy}."
            yield Problem(f"{where}.{key}", text, Kind.WARNING)
    for key, kinds in _LAUNCHERS.items():
        if run.get(key) in (None, ""):
            continue
        if kind in _KNOWN_TYPES and kind not in kinds:
            text = f"$(LAUNCHER) of '{kind}' has no such option, so the key has no effect."
            yield Problem(f"{where}.{key}", text, Kind.WARNING)
        elif not launches:
            text = f"the key has no effect, because it {_LAUNCHER_ONLY}."
            yield Problem(f"{where}.{key}", text, Kind.WARNING)


def step_priority(step: Mapping[str, Any]) -> Checked[int]:
    """Return the level of the messages of a step; the medium one for a priority that workers do not support."""
    try:
        return level_of(step["run"].get("priority"))
    except ValueError as cause:
        yield Problem(f"study.{step['name']}.run.priority", f"{cause}.")
        return MEDIUM_LEVEL


def with_native_values(data: Mapping[str, Any], native: Set[str]) -> Checked[list[dict[str, Any]]]:
    """Return the steps, with values of native steps that all of Maestro's adapters read in the same way.

    A walltime that is a number or ``MM:SS`` keeps the meaning that Maestro gives it; a warning says where this differs
    from the rest of the specification.
    """
    kind = (data.get("batch") or {}).get("type", LOCAL)
    steps = []
    for step in data["study"]:
        run = step["run"]
        if step["name"] in native:
            where = f"study.{step['name']}.run"
            run = yield from _native_priority(run, kind, f"{where}.priority")
            run = yield from _native_walltime(run, kind, f"{where}.walltime")
        steps.append({**step, "run": run})
    return steps


def _native_priority(run: Mapping[str, Any], kind: str, where: str) -> Checked[Mapping[str, Any]]:
    """Return the keys of a native step, with a `priority` that Maestro can read; warn of one that it ignores."""
    priority = run.get("priority")
    if priority is not None and kind != "flux":
        text = f"Maestro runs this step itself, and its adapter for '{kind}' ignores this key."
        yield Problem(where, text, Kind.WARNING)
    elif str(priority).lower() in _UNREADABLE:
        return {**run, "priority": _UNREADABLE[str(priority).lower()]}
    return run


def _native_walltime(run: Mapping[str, Any], kind: str, where: str) -> Checked[Mapping[str, Any]]:
    """Return the keys of a native step, with a `walltime` that Maestro's adapters can read."""
    walltime = str(run.get("walltime") or "")
    if not walltime or names_in(walltime):
        return run
    colons = walltime.count(":")
    if colons >= 2:
        try:
            return {**run, "walltime": clock_text(seconds_of(walltime))}
        except ValueError as cause:
            yield Problem(where, f"{cause}.")
    elif colons == 0 and walltime.isdigit() and kind in _MINUTES:
        yield Problem(
            where,
            f"Maestro runs this step itself, and '{kind}' reads {walltime} as minutes; elsewhere in the specification, "
            'a number means seconds. Write "HH:MM:SS".',
            Kind.WARNING,
        )
        return {**run, "walltime": walltime}
    elif colons == 1 and kind in ("lsf", "lsf-srun"):
        yield Problem(
            where,
            f"Maestro runs this step itself, and LSF reads '{walltime}' as hours and minutes; elsewhere in the "
            'specification, it means minutes and seconds. Write "HH:MM:SS".',
            Kind.WARNING,
        )
    return run
