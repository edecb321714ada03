"""The specification of an ensemble: a specification of Maestro with the blocks and step keys of Merlin.

It passes the stages below. An error in a stage stops the launch with one message before any file is created:

YAML → values of variables (`spec/variables.py`) → checks (`spec/checks.py`, `spec/worker_groups.py`,
`spec/resource_checks.py`) → `YAMLSpecification` + `EnsembleSettings`
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
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
from maestro_celery_plugin.config.user_configuration import batch_defaults, configuration_path, read_configuration
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.command_line import check_command_line
from maestro_celery_plugin.maestro.launch import EnsembleDependency, check_launch
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.schemas import maestro_schemas
from maestro_celery_plugin.maestro.specification_texts import LaunchedSpecification, specification_texts
from maestro_celery_plugin.maestro.workspaces import check_workspaces
from maestro_celery_plugin.maestro.yaml_text import with_times
from maestro_celery_plugin.plugins import may_be_read
from maestro_celery_plugin.samples.paths import FINISHED_MARKER
from maestro_celery_plugin.samples.table import SUFFIXES
from maestro_celery_plugin.spec.checks import (
    STEP_SETTING_KEYS,
    blocks_of,
    check_batch,
    check_content,
    check_native,
    check_shape,
    known_batch,
    known_blocks,
    settings_of,
    without_empty_keys,
)
from maestro_celery_plugin.spec.launcher import batch_type_of, launches, shell_of
from maestro_celery_plugin.spec.placeholders import check_placeholders
from maestro_celery_plugin.spec.plain_data import check_plain
from maestro_celery_plugin.spec.problems import Checked, Problem, passed
from maestro_celery_plugin.spec.resource_checks import check_resources, step_needs
from maestro_celery_plugin.spec.sources import with_sources
from maestro_celery_plugin.spec.step_groups import at_their_steps, with_step_groups
from maestro_celery_plugin.spec.step_keys import ignored_keys, step_priority, with_native_values
from maestro_celery_plugin.spec.token_checks import check_parameter_names, doubled_paths, token_notes
from maestro_celery_plugin.spec.valid_part import NEUTRAL
from maestro_celery_plugin.spec.variables import Variables, with_merlins_output_path
from maestro_celery_plugin.spec.worker_groups import (
    check_groups,
    native_steps,
    task_queues,
    with_own_task_queues,
    with_task_queues,
)
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import SpecificationTexts

__all__ = ["EnsembleSpecification"]


class EnsembleSpecification(YAMLSpecification):  # type: ignore[misc]
    """A Maestro specification with an ensemble; `read` makes it.

    Attributes:
        ensemble: The settings of the ensemble.
        batch_defaults: The keys of `batch` that the user's configuration has added.
    """

    ensemble: EnsembleSettings
    batch_defaults: Mapping[str, Any]
    _sampled: frozenset[str] = frozenset()
    _native: frozenset[str] = frozenset()
    _step_groups: Set[str] = frozenset()
    _data: Mapping[str, Any]
    study: Any
    _launched: LaunchedSpecification
    _generated: Mapping[str, Any] | None = None
    _file: str = ""

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
        specification.path, specification._file = path, file
        OPTIONS.is_ensemble = True
        passed(specification.checks(data, is_launch=OPTIONS.launching), file)
        if OPTIONS.launching and OPTIONS.arguments is not None:
            if specification.ensemble.batch.dry_run:
                OPTIONS.dry_run = OPTIONS.arguments.dry = True
            check_command_line(OPTIONS.arguments, specification.name, specification.output_path, file)
            if OPTIONS.parent is not None and not OPTIONS.dry_run:
                specification._join()
        if path is not None:
            check_launch(specification.ensemble, file)
        return specification

    def _join(self) -> None:
        """Join the session of the study above this one, and use its names of worker groups and task queues."""
        from maestro_celery_plugin.maestro.joining import join

        before = self.ensemble
        names = join(self.name, self.output_path, before)
        if names is not None and names.renamed:
            self.ensemble, self.study = names.settings, names.steps(self.study, before)

    def checks(self, data: Mapping[str, Any], *, is_launch: bool) -> Iterator[Problem]:
        """Yield the problems of a specification, and take over its values.

        Args:
            data: The specification as a dictionary.
            is_launch: Whether to check what only a launch needs: sizes of nodes, and directories of step records.
        """
        known = yield from known_blocks(data)
        faults = list(check_shape(known))
        yield from faults
        broken = blocks_of(faults)
        if not broken.isdisjoint(("", "env")):  # the values of variables are unknown
            return
        blocks = {**NEUTRAL, **{name: block for name, block in known.items() if name not in {"user", *broken}}}
        overrides = OPTIONS.overrides
        literal = overrides.names(blocks.get("env"))
        if literal:
            blocks["env"] = overrides.applied_to(blocks.get("env"), self._file)
        env = blocks.get("env")
        data, blocks = with_merlins_output_path(data, env), with_merlins_output_path(blocks, env)
        own = {} if "batch" in broken else known.get("batch") or {}
        self.batch_defaults = _defaults_for(own)
        blocks["batch"] = {**self.batch_defaults, **_without_nulls(own)}
        self._launched = LaunchedSpecification(data, blocks["batch"], overrides, self._file)
        yield from doubled_paths(blocks)
        variables = Variables(blocks, literal)
        blocks = with_times(without_empty_keys(variables.insert_into(blocks)))
        yield from variables.problems
        if overrides.samples_file:
            blocks["merlin"] = overrides.samples_of(blocks.get("merlin"), self._file)
        blocks["batch"] = yield from known_batch(blocks.get("batch") or {})
        yield from check_plain(blocks)  # again, because environment variables are inserted as well
        yield from check_placeholders(blocks)
        content = yield from check_content(blocks, maestro_schemas())
        if broken - {"description"} or not content["study"]:  # there is nothing that groups and tokens can refer to
            return
        yield from self._take(dict(content))
        yield from _check_reader(self.ensemble)
        # The machine of a sample may not have the commands of the batch system that its conductor uses.
        query_nodes = is_launch and OPTIONS.parent is None
        problems = check_resources(self.ensemble, self._data, query_nodes=query_nodes)
        yield from at_their_steps(problems, self.ensemble.resources.workers, self._step_groups)
        if not OPTIONS.parameter_generator:  # its parameters do not exist yet
            parameters = self.get_parameters()
            yield from self.parameter_problems(parameters, is_launch=is_launch)
            if content is blocks:  # without a fault, so that the names of all tokens are known
                yield from self._notes(parameters)

    def _take(self, data: dict[str, Any]) -> Iterator[Problem]:
        """Take over the values of a specification, and check the worker groups."""
        self._sampled = _sampled_steps(data)
        merlin = settings_of(MerlinSettings, data.get("merlin") or {}, "merlin")
        resources, data["study"] = yield from with_step_groups(merlin.resources, data)
        self._step_groups = resources.workers.keys() - merlin.resources.workers.keys()
        merlin = replace(merlin, resources=resources)
        self._native = native_steps(resources, self._sampled, data)
        yield from check_native(data, self._native)
        data["study"] = yield from with_native_values(data, self._native)
        data["study"] = with_own_task_queues(resources, data["study"])
        settings = yield from _ensemble_settings(data, merlin, self._native, self._step_groups)
        self.ensemble = replace(settings, finished_markers=FINISHED_MARKER in str(data))
        data["study"] = yield from with_sources(data, self._shells(data["study"]))
        self.description = data["description"]
        self.environment = _maestro_environment(data.get("env") or {}, self.path)
        self.globals = data.get("global.parameters") or {}
        self.study = data["study"]
        self.batch = {"type": "celery"}  # `launch.EnsembleDependency` completes it
        yield from self._verify_by_maestro()
        steps = yield from self._step_facts(data)
        self.ensemble = replace(self.ensemble, steps=steps)
        self._data = data

    def check_parameters(self, parameters: Any) -> None:
        """Check the parameters of the study together with its steps; log tokens that have no value.

        Args:
            parameters: Maestro's `ParameterGenerator`, from the specification or from `--pgen`.

        Raises:
            SpecificationError: a parameter has the name of another token, or two step records have one directory.
        """
        if OPTIONS.parameter_generator:
            self._generated = {
                n: {"values": v, "label": parameters.labels[n]} for n, v in parameters.parameters.items()
            }
        passed(self.parameter_problems(parameters, is_launch=OPTIONS.launching), self._file)
        passed(self._notes(parameters), self._file)

    def parameter_problems(self, parameters: Any, *, is_launch: bool) -> Iterator[Problem]:
        """Yield the problems of parameters; the arguments are those of `check_parameters` and `checks`."""
        source = "--pgen" if OPTIONS.parameter_generator else "global.parameters"
        yield from check_parameter_names(map(str, parameters.parameters), self.ensemble.samples, source)
        if is_launch:
            yield from check_workspaces(self.get_study_steps(), parameters, hashes_names=OPTIONS.hashes_names)

    def _notes(self, parameters: Any) -> Iterator[Problem]:
        return token_notes(self._data, map(str, parameters.parameters), self._sampled)

    def _step_facts(self, data: dict[str, Any]) -> Checked[dict[str, StepFacts]]:
        queues = yield from task_queues(data)
        facts = {}
        for step in data["study"]:
            name, run = step["name"], {"cmd": "", "restart": "", **step["run"]}
            depends = tuple(run.get("depends") or ())
            if name in self._native:  # Maestro's adapter handles its resources
                facts[name] = StepFacts(queues=(), depends=depends)
                continue
            needs = yield from step_needs(self.ensemble, step)
            priority = yield from step_priority(step)
            facts[name] = StepFacts(
                queues=queues[name],
                depends=depends,
                sampled=name in self._sampled,
                launches=launches(run["cmd"]) or launches(run["restart"]),
                needs=needs,
                priority=priority,
            )
            kind = batch_type_of(self.ensemble, _step_settings(step))
            yield from ignored_keys(run, kind, f"study.{name}.run", launches=facts[name].launches)
        return facts

    def _shells(self, study: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Return the interpreter of each step that workers run."""
        steps = [step for step in study if step["name"] not in self._native]
        return {step["name"]: shell_of(self.ensemble, _step_settings(step)) for step in steps}

    def _verify_by_maestro(self) -> Iterator[Problem]:
        """Let Maestro verify its part; its logger is disabled meanwhile, because it would log a traceback."""
        maestro_logger = logging.getLogger(YAMLSpecification.__module__)
        disabled, maestro_logger.disabled = maestro_logger.disabled, True
        steps, text = self.study, ""
        self.study = [{**step, "run": _maestro_part(step["run"])} for step in steps]
        try:
            self.verify()
        except Exception as cause:
            text = " ".join(str(getattr(cause, "message", cause)).split())
        finally:
            self.study = steps
            maestro_logger.disabled = disabled
        if text:
            yield Problem("", text)

    def texts(self, plan: StudyPlan) -> SpecificationTexts:
        """Return the versions of the specification that a study keeps."""
        return specification_texts(plan, self._launched, self._generated)

    def get_study_environment(self) -> Any:
        """Return Maestro's environment, with the samples and the session as a dependency."""
        environment = super().get_study_environment()
        path = Path(self.path).absolute() if self.path else None
        check = self.check_parameters
        dependency = EnsembleDependency(self.ensemble, self.batch, path, check, self.batch_defaults, self.texts)
        environment.add(dependency)
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


