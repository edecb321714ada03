"""Validation: all problems of a specification that a launch would stop at, without a launch.

The checks are those of a launch (`ensemble_specification.py`). For a specification without an ensemble, Maestro decides
whether it is valid; the checks of its blocks then say why not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from maestrowf.specification.yamlspecification import YAMLSpecification

from maestro_celery_plugin.config.tokens import names_in, substitute
from maestro_celery_plugin.errors import EnsembleError, SampleError, SpecificationError, StudyError
from maestro_celery_plugin.maestro.command_line import check_place, check_specification_file, check_study_name
from maestro_celery_plugin.maestro.ensemble_detection import find_ensemble, yaml_problem
from maestro_celery_plugin.maestro.ensemble_specification import EnsembleSpecification
from maestro_celery_plugin.maestro.launch import check_batch_systems, check_notify
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.parameter_generator import generate
from maestro_celery_plugin.maestro.schemas import shipped_schemas
from maestro_celery_plugin.maestro.specification import without_log_of_maestro
from maestro_celery_plugin.maestro.yaml_text import lines_of, load
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples.own_table import has_objects
from maestro_celery_plugin.spec.checks import check_blocks, check_shape
from maestro_celery_plugin.spec.dag import check_graph
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.spec.problems import FaultError, Kind, Problem, collected
from maestro_celery_plugin.spec.variables import Variables

__all__ = ["STDIN", "Finding", "Generator", "faults_of", "validate"]

# The name of the standard input on a command line.
STDIN = "-"
# Bytes of a sample file whose rows are checked, within seconds; the launch checks larger ones as well.
_LARGEST_TABLE = 1 << 27


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem, and the line of its key in the file; line 1 for a problem of the whole file."""

    line: int
    problem: Problem


@dataclasses.dataclass(frozen=True)
class Generator:
    """What generates the parameters in place of the specification.

    Attributes:
        file: The Python file of `--pgen`.
        arguments: The arguments of `--pargs`.
    """

    file: str
    arguments: Mapping[str, Any]


def validate(name: str, overrides: Overrides | None = None, generator: Generator | None = None) -> list[Finding]:
    """Return the problems of a specification, in the order of the file.

    Args:
        name: The file; `-` for the standard input.
        overrides: What the command line of the launch would set in place of the specification.
        generator: What would generate its parameters.
    """
    text = ""
    OPTIONS.overrides, OPTIONS.parameter_generator = overrides or Overrides(), generator is not None

    def problems() -> Iterator[Problem]:
        nonlocal text
        text = _text_of(name)
        yield from _problems_of(text, None if name == STDIN else name, generator)

    found = collected(problems())
    lines = _lines_of(text, {problem.where for problem in found})
    return sorted((Finding(lines[problem.where], problem) for problem in found), key=lambda finding: finding.line)


def faults_of(text: str, path: str, lines_in: str) -> list[Finding]:
    """Return the faults of a specification, without what only this machine lacks.

    Args:
        text: The specification.
        path: Its file.
        lines_in: The text with the lines of the findings.
    """
    OPTIONS.overrides, OPTIONS.parameter_generator = Overrides(), False
    faults = [problem for problem in collected(_problems_of(text, path, None)) if problem.kind is Kind.FAULT]
    lines = _lines_of(lines_in, {problem.where for problem in faults})
    return [Finding(lines[problem.where], problem) for problem in faults]


def _text_of(name: str) -> str:
    """Return the text of a file.

    Raises:
        FaultError: it cannot be read, is empty, or is not UTF-8.
    """
    try:
        if name == STDIN:
            return sys.stdin.buffer.read().decode()
        check_specification_file(name)
        return Path(name).read_bytes().decode()
    except UnicodeDecodeError as cause:
        raise FaultError("", f"the file is not UTF-8 ({cause}); convert it.") from cause
    except SpecificationError as cause:
        raise FaultError("", cause.problem or str(cause).removeprefix(f"'{Path(name)}' ")) from cause
    except OSError as cause:
        raise FaultError("", f"the file cannot be read ({cause.strerror}).") from cause


def _lines_of(text: str, places: set[str]) -> dict[str, int]:
    """Return the line of each place; a problem of the YAML text has the line as its place."""
    lines = dict.fromkeys(places, 1)
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        lines.update(lines_of(text, places))
    marked = {place: re.match(r"line (\d+)", place) for place in places}
    return lines | {place: int(match[1]) for place, match in marked.items() if match}


