"""The specification of an ensemble: a specification of Maestro with the blocks and step keys of Merlin.

It passes the stages below. An error in a stage stops the launch with one message before any file is created:

YAML → values of variables (`spec/variables.py`) → checks (`spec/checks.py`, `spec/worker_groups.py`,
`spec/resource_checks.py`) → `YAMLSpecification` + `EnsembleSettings`
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrowf.specification.yamlspecification import YAMLSpecification
from msgspec.structs import replace

from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    MerlinSettings,
    StepFacts,
    StepSettings,
)
from maestro_celery_plugin.config.step_entry import STEP_KEY
from maestro_celery_plugin.config.tokens import SAMPLE_TOKENS, NameMatcher, names_in, substitute
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro.command_line import check_command_line
from maestro_celery_plugin.maestro.launch import EnsembleDependency, check_launch
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.schemas import maestro_schemas
from maestro_celery_plugin.maestro.specification_texts import specification_texts
from maestro_celery_plugin.maestro.workspaces import check_workspaces
from maestro_celery_plugin.maestro.yaml_text import with_times
from maestro_celery_plugin.samples.paths import FINISHED_MARKER
from maestro_celery_plugin.spec.checks import (
    STEP_SETTING_KEYS,
    check_content,
    check_native,
    check_shape,
    known_batch,
    known_blocks,
    settings_of,
    without_empty_keys,
)
from maestro_celery_plugin.spec.launcher import batch_type_of, launches
from maestro_celery_plugin.spec.plain_data import check_plain
from maestro_celery_plugin.spec.resource_checks import check_resources, step_needs
from maestro_celery_plugin.spec.step_groups import with_step_groups
from maestro_celery_plugin.spec.step_keys import ignored_keys, step_priority, with_native_values
from maestro_celery_plugin.spec.token_checks import check_parameter_names, doubled_paths, token_notes
from maestro_celery_plugin.spec.variables import Variables
from maestro_celery_plugin.spec.worker_groups import (
    check_groups,
    native_steps,
    task_queues,
    with_own_task_queues,
    with_task_queues,
)
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import SpecificationTexts

LOGGER = logging.getLogger(__name__)

__all__ = ["EnsembleSpecification"]


class EnsembleSpecification(YAMLSpecification):  # type: ignore[misc]
    """A Maestro specification with an ensemble; `read` makes it.

    Attributes:
        ensemble: The settings of the ensemble.
    """

    ensemble: EnsembleSettings
    _sampled: frozenset[str] = frozenset()
    _native: frozenset[str] = frozenset()
    _data: Mapping[str, Any]
    _partial: Mapping[str, Any]
    _expanded: Mapping[str, Any]
    _generated: Mapping[str, Any] | None = None
    _file: str

    @classmethod
    def read(cls, data: dict[str, Any], file: str, path: str | None) -> EnsembleSpecification:
        """Read and verify a specification.

        Args:
            data: The specification as a dictionary.
            file: Name of the file for messages.
            path: The file; None for a stream.

        Raises:
            SpecificationError: the specification cannot be used.
        """
        specification = cls()
        specification.path = path
        OPTIONS.is_ensemble = True
        specification._read(data, file)
        if OPTIONS.launching and OPTIONS.arguments is not None:
            if specification.ensemble.batch.dry_run:
                OPTIONS.dry_run = OPTIONS.arguments.dry = True
            check_command_line(OPTIONS.arguments, specification.name, specification.output_path, file)
        if path is not None:
            check_launch(specification.ensemble, file)
        return specification

    def _read(self, data: dict[str, Any], file: str) -> None:
        full, data = data, known_blocks(data, file)
        check_shape(data, file)
        data = {block: value for block, value in data.items() if block != "user"}
        for note in doubled_paths(data):
            LOGGER.warning("%s: %s", file, note)
        variables = Variables(data, file)
        self._partial = variables.resolved(full)
        data = self._expanded = with_times(without_empty_keys(variables.insert_into(data)))
        data = dict(data)
        data["batch"] = known_batch(data.get("batch") or {}, file)
        check_plain(data, file)  # again, because environment variables are inserted as well
        check_content(data, maestro_schemas(), file)
        self._sampled = _sampled_steps(data)
        merlin = settings_of(MerlinSettings, data.get("merlin") or {}, file, "merlin")
        named = frozenset(merlin.resources.workers)
        resources, data["study"] = with_step_groups(merlin.resources, data, file)
        merlin = replace(merlin, resources=resources)
        self._native = native_steps(merlin.resources, self._sampled, data)
        check_native(data, self._native, file)
        data["study"] = with_native_values(data, self._native, file)
        data["study"] = with_own_task_queues(merlin.resources, data["study"])
        self.ensemble = replace(
            _ensemble_settings(data, merlin, self._native, file, named), finished_markers=FINISHED_MARKER in str(data)
        )
        self.description = data["description"]
        self.environment = _maestro_environment(data.get("env") or {}, self.path)
        self.globals = data.get("global.parameters") or {}
        self.study = data["study"]
        self.batch = {"type": "celery"}  # `launch.EnsembleDependency` completes it
        self._verify_by_maestro(file)
        self.ensemble = replace(self.ensemble, steps=self._step_facts(data, file))
        check_resources(self.ensemble, data, file, query_nodes=OPTIONS.launching)
        self._log_ignored_keys(data, file)
        self._data, self._file = data, file
        if not OPTIONS.parameter_generator:  # its parameters do not exist yet
            self.check_parameters(self.get_parameters())

    def check_parameters(self, parameters: Any) -> None:
        """Check the parameters of the study together with its steps; log tokens that have no value.

        Args:
            parameters: Maestro's `ParameterGenerator`, from the specification or from `--pgen`.

        Raises:
            SpecificationError: a parameter has the name of another token, or two step records have one directory.
        """
        names = tuple(map(str, parameters.parameters))
        if OPTIONS.parameter_generator:
            self._generated = {
                n: {"values": v, "label": parameters.labels[n]} for n, v in parameters.parameters.items()
            }
        source = "--pgen" if OPTIONS.parameter_generator else "global.parameters"
        check_parameter_names(names, self.ensemble.samples, self._file, source)
        if OPTIONS.launching:
            check_workspaces(self.get_study_steps(), parameters, self._file, hashes_names=OPTIONS.hashes_names)
        for note in token_notes(self._data, names, self._sampled):
            LOGGER.warning("%s: %s", self._file, note)

    def _step_facts(self, data: dict[str, Any], file: str) -> dict[str, StepFacts]:
        queues = task_queues(data, file)
        facts = {}
        for step in data["study"]:
            name, run = step["name"], {"cmd": "", "restart": "", **step["run"]}
            depends = tuple(run.get("depends") or ())
            if name in self._native:  # Maestro's adapter handles its resources
                facts[name] = StepFacts(queues=(), depends=depends)
                continue
            facts[name] = StepFacts(
                queues=queues[name],
                depends=depends,
                sampled=name in self._sampled,
                launches=launches(run["cmd"]) or launches(run["restart"]),
                needs=step_needs(self.ensemble, step, file),
                priority=step_priority(step, file),
            )
        return facts

    def _log_ignored_keys(self, data: Mapping[str, Any], file: str) -> None:
        for step in data["study"]:
            facts, run = self.ensemble.steps[step["name"]], step["run"]
            if facts.queues:
                settings = settings_of(StepSettings, _setting_keys(run), file, f"study.{step['name']}.run")
                for note in ignored_keys(run, batch_type_of(self.ensemble, settings), launches=facts.launches):
                    LOGGER.warning("%s: study.%s.run.%s", file, step["name"], note)

    def _verify_by_maestro(self, file: str) -> None:
        """Let Maestro verify its part; its logger is disabled meanwhile, because it would log a traceback."""
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

    def texts(self, plan: StudyPlan) -> SpecificationTexts:
        """Return the versions of the specification that a study keeps."""
        return specification_texts(plan, self._partial, self._expanded, self._generated)

    def get_study_environment(self) -> Any:
        """Return Maestro's environment, with the samples and the session as a dependency."""
        environment = super().get_study_environment()
        path = Path(self.path).absolute() if self.path else None
        environment.add(EnsembleDependency(self.ensemble, self.batch, path, self.check_parameters, self.texts))
        return environment

    def get_study_steps(self) -> list[Any]:
        """Return Maestro's steps, with the plugin's settings under one key of `run`; native steps do not change.

        A step without `restart` gets its `cmd` as `restart`: Maestro gives steps without `restart` a restart limit of
        0, which means unlimited (datastructures/core/study.py:580, executiongraph.py:215).
        """
        steps: list[Any] = super().get_study_steps()
        for step in steps:
            if step.name not in self._native:
                _add_entry(step, is_sampled=step.name in self._sampled)
        return steps


