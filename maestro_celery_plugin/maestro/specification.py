"""The specification: Maestro's, with the blocks and step keys that Merlin's users know.

A specification that has none of them is read by Maestro alone. One that has goes through these stages,
each of which stops the launch with one message before anything is created:

text → YAML → variables put in (`variables.py`) → checked (`spec_checks.py`, `worker_groups.py`,
`resource_checks.py`) → `YAMLSpecification` + `EnsembleSettings`
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from maestrowf.specification.yamlspecification import YAMLSpecification

from maestro_celery_plugin.config import schema
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    SampleSettings,
    StepFacts,
)
from maestro_celery_plugin.config.step_entry import STEP_KEY
from maestro_celery_plugin.config.tokens import SAMPLE_TOKENS, Spelling, names_in, substitute
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro import launch
from maestro_celery_plugin.spec.checks import (
    STEP_SETTING_KEYS,
    check_content,
    check_plain,
    check_shape,
    tidy,
    unknown_tokens,
)
from maestro_celery_plugin.spec.launcher import launches
from maestro_celery_plugin.spec.resource_checks import check_resources, step_needs
from maestro_celery_plugin.spec.variables import Variables
from maestro_celery_plugin.spec.worker_groups import check_groups, left_to_maestro, task_queues, with_task_queues

LOGGER = logging.getLogger(__name__)

__all__ = ["EnsembleSpecification"]


class EnsembleSpecification(YAMLSpecification):  # type: ignore[misc]
    """A Maestro specification that may have a ``merlin`` block.

    Attributes:
        ensemble: What the plugin adds; None for a specification that is Maestro's alone.
    """

    ensemble: EnsembleSettings | None = None
    _sampled: frozenset[str] = frozenset()
    _plain: frozenset[str] = frozenset()

    @classmethod
    def load_specification(cls, path: str) -> EnsembleSpecification:
        """Read and verify the file.

        Raises:
            SpecificationError: the ensemble specification cannot be used.
            Exception: what Maestro raises for a specification that is its own.
        """
        data = _ensemble_data(_text_of(path), Path(path).name)
        if data is None:
            return super().load_specification(path)  # type: ignore[no-any-return]
        specification = cls()
        specification.path = path
        specification._read(data, Path(path).name)
        if specification.ensemble:
            launch.check_before(specification.ensemble, Path(path).name)
        return specification

    @classmethod
    def load_specification_from_stream(cls, stream: Any) -> EnsembleSpecification:
        """Read and verify a stream, or a text, as `load_specification` does with a file."""
        text = stream.read() if hasattr(stream, "read") else stream
        file = Path(str(getattr(stream, "name", "specification"))).name
        data = _ensemble_data(text, file)
        if data is None:
            return super().load_specification_from_stream(_replay(stream, text))  # type: ignore[no-any-return]
        specification = cls()
        specification.path = None
        specification._read(data, file)
        return specification

    def _read(self, data: dict[str, Any], file: str) -> None:
        check_shape(data, file)
        data = tidy(Variables(data, file).put_into(data))
        check_content(data, file)
        self._sampled = _sampled_steps(data)
        resources = schema.build(ResourceSettings, (data.get("merlin") or {}).get("resources") or {})
        self._plain = left_to_maestro(resources, self._sampled, data)
        check_plain(data, self._plain, file)
        self.ensemble = _ensemble_settings(data, resources, self._plain, file)
        self.description = data["description"]
        self.environment = _maestro_environment(data.get("env") or {}, self.path)
        self.globals = data.get("global.parameters") or {}
        self.study = data["study"]
        self.batch = {"type": "celery"}  # completed when the samples are acquired
        self._verify_by_maestro(file)
        self.ensemble = dataclasses.replace(self.ensemble, steps=self._step_facts(data, file))
        check_resources(self.ensemble, data, file, ask=launch.OPTIONS.launching)
        if not launch.OPTIONS.parameter_generator:  # which makes parameters that cannot be known here
            for where, name in unknown_tokens(data):
                LOGGER.warning(
                    "%s: %s: $(%s) is no column label, parameter or variable; the shell will take it for a command.",
                    file,
                    where,
                    name,
                )

    def _step_facts(self, data: dict[str, Any], file: str) -> dict[str, StepFacts]:
        queues = task_queues(data, file)
        facts = {}
        for step in data["study"]:
            name, run = step["name"], {"cmd": "", "restart": "", **step["run"]}
            depends = tuple(run.get("depends") or ())
            if name in self._plain:  # what it needs is between the user and Maestro's adapter
                facts[name] = StepFacts(queues=(), depends=depends)
                continue
            facts[name] = StepFacts(
                queues=queues[name],
                depends=depends,
                sampled=name in self._sampled,
                launches=launches(run["cmd"]) or launches(run["restart"]),
                needs=step_needs(self.ensemble, step, file) if self.ensemble else {},
            )
        return facts

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
        """Return Maestro's steps, with the settings of ours under one key of `run`; plain steps as they are.

        `restart` of ours is filled with `cmd` where there is none: Maestro gives such steps a restart limit
        of 0, which means unlimited (datastructures/core/study.py:580, executiongraph.py:215).
        """
        steps: list[Any] = super().get_study_steps()
        for step in steps if self.ensemble else ():
            if step.name not in self._plain:
                self._make_ours(step)
        return steps

    def _make_ours(self, step: Any) -> None:
        settings = {key: step.run[key] for key in STEP_SETTING_KEYS if step.run.get(key) is not None}
        step.run[STEP_KEY] = {"step": step.name, "sampled": step.name in self._sampled, "settings": settings}
        step.run["restart"] = step.run["restart"] or step.run["cmd"]
        for key in STEP_SETTING_KEYS:
            step.run.pop(key, None)


def _sampled_steps(data: Mapping[str, Any]) -> frozenset[str]:
    """Return the steps whose own cmd or restart has a token of a sample."""
    samples = (data.get("merlin") or {}).get("samples")
    if samples is None:
        return frozenset()
    env = data.get("env") or {}
    texts = {name: str(value) for name, value in (env.get("labels") or {}).items()}
    others = {*(data.get("global.parameters") or {}), *(env.get("variables") or {}), *texts}
    spelling = Spelling((*samples["column_labels"], *SAMPLE_TOKENS))

    def is_sampled(run: Mapping[str, Any]) -> bool:
        used = {name for key in ("cmd", "restart") for name in names_in(substitute(run.get(key) or "", texts))}
        return any(spelling.of(name) for name in used - others)

    return frozenset(step["name"] for step in data["study"] if is_sampled(step["run"]))


# --- reading -----------------------------------------------------------------------------------------


def _text_of(path: str) -> str | None:
    """Return the text of a file; None for what is no file that can be read, which is left to Maestro.

    A pipe can be read only once, so it is left to Maestro as well, which gives us its stream.
    """
    try:
        return Path(path).read_text() if Path(path).is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


class _Replay(io.StringIO):
    """A stream that has been read, to be read again under its own name (YAML's messages have it)."""

    name: str


def _replay(stream: Any, text: Any) -> Any:
    if not isinstance(text, str) or text is stream:
        return text
    replay = _Replay(text)
    replay.name = str(getattr(stream, "name", "<file>"))
    return replay


def _ensemble_data(text: Any, file: str) -> dict[str, Any] | None:
    """Return the specification as a dictionary when it has anything of ours, else None.

    Text that is no YAML and has no ``merlin`` block is left to Maestro, which says what it always says.

    Raises:
        SpecificationError: text with a ``merlin`` block is no plain YAML.
    """
    if text is None:
        return None
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as cause:
        if isinstance(text, str) and re.search(r"^merlin\s*:", text, re.MULTILINE):
            raise SpecificationError.at(file, *_yaml_problem(cause)) from cause
        return None
    if not isinstance(data, dict):
        return None
    for block in data:
        if difflib.get_close_matches(str(block), ["merlin"], cutoff=0.8) and block != "merlin":
            raise SpecificationError.at(file, "", f"unknown block '{block}'; did you mean 'merlin'?")
    return data if "merlin" in data or _has_step_key(data.get("study")) else None


def _yaml_problem(cause: Exception) -> tuple[str, str]:
    """Return where YAML has a problem, and which."""
    mark = getattr(cause, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(cause, "problem", None) or str(cause)
    return where, f"this is no YAML: {problem}; look at the indentation, quotes and colons there and before."


def _has_step_key(study: Any) -> bool:
    """Tell whether a step has a key that is Merlin's and not Maestro's."""
    if not isinstance(study, list):
        return False
    runs = [step["run"] for step in study if isinstance(step, dict) and isinstance(step.get("run"), dict)]
    return any(key in run for run in runs for key in STEP_SETTING_KEYS)


def _maestro_part(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in STEP_SETTING_KEYS}


def _maestro_environment(env: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """Return `env` as Maestro can take it: no lists among the variables, no `$(SPECROOT)` in `OUTPUT_PATH`.

    Maestro reads `OUTPUT_PATH` before it knows `SPECROOT` (maestro.py:380, 437), which Merlin's users
    write there.
    """
    if not env.get("variables"):
        return dict(env)
    variables = {n: str(v) if isinstance(v, list) else v for n, v in env["variables"].items()}
    if path and isinstance(variables.get("OUTPUT_PATH"), str):
        root = str(Path(path).absolute().parent)
        variables["OUTPUT_PATH"] = substitute(variables["OUTPUT_PATH"], {"SPECROOT": root})
    return {**env, "variables": variables}


def _ensemble_settings(
    data: dict[str, Any], resources: ResourceSettings, plain: frozenset[str], file: str
) -> EnsembleSettings:
    merlin = data.get("merlin") or {}
    queues = task_queues(data, file)
    check_groups(resources, queues, data, file)
    queues = {step: names for step, names in queues.items() if step not in plain}
    return EnsembleSettings(
        batch=schema.build(BatchSettings, data.get("batch") or {}),
        resources=with_task_queues(resources, queues, data, file),
        samples=schema.build(SampleSettings, merlin["samples"]) if "samples" in merlin else None,
    )
