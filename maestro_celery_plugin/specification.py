"""The specification: Maestro's, with the blocks and step keys that Merlin's users know.

A specification that has none of them is read by Maestro alone. One that has goes through these stages,
each of which stops the launch with one message before anything is created:

text → YAML → variables substituted → checked against the settings → `YAMLSpecification` + `EnsembleSettings`
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import maestrowf
import yaml
from maestrowf.specification.yamlspecification import YAMLSpecification

from maestro_celery_plugin import launch, schema
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.settings import (
    DEFAULT_GROUP,
    DEFAULT_TASK_QUEUE,
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    SampleSettings,
    StepSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.steps import STEP_KEY
from maestro_celery_plugin.tokens import SAMPLE_TOKENS, names_in, substitute

__all__ = ["EnsembleSpecification"]

LOGGER = logging.getLogger(__name__)

BLOCKS = ("description", "batch", "env", "study", "global.parameters", "merlin", "user")
# Maestro gives these their values when it knows the output path (maestro.py:421, 437).
MAESTRO_VARIABLES = ("OUTPUT_PATH", "SPECROOT")


class EnsembleSpecification(YAMLSpecification):  # type: ignore[misc]
    """A Maestro specification that may have a ``merlin`` block.

    Attributes:
        ensemble: What the plugin adds; None for a specification that is Maestro's alone.
    """

    ensemble: EnsembleSettings | None = None

    @classmethod
    def load_specification(cls, path: str) -> EnsembleSpecification:
        """Read and verify the file.

        Raises:
            SpecificationError: the ensemble specification cannot be used.
            Exception: what Maestro raises for a specification that is its own.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return super().load_specification(path)  # type: ignore[no-any-return]
        data = _ensemble_data(text)
        if data is None:
            return super().load_specification(path)  # type: ignore[no-any-return]
        specification = cls()
        specification.path = path
        specification._read(data, os.path.basename(path))
        launch.check_before()
        return specification

    @classmethod
    def load_specification_from_stream(cls, stream: TextIO) -> EnsembleSpecification:
        """Read and verify a stream, as `load_specification` does with a file."""
        text = stream.read()
        data = _ensemble_data(text)
        if data is None:
            return super().load_specification_from_stream(io.StringIO(text))  # type: ignore[no-any-return]
        specification = cls()
        specification._read(data, getattr(stream, "name", "specification"))
        return specification

    def _read(self, data: dict[str, Any], file: str) -> None:
        _check_blocks(data, file)
        data = _Substitution(data, file).apply()
        _check(data, file)
        self.ensemble = _ensemble_settings(data, file)
        self.description = data["description"]
        self.environment = data.get("env") or {}
        self.globals = data.get("global.parameters") or {}
        self.study = data["study"]
        self.batch = {"type": "celery"}  # completed when the samples are acquired
        self._verify_by_maestro(file)

    def _verify_by_maestro(self, file: str) -> None:
        """Let Maestro verify its part; it logs tracebacks, so its logger is silent meanwhile."""
        maestro_logger = logging.getLogger(YAMLSpecification.__module__)
        disabled, maestro_logger.disabled = maestro_logger.disabled, True
        steps = self.study
        self.study = [{**step, "run": _maestro_part(step["run"])} for step in steps]
        try:
            self.verify()
        except Exception as cause:
            raise SpecificationError.at(file, "", str(getattr(cause, "message", cause))) from cause
        finally:
            self.study = steps
            maestro_logger.disabled = disabled

    def get_study_environment(self) -> Any:
        """Return Maestro's environment, with the samples as a dependency to be acquired."""
        environment = super().get_study_environment()
        if self.ensemble:
            environment.add(launch.EnsembleDependency(self.ensemble, self.batch))
        return environment

    def get_study_steps(self) -> list[Any]:
        """Return Maestro's steps, with the settings of ours under one key of `run`.

        `restart` is filled with `cmd` where there is none: Maestro gives such steps a restart limit of
        0, which means unlimited (datastructures/core/study.py:720, executiongraph.py:205).
        """
        steps = super().get_study_steps()
        if self.ensemble:
            for step in steps:
                step.run[STEP_KEY] = _step_entry(step, self._substitutes, self.ensemble)
                step.run["restart"] = step.run["restart"] or step.run["cmd"]
                for key in STEP_SETTING_KEYS:
                    step.run.pop(key, None)
        return steps

    @property
    def _substitutes(self) -> dict[str, str]:
        return {name: str(value) for name, value in (self.environment.get("labels") or {}).items()}


