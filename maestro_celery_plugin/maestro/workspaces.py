"""The workspaces of step records, before Maestro makes them: two step records must not have the same one.

Maestro drops most special characters from the name of a directory (utils.py:199), so that values which differ only in
these characters have one directory. Each step record would take the results of the other one for its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

from maestrowf.datastructures.core.study import WSREGEX
from maestrowf.utils import make_safe_path

from maestro_celery_plugin.spec.problems import Problem

__all__ = ["check_workspaces"]

# Maestro's `StudyStep`, `ParameterGenerator` and `Combination`.
Step: TypeAlias = Any
Parameters: TypeAlias = Any
Combination: TypeAlias = Any

# Directories and files of a study that are not workspaces; the others have the name of the study.
_TAKEN = ("batch.info", "logs", "merlin_info", "meta", "status.csv")
_SUFFIXES = (".pkl", ".study.pkl", ".txt")
_RULE = "Maestro keeps only letters, digits and '-_.()' in names of directories"


@dataclasses.dataclass(frozen=True)
class _Record:
    """A step record: its step, the text of each parameter that it uses, and Maestro's name of the combination."""

    step: str
    values: tuple[tuple[str, str], ...]
    combination: str

    @property
    def text(self) -> str:
        """The step record in a message."""
        return ", ".join(f"{name}={value}" for name, value in self.values)


def check_workspaces(
    study: str, file: str, steps: Sequence[Step], parameters: Parameters, *, hashes_names: bool
) -> Iterator[Problem]:
    """Check that each step record has a directory of its own.

    Args:
        study: Name of the study.
        file: Name of its specification, of which Maestro makes a copy.
        steps: Maestro's steps.
        parameters: Maestro's parameters.
        hashes_names: Whether Maestro numbers the directories of the combinations (`--hashws`).
    """
    found: dict[str, _Record] = {}
    for record in _records(steps, parameters):
        yield from _check_step(record.step, (*_TAKEN, file, *(f"{study}{suffix}" for suffix in _SUFFIXES)))
        directory = make_safe_path("", record.step)
        if record.values and hashes_names:
            directory += f"/{record.combination}"  # Maestro numbers the combinations
        elif record.values and _has_directory(record.combination):
            directory = make_safe_path(directory, record.combination)
        elif record.values:
            text = f"{record.text}: the step record has no directory of its own, because {_RULE}"
            yield Problem(f"study.{record.step}", f"{text}; change the value or its label.")
            continue
        other = found.setdefault(directory, record)
        if (other.step, other.values) != (record.step, record.values):
            yield _shared(other, record, directory)


def _has_directory(name: str) -> bool:
    """Tell whether a step or a combination with this name has a directory below its parent."""
    return make_safe_path("", name) not in ("", ".", "..")


def _check_step(step: str, taken: Collection[str]) -> Iterator[Problem]:
    """Check that the directory of a step is a new one below that of the study."""
    name, where = make_safe_path("", step), f"study.{step}.name"
    if not _has_directory(step):
        yield Problem(where, f"the step has no directory of its own, because {_RULE}; rename the step.")
    if name in taken:
        yield Problem(where, f"the study has other files at '{name}'; rename the step.")


def _shared(one: _Record, other: _Record, directory: str) -> Problem:
    """Return the problem of two step records with one directory."""
    if one.step != other.step:
        problem = f"the steps '{one.step}' and '{other.step}' have one directory, '{directory}', because {_RULE}"
        return Problem(f"study.{other.step}.name", f"{problem}; rename one of them.")
    where, pair = f"study.{one.step}", f"{one.text} and {other.text}"
    if one.combination == other.combination:
        problem = f"{pair} have one name, '{one.combination}', so that Maestro runs only one of them"
        return Problem(
            where, f"{problem}; change the values or the labels of the parameters ('%%' stands for the value)."
        )
    problem = f"{pair} have one directory, '{directory}', because {_RULE}"
    return Problem(where, f"{problem}; change the values or their labels, or use --hashws.")


def _records(steps: Sequence[Step], parameters: Parameters) -> Iterator[_Record]:
    """Yield the step records of a study, as Maestro makes them (study.py:536, 597, 687); some of them repeatedly."""
    combinations = list(parameters)
    for step, used in _used_parameters(steps, parameters).items():
        if not used or not combinations:
            yield _Record(step, (), "")
            continue
        names = sorted(used)
        for combination in combinations:
            values = tuple((name, str(value)) for name, value in combination.get_param_values(names))
            yield _Record(step, values, combination.get_param_string(names))


def _used_parameters(steps: Sequence[Step], parameters: Parameters) -> dict[str, Set[str]]:
    """Return the parameters that each step uses: its own, and those of the steps that it uses without a funnel."""
    used = {step.real_name: set(parameters.get_used_parameters(step)) for step in steps}
    sources = {step.real_name: frozenset(_sources(step)) & used.keys() for step in steps}
    while _spread(used, sources):
        pass
    return dict(used)


def _sources(step: Step) -> Iterator[str]:
    """Yield the steps whose combinations a step repeats: those it depends on, and those whose workspace it uses."""
    depends = [str(parent) for parent in step.run["depends"] or ()]
    funnels = {parent.replace("_*", "").replace("*", "") for parent in depends if "*" in parent}
    yield from (parent for parent in depends if "*" not in parent)
    yield from set(WSREGEX.findall(f"{step.run['cmd']} {step.run['restart']}")) - funnels


def _spread(used: Mapping[str, set[str]], sources: Mapping[str, Iterable[str]]) -> bool:
    """Add the parameters of the sources of each step to it; return whether a step has got a parameter."""
    size = sum(map(len, used.values()))
    for step, of_step in used.items():
        of_step.update(*(used[source] for source in sources[step]))
    return sum(map(len, used.values())) > size