def _add_entry(step: Any, *, is_sampled: bool) -> None:
    """Move the plugin's settings of a step under one key of `run` (`config/step_entry.py`)."""
    settings = _setting_keys(step.run)
    step.run[STEP_KEY] = {"step": step.name, "sampled": is_sampled, "settings": settings}
    step.run["restart"] = step.run["restart"] or step.run["cmd"]
    for key in STEP_SETTING_KEYS:
        step.run.pop(key, None)


def _setting_keys(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a step that the plugin reads."""
    return {key: run[key] for key in STEP_SETTING_KEYS if run.get(key) is not None}


def _sampled_steps(data: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the steps whose own `cmd` or `restart` has a token of a sample."""
    samples = (data.get("merlin") or {}).get("samples")
    if samples is None:
        return frozenset()
    env = data.get("env") or {}
    texts = {name: str(value) for name, value in (env.get("labels") or {}).items()}
    other_names = {*(data.get("global.parameters") or {}), *(env.get("variables") or {}), *texts}
    matcher = NameMatcher((*samples["column_labels"], *SAMPLE_TOKENS))

    def is_sampled(run: Mapping[str, Any]) -> bool:
        used = {name for key in ("cmd", "restart") for name in names_in(substitute(run.get(key) or "", texts))}
        return any(matcher.match(name) for name in used - other_names)

    return frozenset(step["name"] for step in data["study"] if is_sampled(step["run"]))


def _maestro_part(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in STEP_SETTING_KEYS}


def _maestro_environment(env: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """Return `env` in a form for Maestro: no lists among the variables, no `$(SPECROOT)` in `OUTPUT_PATH`.

    Merlin allows `$(SPECROOT)` there, but Maestro reads `OUTPUT_PATH` before it sets `SPECROOT` (maestro.py:380, 437).
    """
    if not env.get("variables"):
        return dict(env)
    variables = {n: str(v) if isinstance(v, list) else v for n, v in env["variables"].items()}
    if path and isinstance(variables.get("OUTPUT_PATH"), str):
        root = str(Path(path).absolute().parent)
        variables["OUTPUT_PATH"] = substitute(variables["OUTPUT_PATH"], {"SPECROOT": root})
    return {**env, "variables": variables}


def _ensemble_settings(
    data: dict[str, Any], merlin: MerlinSettings, native: frozenset[str], file: str, named: frozenset[str]
) -> EnsembleSettings:
    queues = task_queues(data, file)
    check_groups(merlin.resources, queues, data, file)
    queues = {step: names for step, names in queues.items() if step not in native}
    return EnsembleSettings(
        batch=settings_of(BatchSettings, data.get("batch") or {}, file, "batch"),
        resources=with_task_queues(merlin.resources, queues, data, file, merlin.resources.workers.keys() - named),
        samples=merlin.samples,
    )