def _step_entry(step: Any, labels: Mapping[str, str], ensemble: EnsembleSettings) -> dict[str, Any]:
    settings = {key: step.run[key] for key in STEP_SETTING_KEYS if step.run.get(key) is not None}
    sampled = _is_sampled(step.run, labels, ensemble.samples)
    return {"step": step.name, "sampled": sampled, "settings": settings}


def _is_sampled(run: Mapping[str, Any], labels: Mapping[str, str], samples: SampleSettings | None) -> bool:
    """Tell whether the step's own cmd or restart has a token of a sample."""
    if samples is None:
        return False
    names = {*samples.column_labels, *SAMPLE_TOKENS}
    return any(names & names_in(substitute(run[key] or "", labels)) for key in ("cmd", "restart"))


# --- reading -----------------------------------------------------------------------------------------


def _ensemble_data(text: str) -> dict[str, Any] | None:
    """Return the specification as a dictionary when it has anything of ours, else None.

    Text that is no YAML is left to Maestro, which then says what it always says.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if not isinstance(data, dict):
        return None
    return data if "merlin" in data or _has_step_key(data.get("study")) else None


def _has_step_key(study: Any) -> bool:
    """Tell whether a step has a key that is Merlin's and not Maestro's."""
    if not isinstance(study, list):
        return False
    runs = [step["run"] for step in study if isinstance(step, dict) and isinstance(step.get("run"), dict)]
    return any(key in run for run in runs for key in STEP_SETTING_KEYS)


@functools.lru_cache(maxsize=1)
def _maestro_schemas() -> dict[str, Any]:
    """Return the JSON schemas that Maestro ships (specification/schemas/yamlspecification.json)."""
    path = Path(maestrowf.__file__).parent / "specification" / "schemas" / "yamlspecification.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


STEP_SETTING_KEYS = tuple(schema.json_schema(StepSettings)["properties"])


def _maestro_part(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a step's `run` that Maestro knows; empty ones count as absent, as in Merlin."""
    return {key: value for key, value in run.items() if key not in STEP_SETTING_KEYS and value is not None}


# --- variables ---------------------------------------------------------------------------------------


class _Substitution:
    """Puts the variables of `env` everywhere: keys, values, the study's name, worker names.

    A text that is one variable and nothing else takes the variable's value with its type. ``~`` and
    ``$ENV`` are expanded outside of commands, as in Merlin.
    """

    COMMANDS = ("cmd", "restart", "pre", "post")
    _ONE_TOKEN = re.compile(r"\$\(([^\s()]+)\)")

    def __init__(self, data: dict[str, Any], file: str) -> None:
        self._data, self._file = data, file
        environment = data.get("env") or {}
        raw = {**(environment.get("variables") or {}), **(environment.get("labels") or {})}
        self._raw = {str(name): value for name, value in raw.items() if name not in MAESTRO_VARIABLES}
        self._values = {name: self._resolve(name, ()) for name in self._raw}

    def _resolve(self, name: str, via: tuple[str, ...]) -> Any:
        if name in via:
            circle = " -> ".join((*via[via.index(name) :], name))
            raise SpecificationError.at(self._file, f"env.variables.{name}", f"it refers to itself: {circle}.")
        value = self._raw[name]
        if not isinstance(value, str):
            return value
        inner = {n: self._resolve(n, (*via, name)) for n in names_in(value) if n in self._raw}
        return self._fill(value, inner)

    def _fill(self, text: str, values: Mapping[str, Any]) -> Any:
        only = self._ONE_TOKEN.fullmatch(text)
        if only and only[1] in values:
            return values[only[1]]
        return substitute(text, {name: str(value) for name, value in values.items()})

    def apply(self) -> dict[str, Any]:
        """Return the document with everything substituted."""
        return self._walk(self._data, command=False)  # type: ignore[no-any-return]

    def _walk(self, item: Any, *, command: bool) -> Any:
        if isinstance(item, dict):
            return {
                self._fill(key, self._values) if isinstance(key, str) else key: self._walk(
                    value, command=key in self.COMMANDS
                )
                for key, value in item.items()
            }
        if isinstance(item, list):
            return [self._walk(entry, command=command) for entry in item]
        if not isinstance(item, str):
            return item
        if command:
            return substitute(item, {name: str(value) for name, value in self._values.items()})
        filled = self._fill(item, self._values)
        return os.path.expandvars(os.path.expanduser(filled)) if isinstance(filled, str) else filled