def _problems_of(text: str, path: str | None, generator: Generator | None) -> Iterator[Problem]:
    try:
        data, repeated = load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        yield Problem(*yaml_problem(cause))
        return
    if not isinstance(data, dict):
        yield Problem("", "the file has no blocks such as 'description' and 'study'; give the YAML file of a study.")
        return
    ensemble = yield from find_ensemble(data, repeated)
    if ensemble is not None:
        yield from _ensemble_problems(ensemble, path, generator)
        return
    yield from (Problem(where, problem, Kind.WARNING) for where, problem in repeated)
    if OPTIONS.overrides.is_given:
        data["env"] = OPTIONS.overrides.applied_to(data.get("env") or {}, path or "")
        text = yaml.safe_dump(data)
    yield from _plain_problems(data, text)


def _ensemble_problems(data: dict[str, Any], path: str | None, generator: Generator | None) -> Iterator[Problem]:
    specification = EnsembleSpecification()
    specification.path = path
    faults = 0
    for problem in specification.checks(data, is_launch=True):
        faults += problem.kind is Kind.FAULT
        yield problem
    if not hasattr(specification, "ensemble"):
        return
    yield from check_study_name(specification.name)
    try:
        check_place(Path(specification.output_path or ".").absolute(), "OUTPUT_PATH")
    except StudyError as cause:
        text = str(cause).removeprefix("OUTPUT_PATH: ")
        yield Problem("env.variables.OUTPUT_PATH", text, Kind.MACHINE)
    yield from check_batch_systems(specification.ensemble)
    yield from check_notify(specification.ensemble, _directory(specification))
    yield from _check_sample_file(specification)
    if generator is not None and not faults:
        yield from _check_generated(specification, generator)


def _check_generated(specification: EnsembleSpecification, generator: Generator) -> Iterator[Problem]:
    """Check the parameters that a Python file generates, as Maestro calls it (maestro.py:430-444)."""
    from maestrowf.datastructures.environment import Variable
    from maestrowf.maestro import load_parameter_generator  # its import takes long

    output = str(Path(specification.output_path or ".").absolute())
    root = Variable("SPECROOT", str(_directory(specification)))
    environment = YAMLSpecification.get_study_environment(specification)  # without the launch
    environment.remove("OUTPUT_PATH")
    environment.add(Variable("OUTPUT_PATH", output))
    environment.add(root)
    arguments = {**generator.arguments, "OUTPUT_PATH": output, "SPECROOT": root}
    try:
        parameters = generate(load_parameter_generator, generator.file, environment, arguments)
    except EnsembleError as cause:
        yield Problem("", str(cause))
        return
    yield from specification.parameter_problems(parameters, is_launch=True)


def _directory(specification: EnsembleSpecification) -> Path:
    return Path(specification.path).absolute().parent if specification.path else Path.cwd()


def _check_sample_file(specification: EnsembleSpecification) -> Iterator[Problem]:
    """Check the sample file, unless a command generates it or its path is known at the launch only."""
    samples = specification.ensemble.samples
    if samples is None or samples.generate:
        return
    root = {"SPECROOT": str(_directory(specification))} if specification.path else {}
    file = substitute(samples.file, root)
    path = Path(file).expanduser()
    if names_in(file):
        return
    if not path.is_file():
        text = f"there is no file '{file}'; check its name, or let generate.cmd write it."
        yield Problem("merlin.samples.file", text, Kind.MACHINE)
    elif path.stat().st_size <= _LARGEST_TABLE and not has_objects(path):
        yield from _check_table(path, samples.column_labels)


def _check_table(path: Path, labels: Sequence[str]) -> Iterator[Problem]:
    """Check the rows and the columns of a sample file, with an index that nobody keeps."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            open_table(path.absolute(), labels, Path(cache)).row(0)
        except SampleError as cause:
            where, _, text = str(cause).partition(": ")
            yield Problem(where, text)
        except OSError as cause:
            yield Problem("merlin.samples.file", f"'{path}' cannot be read: {cause.strerror}.", Kind.MACHINE)


def _plain_problems(data: Mapping[str, Any], text: str) -> Iterator[Problem]:
    """Yield the problems of a specification without an ensemble."""
    try:
        with without_log_of_maestro():
            YAMLSpecification.load_specification_from_stream(io.StringIO(text))
    except Exception as cause:  # Maestro raises errors of any type
        yield from _reasons(data) or [Problem("", " ".join(str(getattr(cause, "message", cause)).split()))]
        return
    yield from check_graph(Variables(data).insert_into(dict(data)))


def _reasons(data: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of blocks that Maestro refuses."""
    blocks = {block: value for block, value in data.items() if block != "batch"}  # Maestro does not verify it
    faults = collected(check_shape(blocks))
    if not faults:
        faults = collected(check_blocks(blocks, shipped_schemas()))
    return [problem for problem in faults if problem.kind is Kind.FAULT]
