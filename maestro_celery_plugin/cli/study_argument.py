"""The argument STUDY of a command: the directory of a study, or the specification with which it was launched."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from maestro_celery_plugin.errors import EnsembleError, StudyError
from maestro_celery_plugin.maestro.specification import load_ensemble
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.spec.overrides import Overrides, variables_of
from maestro_celery_plugin.study.conductor_lock import has_conductor, is_starting
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["study_of"]

# Studies that a message names.
_NAMED = 3


def study_of(
    path: Path, variables: Sequence[str] = (), *, may_have_ended: bool = False, places: Sequence[Path] = ()
) -> Path:
    """Return the directory of a study: the path itself, or the study that was launched with a specification.

    Args:
        path: The directory, or the specification.
        variables: Variables with which the study of the specification was launched, as ``NAME=VALUE``.
        may_have_ended: Whether the study may have ended. Then the newest one of several is meant; stderr says which.
        places: Directories in which the study may also be.

    Raises:
        StudyError: there is no such study, or several are running.
    """
    if path.is_dir():
        return path.absolute()
    if not path.is_file():
        raise StudyError(f"'{path}' is neither the directory of a study nor a specification.")
    search = _Search(path, variables_of(variables), places)
    if may_have_ended:
        found = search.own()
        found = [study for study in found if study.plan.session.exists()] or found  # dry runs last
        if not found:
            raise StudyError(f"No study of '{path}' was found below {search.places_text}. {search.advice()}")
        if len(found) > 1:
            click.echo(f"'{path}' has {len(found)} studies; this is the newest, '{found[-1].directory}'.", err=True)
        return found[-1].directory
    running = [study for study in search.own() if study.is_running]
    if not running:
        raise StudyError(f"No study of '{path}' is running below {search.places_text}. {search.advice()}")
    if len(running) > 1:
        raise StudyError(
            f"{len(running)} studies of '{path}' are running: {_listed(study.text for study in running)}. Give the "
            "directory of one of them."
        )
    return running[0].directory


@dataclasses.dataclass(frozen=True)
class _Found:
    """A study that the search has found."""

    directory: Path
    plan: StudyPlan

    @property
    def is_running(self) -> bool:
        """Whether a conductor runs it, or is about to."""
        return has_conductor(self.plan) or is_starting(self.plan)

    @property
    def text(self) -> str:
        """The directory, and the variables of the launch, which may differ between studies of one specification."""
        values = [f"{name}={value}" for name, value in self.plan.overrides.variables.items()]
        return f"'{self.directory}'" + (f" (--vars {shlex.join(values)})" if values else "")

    @property
    def state(self) -> StudyState | None:
        """The state of the study; None if it cannot be read."""
        try:
            return StatusReader(self.directory).read().state
        except EnsembleError:
            return None


class _Search:
    """The search for the studies of a specification.

    A study is one of a specification if it was launched with this file, or if the file is one of its versions in the
    study. Its name does not matter: several specifications may have the same one, and `-o` replaces it.

    Args:
        path: The specification.
        variables: Values that the launch of the study must have set.
        places: Directories to look in first.

    Raises:
        SpecificationError: the file is no specification of an ensemble.
    """

    def __init__(self, path: Path, variables: Mapping[str, str], places: Sequence[Path] = ()) -> None:
        self._path, self._variables = path, variables
        specification = load_ensemble(path, Overrides(variables=variables))
        self._name = specification.name.replace(" ", "_")
        # maestro.py:436-452: <OUTPUT_PATH>/<name>_<time>, or the directory of `-o`. A user may type the command in
        # another directory than `maestro run`, so relative paths may also begin at the specification.
        output = specification.output_path or "."
        parent = path.absolute().parent
        self._output = Path(output).absolute()
        all_places = [*places, self._output, parent / output, Path(), parent]
        self._places = list(dict.fromkeys(place.resolve() for place in all_places))
        self._has_variables = bool(specification.environment and specification.environment.get("variables"))

    @property
    def places_text(self) -> str:
        """Where the search looks."""
        return _listed(f"'{place}'" for place in dict.fromkeys([self._output, *self._places]))

    def own(self) -> list[_Found]:
        """Return the studies of the specification, the newest one last."""
        return [study for study in self._of_specification() if self._has_values(study)]

    def advice(self) -> str:
        """Return what else was found, and what the user can do."""
        own, sentences = self._of_specification(), list[str]()
        for study in [one for one in reversed(own) if self._has_values(one)][:_NAMED]:
            state = study.state
            words = f"'{study.directory}' is {state.name if state else 'damaged'}"
            if state in (StudyState.INTERRUPTED, StudyState.PENDING, StudyState.CANCELLED):
                words += f"; `maestro-celery resume {shlex.quote(str(study.directory))}` continues it"
            sentences.append(f"{words}.")
        different = [one.text for one in reversed(own) if not self._has_values(one)]
        if different:
            sentences.append(f"These have other values of --vars: {_listed(different)}.")
        others = [
            f"'{study.directory}'" + (f" of '{study.plan.specification}'" if study.plan.specification else "")
            for study in reversed(self._all)
            if study.directory.name.startswith(f"{self._name}_") and not study.plan.is_of(self._path)
        ]
        if others:
            sentences.append(f"Studies of other specifications have this name: {_listed(others)}.")
        of_launch = "the --vars of its launch, or " if self._has_variables and not self._variables else ""
        sentences.append(f"Give {of_launch}the directory of the study, which `maestro run -o` chooses.")
        return " ".join(sentences)

    def _has_values(self, study: _Found) -> bool:
        return self._variables.items() <= dict(study.plan.overrides.variables).items()

    def _of_specification(self) -> list[_Found]:
        """Return the studies of the specification, whatever their variables."""
        return [study for study in self._all if study.plan.is_of(self._path)]

    @functools.cached_property
    def _all(self) -> list[_Found]:
        """All ensemble studies in the places, and the study whose file the path is; the newest one comes last."""
        directories = {path.parent.resolve() for place in self._places for path in place.glob("*/batch.info")}
        directories.update(parent for parent in self._path.resolve().parents[:3] if (parent / "batch.info").is_file())
        found = []
        for directory in sorted(directories, key=_launch_time):
            with contextlib.suppress(EnsembleError):  # a study of Maestro alone, or a damaged one
                found.append(_Found(directory, StudyPlan.read(directory)))
        return found


def _launch_time(directory: Path) -> float:
    try:
        return (directory / "batch.info").stat().st_mtime
    except OSError:
        return 0.0


def _listed(texts: Iterable[str]) -> str:
    """Return the first texts, and how many others there are."""
    all_texts = list(texts)
    more = f" and {len(all_texts) - _NAMED} more" if len(all_texts) > _NAMED else ""
    return ", ".join(all_texts[:_NAMED]) + more