# --- checks ------------------------------------------------------------------------------------------


def _check_blocks(data: Mapping[str, Any], file: str) -> None:
    for block in data:
        if block not in BLOCKS:
            raise SpecificationError.at(file, "", f"unknown block '{block}'; {schema.nearest(str(block), BLOCKS)}")
    for block, kind, name in (("description", dict, "a block of keys"), ("study", list, "a list of steps")):
        if not isinstance(data.get(block), kind) or not data[block]:
            raise SpecificationError.at(file, block, f"the block is missing or empty; {name} is needed.")
    for block in ("env", "batch", "global.parameters", DEFAULT_TASK_QUEUE):
        if not isinstance(data.get(block) or {}, dict):
            raise SpecificationError.at(file, block, "a block of keys is needed.")


def _check(data: dict[str, Any], file: str) -> None:
    maestro = _maestro_schemas()
    _check_block(data["description"], maestro["DESCRIPTION"], file, "description")
    _check_block(data.get("env") or {}, maestro["ENV"], file, "env")
    _check_block(data.get("batch") or {}, schema.json_schema(BatchSettings), file, "batch")
    for name, parameter in (data.get("global.parameters") or {}).items():
        where = f"global.parameters.{name}"
        _check_block(parameter, {**maestro["PARAM"], "properties": _PARAMETER_KEYS}, file, where)
    for number, step in enumerate(data["study"]):
        _check_step(step, number, file)
    merlin = {key: value for key, value in (data.get(DEFAULT_TASK_QUEUE) or {}).items() if value is not None}
    _check_block(merlin, _MERLIN, file, DEFAULT_TASK_QUEUE)


_PARAMETER_KEYS: dict[str, Any] = {
    "values": {"type": "array", "minItems": 1},
    "label": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array"}]},
    "name": {"type": "string"},
}
_MERLIN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "resources": schema.json_schema(ResourceSettings),
        "samples": schema.json_schema(SampleSettings),
    },
    "additionalProperties": False,
}
_MERLIN["properties"]["resources"]["properties"]["workers"]["additionalProperties"]["type"] = ["object", "null"]
_MERLIN["properties"]["resources"]["properties"]["workers"]["type"] = ["object", "null"]


def _check_step(step: Any, number: int, file: str) -> None:
    maestro = _maestro_schemas()["STUDY_STEP"]
    where = f"study[{number}]"
    if isinstance(step, dict) and isinstance(step.get("name"), str):
        where = f"study.{step['name']}"
    _check_block(step, {**maestro, "properties": {**maestro["properties"], "run": {"type": "object"}}}, file, where)
    run_schema = maestro["properties"]["run"]
    properties = {**run_schema["properties"], **schema.json_schema(StepSettings)["properties"]}
    run = {key: value for key, value in step["run"].items() if value is not None}
    _check_block(run, {**run_schema, "properties": properties}, file, f"{where}.run")


def _check_block(block: Any, block_schema: Mapping[str, Any], file: str, where: str) -> None:
    for path, sentence in schema.problems(block, block_schema):
        raise SpecificationError.at(file, f"{where}.{path}".rstrip("."), sentence)


def _ensemble_settings(data: dict[str, Any], file: str) -> EnsembleSettings:
    merlin = {key: value for key, value in (data.get(DEFAULT_TASK_QUEUE) or {}).items() if value is not None}
    resources = {key: value for key, value in (merlin.get("resources") or {}).items() if value is not None}
    resources["workers"] = {str(n): g or {} for n, g in (resources.get("workers") or {}).items()}
    settings = EnsembleSettings(
        batch=schema.build(BatchSettings, data.get("batch") or {}),
        resources=schema.build(ResourceSettings, resources),
        samples=schema.build(SampleSettings, merlin["samples"]) if merlin.get("samples") else None,
    )
    _check_samples(settings, data, file)
    _check_groups(settings, data, file)
    return _with_task_queues(settings, data, file)


