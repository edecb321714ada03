"""Corrections: a study that has begun takes a corrected specification for what has not finished.

Maestro's pickle of the study has the steps, ``batch.info`` the settings. Both are replaced, one after the other; a note
tells a later resume if that was interrupted. All versions of the specification stay in the study:

merlin_info/specifications/
  1.yaml 2.yaml ...   the version of the launch, and each version after it
  incomplete          exists while the files are replaced; the number of the new version, and its file
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import DamagedFileError, SpecificationError, StudyError
from maestro_celery_plugin.files import read_text, replaced, write_atomically
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.specification import load_ensemble
from maestro_celery_plugin.maestro.step_graph import GraphNode, graph_of, load_study, pickle_of
from maestro_celery_plugin.spec.differences import Difference, differences
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import write_specifications

__all__ = ["Correction", "check_complete", "note_of_change", "words_of"]

_TAKES = (
    "`resume --spec` takes other commands, resources and worker arguments only; for this change, launch a new study."
)
_SHOWN = 60


class Correction:
    """A corrected specification for a study.

    Args:
        plan: The study.
        file: The corrected specification.

    Attributes:
        changes: What has changed.

    Raises:
        SpecificationError: the specification cannot be used, or has a change that the study cannot take.
        StudyError: a file of the study cannot be read.
    """

    def __init__(self, plan: StudyPlan, file: Path) -> None:
        self._plan, self._file = plan, file.absolute()
        self._text = _text_of(self._file)
        OPTIONS.batch_defaults = plan.batch_defaults  # not those of the machine of this command
        self._specification = load_ensemble(self._file, plan.overrides)
        self.changes = differences(_data_of(copy_of(plan)), parsed_yaml(self._text))
        for change in self.changes:
            if not change.is_correction:
                raise SpecificationError.at(file.name, change.where, f"{_change_words(change)}; {_TAKES}")
        self._check_task_queues()
        self._pickle = self._corrected_pickle()

    def _corrected_pickle(self) -> bytes:
        """Return Maestro's pickle of the study with the corrected steps.

        Raises:
            SpecificationError: the study would have other step records.
        """
        import dill  # with Maestro's pickles only

        study = load_study(self._plan.root)
        for step in self._specification.get_study_steps():
            _apply_environment(step, study.environment)
            study.values[step.real_name] = step
        pickled: bytes = dill.dumps(study)
        self._check_graph(graph_of(load_study(self._plan.root)), graph_of(study))
        return pickled

    def _check_graph(self, old: list[GraphNode], new: list[GraphNode]) -> None:
        before, after = ([dataclasses.replace(node, text="") for node in nodes] for nodes in (old, new))
        changed = {*before} ^ {*after}
        for node in (*before, *after):
            if node in changed:
                raise SpecificationError.at(
                    self._file.name,
                    f"study.{node.step}.run",
                    f"with this change, the step would have other parameters, samples or dependencies; {_TAKES}",
                )

    def _check_task_queues(self) -> None:
        """Check that each step keeps its task queues: a `batch` of its own may give it workers of its own.

        Raises:
            SpecificationError: a step would have another task queue.
        """
        before = self._plan.settings.steps
        for name, facts in self._specification.ensemble.steps.items():
            if name in before and before[name].queues != facts.queues:
                problem = f"with this change, other workers would run the step; {_TAKES}"
                raise SpecificationError.at(self._file.name, f"study.{name}.run.batch", problem)

    def apply(self) -> StudyPlan:
        """Let the study take the corrected specification; return its new plan.

        Raises:
            OSError: a file of the study cannot be written; the next resume says that this must be repeated.
        """
        # The samples that have finished have no marker if the specification of the launch did not mention it.
        markers = self._plan.settings.finished_markers
        settings = replace(self._specification.ensemble, finished_markers=markers)
        versions = _versions_of(self._plan)
        plan = dataclasses.replace(self._plan, settings=settings, specification=self._origin())
        versions.mkdir(exist_ok=True)
        if not (versions / "1.yaml").exists():
            write_atomically(versions / "1.yaml", _text_of(copy_of(self._plan)))
        number = 1 + max(int(path.stem) for path in versions.glob("*.yaml") if path.stem.isdigit())
        write_atomically(versions / f"{number}.yaml", self._text)
        write_atomically(versions / "incomplete", f"{number}\n{plan.specification}")
        with replaced(pickle_of(plan.root)) as pickle:
            pickle.write(self._pickle)
        write_specifications(plan.specification_files, self._file, self._specification.texts(plan))
        write_atomically(copy_of(plan), self._text)
        write_atomically(plan.root / "batch.info", yaml.dump(plan.to_batch()))
        (versions / "incomplete").unlink()
        return plan

    def _origin(self) -> Path:
        """Return the file of the user; a correction is repeated with the version in the study."""
        note = _versions_of(self._plan) / "incomplete"
        if self._file.parent != note.parent or not note.exists():
            return self._file
        return Path(read_text(note).partition("\n")[2])


def copy_of(plan: StudyPlan) -> Path:
    """Return the study's copy of its specification.

    Raises:
        StudyError: the study does not know its specification.
    """
    if plan.specification is None:
        raise StudyError(
            f"The study '{plan.root}' was launched by an earlier release, which has not stored where its specification "
            "is; launch a new study with the corrected specification."
        )
    return plan.root / plan.specification.name


def check_complete(plan: StudyPlan) -> None:
    """Check that no correction was interrupted.

    Raises:
        StudyError: some files of the study are those of the old version, others those of the new one.
    """
    note = _versions_of(plan) / "incomplete"
    if note.exists():
        number = read_text(note).partition("\n")[0]
        if not number.isdecimal():
            raise DamagedFileError.at(note, "it must have the number of a version")
        version = note.with_name(f"{number}.yaml")
        command = f"maestro-celery resume --spec {version} {plan.root}"
        raise StudyError(f"The correction of the specification was interrupted; repeat it with `{command}`.")


def note_of_change(plan: StudyPlan) -> str:
    """Return a sentence if a user has changed the specification since the launch; an empty text otherwise."""
    file = plan.specification
    try:
        if file is None or not file.is_file() or _text_of(file) == _text_of(copy_of(plan)):
            return ""
        changes = differences(_data_of(copy_of(plan)), _data_of(file))
    except (OSError, StudyError, SpecificationError):
        return ""  # the study does not need the file
    if not changes:
        return ""
    return (
        f"'{file}' has changed since the launch ({words_of(changes)}), but the study keeps its copy; `maestro-celery "
        f"resume --spec {file} {plan.root}` takes the change."
    )


def words_of(changes: list[Difference]) -> str:
    """Return the first keys that have changed."""
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return ", ".join(change.where for change in changes[:3]) + more


def _versions_of(plan: StudyPlan) -> Path:
    return plan.info / "specifications"


def _text_of(file: Path) -> str:
    """Return the text of a specification.

    Raises:
        SpecificationError: it cannot be read.
    """
    try:
        return read_text(file)
    except (OSError, ValueError) as cause:
        raise SpecificationError(f"The specification '{file}' cannot be read: {cause}.") from cause


def _data_of(file: Path) -> Any:
    """Return the content of a specification.

    Raises:
        SpecificationError: it is not YAML with blocks.
    """
    try:
        data = parsed_yaml(_text_of(file))
    except yaml.YAMLError as cause:
        raise SpecificationError(f"The specification '{file}' is not YAML.") from cause
    if not isinstance(data, dict):
        raise SpecificationError(f"The specification '{file}' has no blocks.")
    return data


def _change_words(change: Difference) -> str:
    old, new = (None if value is None else str(value)[:_SHOWN] for value in (change.old, change.new))
    if old is None:
        return f"found '{new}', but the study has no such key"
    return (
        f"the study has '{old}', but the key is missing" if new is None else f"found '{new}', but the study has '{old}'"
    )


def _apply_environment(step: Any, environment: Any) -> None:
    """Insert the study's variables into a step, as Maestro does when it adds a step to a study (study.py:383)."""
    from maestrowf.utils import apply_function

    step.__dict__ = apply_function(step.__dict__, environment.apply_environment)
