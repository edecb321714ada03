"""Keys of steps that have no effect, or another effect than the user expects: an error, or a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from typing import Any

from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.priority import level_of
from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.config.walltime import clock_text, seconds_of
from maestro_celery_plugin.errors import SpecificationError

__all__ = ["check_unused_keys", "ignored_keys", "step_priority", "with_native_values"]

LOGGER = logging.getLogger(__name__)

# Keys that Maestro and Merlin accept and do not use, and what to do instead.
_UNUSED = {
    "pre": "put its commands at the beginning of 'cmd'",
    "post": "put its commands at the end of 'cmd'; keep the exit code if it matters: `code=$?; ...; exit $code`",
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


def check_unused_keys(run: Mapping[str, Any], file: str, where: str) -> None:
    """Check that a step has no key that nothing uses.

    Raises:
        SpecificationError: the step has such a key.
    """
    for key, remedy in _UNUSED.items():
        if key in run:
            raise SpecificationError.at(
                file, f"{where}.{key}", f"Maestro and Merlin accept this key, but do not run it; {remedy}."
            )


def ignored_keys(run: Mapping[str, Any], kind: str, *, launches: bool) -> Iterator[str]:
    """Yield a text for each key that has no effect on a step of the workers.

    Local workers count no resources, so a step may have any such key for other machines.

    Args:
        run: The keys of the step.
        kind: The batch type of the step.
        launches: Whether the step starts programs with `$(LAUNCHER)`.
    """
    if kind == LOCAL:
        return
    for key, remedy in _OF_ALLOCATIONS.items():
        if run.get(key):
            yield f"{key}: the key has no effect on a step that workers run; {remedy}."
    for key, kinds in _LAUNCHERS.items():
        if run.get(key) in (None, ""):
            continue
        if kind in _KNOWN_TYPES and kind not in kinds:
            yield f"{key}: $(LAUNCHER) of '{kind}' has no such option, so the key has no effect."
        elif not launches:
            yield f"{key}: the key has no effect, because it {_LAUNCHER_ONLY}."


def step_priority(step: Mapping[str, Any], file: str) -> int:
    """Return the level of the messages of a step.

    Raises:
        SpecificationError: workers do not support this priority.
    """
    try:
        return level_of(step["run"].get("priority"))
    except ValueError as cause:
        raise SpecificationError.at(file, f"study.{step['name']}.run.priority", f"{cause}.") from cause


def with_native_values(data: Mapping[str, Any], native: Set[str], file: str) -> list[dict[str, Any]]:
    """Return the steps, with values of native steps that all of Maestro's adapters read in the same way.

    A walltime that is a number or ``MM:SS`` keeps the meaning that Maestro gives it; the log says where this differs
    from the rest of the specification.
    """
    kind = (data.get("batch") or {}).get("type", LOCAL)
    return [
        {**step, "run": _native_priority(step, kind, file) | _native_walltime(step, kind, file)}
        if step["name"] in native
        else dict(step)
        for step in data["study"]
    ]


def _native_priority(step: Mapping[str, Any], kind: str, file: str) -> dict[str, Any]:
    """Return the keys of a native step, with a `priority` that Maestro can read; log one that it ignores."""
    run = dict(step["run"])
    priority = run.get("priority")
    if priority is not None and kind != "flux":
        LOGGER.warning(
            "%s: study.%s.run.priority: Maestro runs this step itself, and its adapter for '%s' ignores this key.",
            file, step["name"], kind,
        )  # fmt: skip
    elif str(priority).lower() in _UNREADABLE:
        run["priority"] = _UNREADABLE[str(priority).lower()]
    return run


def _native_walltime(step: Mapping[str, Any], kind: str, file: str) -> dict[str, Any]:
    """Return the `walltime` of a native step; nothing if it does not change."""
    run = {"walltime": step["run"]["walltime"]} if "walltime" in step["run"] else {}
    walltime = str(run.get("walltime") or "")
    where = f"study.{step['name']}.run.walltime"
    if not walltime or names_in(walltime):
        return run
    colons = walltime.count(":")
    if colons >= 2:
        try:
            run["walltime"] = clock_text(seconds_of(walltime))
        except ValueError as cause:
            raise SpecificationError.at(file, where, f"{cause}.") from cause
    elif colons == 0 and walltime.isdigit() and kind in _MINUTES:
        run["walltime"] = walltime
        LOGGER.warning(
            "%s: %s: Maestro runs this step itself, and '%s' reads %s as minutes; elsewhere in the specification, a "
            "number means seconds. Write \"HH:MM:SS\".",
            file, where, kind, walltime,
        )  # fmt: skip
    elif colons == 1 and kind in ("lsf", "lsf-srun"):
        LOGGER.warning(
            "%s: %s: Maestro runs this step itself, and LSF reads '%s' as hours and minutes; elsewhere in the "
            "specification, it means minutes and seconds. Write \"HH:MM:SS\".",
            file, where, walltime,
        )  # fmt: skip
    return run