def _check_samples(settings: EnsembleSettings, data: Mapping[str, Any], file: str) -> None:
    labels = settings.samples.column_labels if settings.samples else ()
    where = "merlin.samples.column_labels"
    for label in labels:
        if not re.fullmatch(r"[^\s()]+", label):
            raise SpecificationError.at(file, where, f"'{label}' cannot be a token; use letters, digits and '_'.")
        if labels.count(label) > 1:
            raise SpecificationError.at(file, where, f"'{label}' stands there twice; each column has its own label.")
        for block in ("global.parameters", "env.variables", "env.labels"):
            outer, _, inner = block.partition(".") if block.startswith("env") else (block, "", "")
            names = (data.get(outer) or {}).get(inner) or {} if inner else data.get(outer) or {}
            if label in names:
                raise SpecificationError.at(
                    file, where, f"'{label}' is also a name in {block}; $({label}) can mean only one of them."
                )


def _check_groups(settings: EnsembleSettings, data: Mapping[str, Any], file: str) -> None:
    from maestro_celery_plugin.worker_options import check_worker_args

    steps = [step["name"] for step in data["study"]]
    queues = [queue for step in data["study"] for queue in [step["run"].get("task_queue")] if queue]
    for name, group in settings.resources.workers.items():
        where = f"merlin.resources.workers.{name}"
        for step in group.steps:
            if step != "all" and step not in steps:
                known = ", ".join(f"'{known}'" for known in steps)
                raise SpecificationError.at(file, f"{where}.steps", f"unknown step '{step}'; steps are {known}.")
        for queue in group.task_queues:
            if queue not in (*queues, DEFAULT_TASK_QUEUE):
                raise SpecificationError.at(
                    file, f"{where}.task_queues", f"no step uses the task queue '{queue}'; {schema.nearest(queue, queues)}"
                )
        if group.steps and group.task_queues:
            raise SpecificationError.at(file, where, "it names both steps and task_queues; name one of them.")
        if group.batch:
            _check_block(group.batch, schema.json_schema(BatchSettings), file, f"{where}.batch")
        check_worker_args(group.args, file, f"{where}.args")


def _with_task_queues(settings: EnsembleSettings, data: Mapping[str, Any], file: str) -> EnsembleSettings:
    """Resolve which task queues each group serves, and add a group for those that none does.

    Where groups may not overlap, a task queue that two of them ask for is the first one's.
    """
    queue_of = {step["name"]: step["run"].get("task_queue") or DEFAULT_TASK_QUEUE for step in data["study"]}
    owners: dict[str, str] = {}
    groups = {}
    for name, group in settings.resources.workers.items():
        queues = served_queues(group, queue_of)
        for queue in queues if not settings.resources.overlap else ():
            if owners.setdefault(queue, name) != name:
                LOGGER.warning(
                    "%s: merlin.resources.workers.%s: the task queue '%s' is served by '%s' already; "
                    "with `overlap: False` the first group serves it.", file, name, queue, owners[queue],
                )
        mine = tuple(queue for queue in queues if owners.get(queue, name) == name)
        groups[name] = dataclasses.replace(group, task_queues=mine)
    served = {queue for group in groups.values() for queue in group.task_queues}
    left = {step: queue for step, queue in queue_of.items() if queue not in served}
    if left:
        groups[DEFAULT_GROUP] = WorkerGroupSettings(steps=tuple(left), task_queues=tuple(dict.fromkeys(left.values())))
    return dataclasses.replace(settings, resources=dataclasses.replace(settings.resources, workers=groups))


def served_queues(group: WorkerGroupSettings, queue_of: Mapping[str, str]) -> tuple[str, ...]:
    """Return the task queues a group serves, given the task queue of each step."""
    if group.task_queues:
        return group.task_queues
    steps = tuple(queue_of) if not group.steps or "all" in group.steps else group.steps
    return tuple(dict.fromkeys(queue_of[step] for step in steps))