def _check_reader(settings: EnsembleSettings) -> Iterator[Problem]:
    """Check that a reader may exist for the sample file; a token at its end is known at the launch only."""
    file = settings.samples.file if settings.samples else ""
    if file and not file.endswith(")") and not may_be_read(file):
        text = f"no reader for '{Path(file).name}'; files with the suffix {', '.join(SUFFIXES)} can be read."
        yield Problem("merlin.samples.file", text)


def _defaults_for(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `batch` from the user's configuration that a specification does not have.

    They belong to a batch system: a specification that names another one takes none of them. A study that exists keeps
    those of its launch.

    Raises:
        ConfigurationError: the configuration cannot be used.
        SpecificationError: a key cannot be used; the message names the configuration.
    """
    defaults = OPTIONS.batch_defaults
    if defaults is None:
        defaults = batch_defaults(read_configuration(), host_name())
        passed(check_batch(defaults, "batch"), str(configuration_path()))
    own = _without_nulls(batch)
    if "type" in own and own["type"] != defaults.get("type", own["type"]):
        return {}
    return {key: value for key, value in defaults.items() if key not in own}


def _without_nulls(block: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if value is not None}


def _add_entry(step: Any, *, is_sampled: bool) -> None:
    """Move the plugin's settings of a step under one key of `run` (`config/step_entry.py`)."""
    settings = _setting_keys(step.run)
    step.run[STEP_KEY] = {"step": step.name, "sampled": is_sampled, "settings": settings}
    step.run["restart"] = step.run["restart"] or step.run["cmd"]
    for key in STEP_SETTING_KEYS:
        step.run.pop(key, None)


def _step_settings(step: Mapping[str, Any]) -> StepSettings:
    return settings_of(StepSettings, _setting_keys(step["run"]), f"study.{step['name']}.run")


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
    data: dict[str, Any], merlin: MerlinSettings, native: frozenset[str], step_groups: Set[str]
) -> Checked[EnsembleSettings]:
    queues = yield from task_queues(data)
    yield from check_groups(merlin.resources, queues, data)
    queues = {step: names for step, names in queues.items() if step not in native}
    resources = yield from with_task_queues(merlin.resources, queues, data, step_groups)
    return EnsembleSettings(
        batch=settings_of(BatchSettings, data.get("batch") or {}, "batch"),
        resources=resources,
        samples=merlin.samples,
    )
