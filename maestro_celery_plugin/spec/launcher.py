"""The launcher: the command line for `$(LAUNCHER)` and `$(VLAUNCHER)` in samples, and the resources of a sample.

The keys of a step give the resources of a sample (`StepNeeds`); the batch system makes the command line from them.
No function of this module queries a batch system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.config.settings import EnsembleSettings, StepSettings
from maestro_celery_plugin.config.step_entry import STEP_KEY
from maestro_celery_plugin.config.walltime import seconds_of
from maestro_celery_plugin.plugins import batch_system

__all__ = ["batch_type_of", "launches", "needs_of", "shell_of", "with_launcher"]

_LAUNCHER = re.compile(r"\$\((?P<name>V?LAUNCHER)\)(?:\[(?P<bracket>[^\]\n]*)\])?")
_LAUNCHER_AND_BLANKS = re.compile(r"\$\(V?LAUNCHER\)(\[[^\]]*\])?[ \t]*")
_COUNT = r"(?:\d+|\$\([^\s()]+\))"
_NODES, _PROCS = rf"(?P<nodes>{_COUNT})", rf"(?P<procs>{_COUNT})"
# Maestro's forms (abstracts/interfaces/schedulerscriptadapter.py:55-63); a token `$(X)` is also a count.
_BRACKETS = tuple(
    re.compile(rf"\s*{form}\s*")
    for form in (
        rf"{_PROCS}\s*p",
        rf"{_NODES}\s*n\s*,\s*{_PROCS}\s*p",
        rf"{_PROCS}\s*p\s*,\s*{_NODES}\s*n",
        rf"{_NODES}\s*,\s*{_PROCS}",
    )
)
_ALLOWED = "use '[4p]', '[2n,4p]' or '[2, 4]' (nodes, procs)"
_TOKEN = re.compile(r"\$\([^\s()]+\)")

# Shell variable of `$(VLAUNCHER)` → the step key that it replaces, and its default (Merlin: spec/defaults.py:43).
_VARIABLES = {
    "MERLIN_NODES": ("nodes", 1),
    "MERLIN_PROCS": ("procs", 1),
    "MERLIN_CORES": ("cores per task", 1),
    "MERLIN_GPUS": ("gpus", 0),
}
_MORE = (
    *("bind", "bind gpus", "tasks per rs", "rs per node", "cpus per rs"),
    *("num resource set", "launch_distribution", "launch distribution", "exit_on_error"),
)
# Batch type → the step key with its additional launcher options, if they differ: `lsf-srun` launches with srun.
_OPTION_KEYS = {"lsf-srun": "slurm"}


# --- resources of a sample ---------------------------------------------------------------------------


def needs_of(run: Mapping[str, Any]) -> StepNeeds:
    """Return the resources of one sample of a step.

    If the step has no `nodes` or `procs`, the value comes from the largest launch in `cmd` and `restart` that sets its
    own resources: ``$(LAUNCHER)[2n,4p]``, or ``MERLIN_PROCS=4`` for ``$(VLAUNCHER)``.

    Args:
        run: The keys of the step: as in the specification, or Maestro's `run` with the entry of the plugin.

    Returns:
        Resources as plain numbers, for planning and storage.

    Raises:
        ValueError: a value is not a number or a time; the message begins with the key.
    """
    needs = _needs_of_keys(run)
    sizes = [size for key in ("cmd", "restart") for size in _sizes_at(key, run, needs)]
    gpus = max((size.gpus for size in sizes if size.gpus is not None), default=needs.gpus)
    return replace(
        needs,
        nodes=int(needs.nodes or max((size.nodes for size in sizes), default=0)),
        procs=int(needs.procs or max((size.procs for size in sizes), default=0)),
        cores_per_task=int(max((needs.cores_per_task, *(size.cores_per_task for size in sizes)))),
        gpus=None if gpus is None else int(gpus),
        gpus_per_task=None if needs.gpus_per_task is None else int(needs.gpus_per_task),
    )


def _sizes_at(key: str, run: Mapping[str, Any], needs: StepNeeds) -> list[StepNeeds]:
    try:
        return _launch_sizes(str(run.get(key) or ""), needs)
    except ValueError as cause:
        raise ValueError(f"{key}: {cause}") from cause


def _needs_of_keys(run: Mapping[str, Any]) -> StepNeeds:
    keys = {**run, **(run.get(STEP_KEY) or {}).get("settings", {})}
    walltime = keys.get("walltime") or None
    return StepNeeds(
        nodes=_count(keys, "nodes") or 0,
        procs=_count(keys, "procs") or 0,
        cores_per_task=_count(keys, "cores per task") or 1,
        gpus=_count(keys, "gpus"),
        gpus_per_task=_count(keys, "gpus per task"),
        walltime_s=None if walltime is None or _TOKEN.search(str(walltime)) else _seconds(walltime),
        reservation=keys.get("reservation") or None,
        more={key: keys[key] for key in _MORE if keys.get(key) not in (None, "")},
    )


def _count(keys: Mapping[str, Any], key: str) -> int | None:
    """Return the number of a key; its value is text if it comes from a parameter or is a token of a sample."""
    value = keys.get(key)
    return None if value in (None, "") else _number(str(value).strip(), key)


def _number(text: str, key: str) -> int:
    if text.isdigit():
        return int(text)
    if _TOKEN.fullmatch(text):
        return ScriptCount(1, text)
    raise ValueError(f"{key}: found '{text}'; a number is needed")


def _seconds(walltime: Any) -> int:
    try:
        return seconds_of(walltime)
    except ValueError as cause:
        raise ValueError(f"walltime: {cause}") from cause


def _launch_sizes(text: str, needs: StepNeeds) -> list[StepNeeds]:
    """Return the resources of each launch in a script that sets its own resources."""
    found = [match for match in _LAUNCHER.finditer(text) if match["bracket"] is not None or match["name"][0] == "V"]
    return [_needs_of_launch(match, text, needs) for match in found]


def _needs_of_launch(match: re.Match[str], text: str, needs: StepNeeds) -> StepNeeds:
    if match["name"] == "VLAUNCHER":
        needs = _with_variables(needs, text)
    return needs if match["bracket"] is None else _with_bracket(needs, match)


def _with_bracket(needs: StepNeeds, match: re.Match[str]) -> StepNeeds:
    """Replace nodes and procs by those of ``$(LAUNCHER)[2n,4p]``.

    Raises:
        ValueError: the bracket is invalid, or its counts exceed those of the step.
    """
    forms = (form.fullmatch(match["bracket"]) for form in _BRACKETS)
    found = next((form for form in forms if form is not None), None)
    if found is None:
        raise ValueError(f"found '{match[0]}'; {_ALLOWED}.")
    requested = {key: _number(text, key) for key, text in found.groupdict().items()}
    for key, number in requested.items():
        limit = getattr(needs, key)
        if number < 1 and not isinstance(number, ScriptCount):
            raise ValueError(f"found '{match[0]}'; {key} must be at least 1.")
        if limit and number > limit and not isinstance(limit, ScriptCount):
            raise ValueError(f"found '{match[0]}'; the step has {key}: {limit}; a launch cannot have more.")
    return replace(needs, nodes=requested.get("nodes", 0), procs=requested["procs"])


def _with_variables(needs: StepNeeds, text: str) -> StepNeeds:
    """Replace the counts by references to the shell variables that a script sets for ``$(VLAUNCHER)``."""
    gpus = _reference("MERLIN_GPUS", text, 0)
    return replace(
        needs,
        nodes=_reference("MERLIN_NODES", text, needs.nodes or 1),
        procs=_reference("MERLIN_PROCS", text, needs.procs or 1),
        cores_per_task=_reference("MERLIN_CORES", text, needs.cores_per_task),
        gpus=gpus if gpus else needs.gpus,
    )


def _reference(variable: str, text: str, default: int) -> ScriptCount:
    """Return a reference to a shell variable; its number is the largest value in the script."""
    values = [int(value) if value.isdigit() else 1 for value in _assigned(variable, text)]
    return ScriptCount(max(values, default=default), f"${{{variable}}}")


def _assigned(variable: str, text: str) -> list[str]:
    """Return the values that a script assigns to a variable, outside of comments (Merlin: utils.py:879)."""
    return re.findall(rf"^(?!\s*#).*?\b{variable}[ \t]*=[ \t]*\"?([^\s;\"]+)", text, re.MULTILINE)


# --- the command line --------------------------------------------------------------------------------


def launches(text: str) -> bool:
    """Tell whether a script starts programs with ``$(LAUNCHER)`` or ``$(VLAUNCHER)``."""
    return _LAUNCHER.search(text) is not None


def with_launcher(text: str, type: str, run: Mapping[str, Any], shell: str = "") -> str:
    """Return a script with the command line of the batch system in place of ``$(LAUNCHER)``.

    The type `local` has no launcher, so the tokens are removed. The first lines of the result set the variables of
    ``$(VLAUNCHER)`` that the script itself does not set, as in Merlin (spec/specification.py:489).

    Args:
        text: The script, with tokens.
        type: The batch type (`batch_type_of`).
        run: The keys of the step, as for `needs_of`.
        shell: The interpreter; csh assigns variables with ``set``.

    Raises:
        ValueError: a resource in the script or in the keys is not a number, or exceeds that of the step.
        AllocationError: no batch system is registered for the type.
    """
    system = batch_system(type)
    if system is None:
        return _LAUNCHER_AND_BLANKS.sub("", text)
    if not launches(text):
        return text
    needs = replace(_needs_of_keys(run), options=_options(run, type))

    def line(match: re.Match[str]) -> str:
        return system.sample_launcher(_needs_of_launch(match, text, needs))

    return _missing_variables(text, needs, shell) + _LAUNCHER.sub(line, text)


def _options(run: Mapping[str, Any], type: str) -> str:
    keys = {**run, **(run.get(STEP_KEY) or {}).get("settings", {})}
    return str(keys.get(_OPTION_KEYS.get(type, type)) or "").strip()


def _missing_variables(text: str, needs: StepNeeds, shell: str) -> str:
    if "$(VLAUNCHER)" not in text:
        return ""
    counts = {"nodes": needs.nodes, "procs": needs.procs, "cores per task": needs.cores_per_task, "gpus": needs.gpus}
    prefix = "set " if "csh" in shell else ""
    lines = [
        f"{prefix}{variable}={counts[key] or default}\n"
        for variable, (key, default) in _VARIABLES.items()
        if not _assigned(variable, text)
    ]
    return "".join(lines)


def batch_type_of(settings: EnsembleSettings, step: StepSettings) -> str:
    """Return the batch type for the launches of a step.

    The type of the step has priority, then the type of the first worker group that serves its task queue, then the type
    of the batch block.
    """
    return str(_batch_value(settings, step, "type") or settings.batch.type)


def shell_of(settings: EnsembleSettings, step: StepSettings) -> str:
    """Return the interpreter of a step: its own, that of its worker group, or that of the batch block."""
    return step.shell or str(_batch_value(settings, step, "shell") or settings.batch.shell)


def _batch_value(settings: EnsembleSettings, step: StepSettings, key: str) -> Any:
    """Return a key from the `batch` of a step, or of the first worker group that serves its task queue."""
    groups = settings.resources.workers.values()
    serving = next((group for group in groups if step.task_queue in group.task_queues), None)
    blocks = (step.batch, serving.batch if serving else None)
    return next((block[key] for block in blocks if block and block.get(key)), None)
