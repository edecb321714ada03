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
)
from maestro_celery_plugin.maestro.batch_defaults import defaults_for, without_nulls
from maestro_celery_plugin.maestro.command_line import check_command_line
from maestro_celery_plugin.maestro.launch import EnsembleDependency, check_launch
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.maestro_form import add_entry, maestro_environment, step_settings, without_settings
from maestro_celery_plugin.maestro.schemas import maestro_schemas
from maestro_celery_plugin.maestro.specification_texts import LaunchedSpecification, specification_texts
from maestro_celery_plugin.maestro.workspaces import check_workspaces
from maestro_celery_plugin.maestro.yaml_text import with_times
from maestro_celery_plugin.plugins import may_be_read
from maestro_celery_plugin.samples.paths import FINISHED_MARKER
from maestro_celery_plugin.samples.table import SUFFIXES
from maestro_celery_plugin.spec.checks import (
    blocks_of,
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
from maestro_celery_plugin.spec.sampled_steps import sampled_steps
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
            check_launch(specification.ensemble, Path(path))
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
        self.batch_defaults = defaults_for(own)
        blocks["batch"] = {**self.batch_defaults, **without_nulls(own)}
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
        self._sampled = sampled_steps(data)
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
        self.environment = maestro_environment(data.get("env") or {}, self.path)
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
            hashes_names = OPTIONS.hashes_names
            steps, file = self.get_study_steps(), Path(self._file).name
            yield from check_workspaces(self.name, file, steps, parameters, hashes_names=hashes_names)

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
            kind = batch_type_of(self.ensemble, step_settings(step))
            yield from ignored_keys(run, kind, f"study.{name}.run", launches=facts[name].launches)
        return facts

    def _shells(self, study: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Return the interpreter of each step that workers run."""
        steps = [step for step in study if step["name"] not in self._native]
        return {step["name"]: shell_of(self.ensemble, step_settings(step)) for step in steps}

    def _verify_by_maestro(self) -> Iterator[Problem]:
        """Let Maestro verify its part; its logger is disabled meanwhile, because it would log a traceback."""
        maestro_logger = logging.getLogger(YAMLSpecification.__module__)
        disabled, maestro_logger.disabled = maestro_logger.disabled, True
        steps, text = self.study, ""
        self.study = [{**step, "run": without_settings(step["run"])} for step in steps]
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
                add_entry(step, is_sampled=step.name in self._sampled)
        return steps


def _check_reader(settings: EnsembleSettings) -> Iterator[Problem]:
    """Check that a reader may exist for the sample file; a token at its end is known at the launch only."""
    file = settings.samples.file if settings.samples else ""
    if file and not file.endswith(")") and not may_be_read(file):
        text = f"no reader for '{Path(file).name}'; files with the suffix {', '.join(SUFFIXES)} can be read."
        yield Problem("merlin.samples.file", text)


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
        notify=merlin.notify,
    )
