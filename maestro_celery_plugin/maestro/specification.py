"""The specification: Maestro alone reads one without an ensemble, and `ensemble_specification.py` one with an ensemble.

An ensemble is a ``merlin`` block, or a step key that Maestro does not have.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import io
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from maestrowf.specification.yamlspecification import YAMLSpecification

from maestro_celery_plugin import python_processes
from maestro_celery_plugin.errors import EnsembleError, SpecificationError, StudyError
from maestro_celery_plugin.imports import one_thread
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.schemas import maestro_schemas
from maestro_celery_plugin.maestro.yaml_text import load
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.spec.problems import Checked, Problem, passed

__all__ = [
    "WORDS_OF_ENSEMBLES",
    "Specification",
    "find_ensemble",
    "load_ensemble",
    "without_log_of_maestro",
    "yaml_problem",
]

# A word of each block and step key that Maestro does not have. A backslash may stand for any letter.
WORDS_OF_ENSEMBLES = re.compile(
    r"merlin|resources|samples|task_queue|max_|retry_|time_request|gpus per task|resource set|launch[ _]distribution|"
    r"exit_on_error|shell|batch|signal|slurm|lsf|flux|\\"
)


class Specification(YAMLSpecification):  # type: ignore[misc]
    """The reader of specifications that replaces Maestro's."""

    ensemble: None = None
    environment: Any
    # The last text without an ensemble: Maestro passes the text of each file to this class a second time.
    text_without_ensemble: Any = None

    @classmethod
    def load_specification(cls, path: str) -> Any:
        """Read and verify the file.

        Raises:
            SpecificationError: the ensemble specification cannot be used.
            Exception: an error of Maestro in a specification without an ensemble.
        """
        file = Path(path).name
        data = _ensemble_data(_text_of(path), file)
        if data is not None:
            return _read_ensemble(data, file, _origin_of(path))
        if OPTIONS.overrides.no_errors:
            raise SpecificationError.at(file, "", "--no-errors: only studies with an ensemble have it; remove it.")
        if OPTIONS.overrides.is_given:
            _check_overrides(path)
        specification = super().load_specification(path)
        if OPTIONS.parent is not None and OPTIONS.launching and not OPTIONS.dry_run:
            from maestro_celery_plugin.maestro.joining import join

            join(specification.name, specification.output_path, None)
        return specification

    def verify(self) -> None:
        """Insert the values of the command line, which are variables like others, and let Maestro verify the rest."""
        if OPTIONS.overrides.is_given:
            self.environment = OPTIONS.overrides.applied_to(self.environment, Path(self.path or "").name)
        super().verify()

    @classmethod
    def load_specification_from_stream(cls, stream: Any) -> Any:
        """Read and verify a stream, or a text, as `load_specification` does with a file."""
        text = stream.read() if hasattr(stream, "read") else stream
        file = Path(str(getattr(stream, "name", "specification"))).name
        data = _ensemble_data(text, file)
        if data is None:
            return super().load_specification_from_stream(_replay(stream, text))
        return _read_ensemble(data, file, None)


def load_ensemble(path: Path, overrides: Overrides | None = None) -> Any:
    """Read the specification of an ensemble for a command of the plugin.

    Args:
        path: The specification.
        overrides: What the command line of the launch has set in place of it.

    Raises:
        SpecificationError: the file is no specification, has no ensemble, or cannot be used.
    """
    OPTIONS.overrides = overrides or Overrides()
    _check_has_blocks(path)
    try:
        with without_log_of_maestro():
            specification = Specification.load_specification(str(path))
    except EnsembleError:
        raise
    except Exception as cause:  # Maestro raises errors of any type for a file that is no specification
        text = " ".join(str(getattr(cause, "message", cause)).split())
        raise SpecificationError.at(
            path.name, "", f"Maestro cannot read it as a specification ({text}); give the YAML file of a study."
        ) from cause
    if specification.ensemble is None:
        raise SpecificationError.at(path.name, "", "there is no 'merlin' block, so that the study has no workers.")
    return specification


def _check_has_blocks(path: Path) -> None:
    """Check that a file may be a specification; the loader reports what else is wrong.

    Raises:
        SpecificationError: it is another text, such as a table.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        return
    if not isinstance(data, dict):
        raise SpecificationError.at(
            path.name, "", "the file has no blocks such as 'description' and 'study'; give the YAML file of a study."
        )


@contextlib.contextmanager
def without_log_of_maestro() -> Iterator[None]:
    """Disable the logger of Maestro's specification, which would log a traceback for each error."""
    maestro_logger = logging.getLogger(YAMLSpecification.__module__)
    disabled, maestro_logger.disabled = maestro_logger.disabled, True
    try:
        yield
    finally:
        maestro_logger.disabled = disabled


def _read_ensemble(data: dict[str, Any], file: str, path: str | None) -> Any:
    _prepare_processes()
    if OPTIONS.launching:
        # Imports create many objects and no garbage; searches for it would take an eighth of the time. They begin again
        # when the conductor waits for the first time (`touchpoints.py`).
        gc.disable()
    # Imported in this function only: it imports packages that would slow down a study without an ensemble.
    with contextlib.nullcontext() if OPTIONS.parameter_generator else one_thread():
        from maestro_celery_plugin.maestro.ensemble_specification import EnsembleSpecification

    return EnsembleSpecification.read(data, file, path)


def _origin_of(path: str) -> str:
    """Return the user's file of a version of a specification in ``merlin_info``; any other file itself.

    A study may be launched from such a version (`study/provenance.py`). `$(SPECROOT)` is then the directory of the
    user's file, so that Maestro must take this file for the specification as well.
    """
    version = Path(path).absolute()
    if version.parent.name != "merlin_info":
        return path
    from maestro_celery_plugin.study.plan import StudyPlan

    try:
        plan = StudyPlan.read(version.parent.parent)
    except StudyError:
        return path
    if plan.specification is None or str(version) not in plan.specification_files.values():
        return path
    if not plan.specification.is_file():
        return path
    if OPTIONS.launching and OPTIONS.arguments is not None:
        OPTIONS.version, OPTIONS.arguments.specification = version, str(plan.specification)
    return str(plan.specification)


def _check_overrides(path: str) -> None:
    """Check what the command line sets in a specification without an ensemble, whose errors Maestro would also log.

    Maestro reports a specification that cannot be read.

    Raises:
        SpecificationError: there is no such variable, or the study has no samples.
    """
    try:
        data = load(Path(path).read_text())[0] if Path(path).is_file() else None
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        return
    if isinstance(data, dict):
        file = Path(path).name
        OPTIONS.overrides.samples_of(data.get("merlin"), file)
        OPTIONS.overrides.applied_to(data.get("env"), file)


def _prepare_processes() -> None:
    """Start to import what the workers need, at the same time as the imports of this process."""
    if OPTIONS.launching and OPTIONS.foreground and not OPTIONS.dry_run:
        python_processes.prepare()


def _text_of(path: str) -> str | None:
    """Return the text of a file; None for a file that cannot be read, because Maestro reports this error.

    The result is also None for a pipe, which can be read only once: Maestro passes its stream to this class.
    """
    try:
        data = Path(path).read_bytes() if Path(path).is_file() else None
    except OSError:
        return None
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError as cause:
        if _has_merlin(data):
            raise SpecificationError.at(Path(path).name, "", f"the file is not UTF-8 ({cause}); convert it.") from cause
        return None


class _Replay(io.StringIO):
    """A stream that can be read again, with the name of the original stream for the messages of YAML."""

    name: str


def _replay(stream: Any, text: Any) -> Any:
    if not isinstance(text, str) or text is stream:
        return text
    replay = _Replay(text)
    replay.name = str(getattr(stream, "name", "<file>"))
    return replay


def _has_merlin(data: bytes) -> bool:
    """Tell whether the text of a specification, which may be no valid YAML, has a ``merlin`` block.

    In UTF-16, every second byte of these letters is 0.
    """
    return re.search(rb"^merlin\s*:", data.replace(b"\0", b""), re.MULTILINE) is not None


def _may_have_ensemble(text: Any) -> bool:
    """Tell whether a specification has a word of an ensemble; without one, only Maestro needs to parse it."""
    return not isinstance(text, str) or WORDS_OF_ENSEMBLES.search(text.replace("\0", "")) is not None


def _ensemble_data(text: Any, file: str) -> dict[str, Any] | None:
    """Return the specification as a dictionary if it has an ensemble, else None.

    Maestro reports invalid YAML that has no ``merlin`` block.

    Raises:
        SpecificationError: text with a ``merlin`` block is not valid YAML, its name is misspelt, or a block of an
            ensemble has a key twice.
    """
    if text is None or text == Specification.text_without_ensemble or not _may_have_ensemble(text):
        return None
    has_merlin = isinstance(text, str) and _has_merlin(text.encode(errors="replace"))
    if has_merlin:
        _prepare_processes()
    try:
        data, repeated = load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        if has_merlin:
            raise SpecificationError.at(file, *yaml_problem(cause)) from cause
        return None
    if not isinstance(data, dict):
        return None
    ensemble: dict[str, Any] | None = passed(find_ensemble(data, repeated), file)
    if ensemble is None:
        Specification.text_without_ensemble = text
    return ensemble


def find_ensemble(data: dict[str, Any], repeated: Iterable[tuple[str, str]]) -> Checked[dict[str, Any] | None]:
    """Return the specification, with the right name of the `merlin` block; None if it has no ensemble.

    Args:
        data: The specification.
        repeated: The keys that stand twice in a block; a fault if the specification has an ensemble.
    """
    named: dict[str, Any] = {}
    for block, value in data.items():
        if block != "merlin" and _resembles_merlin(block, value):
            yield Problem("", f"unknown block '{block}'; did you mean 'merlin'?")
            named.setdefault("merlin", value)
        else:
            named[block] = value
    if "merlin" not in named and not _has_step_key(named.get("study")):
        return None
    for where, text in repeated:
        yield Problem(where, text)
    return named


def _resembles_merlin(name: Any, block: Any) -> bool:
    """Tell whether a block is a ``merlin`` block with a misspelt name: the name is similar, and it has a key of it.

    Maestro ignores other blocks that it does not know.
    """
    is_similar = bool(difflib.get_close_matches(str(name), ["merlin"], cutoff=0.8))
    return is_similar and isinstance(block, dict) and not block.keys().isdisjoint(("resources", "samples"))


def yaml_problem(cause: Exception) -> tuple[str, str]:
    """Return the position and the message of a YAML error."""
    mark = getattr(cause, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(cause, "problem", None) or " ".join(str(cause).split())
    return where, f"invalid YAML: {problem}; check the indentation, quotes and colons in this line and before it."


def _has_step_key(study: Any) -> bool:
    """Tell whether a step has a key of the plugin, which Maestro alone does not support."""
    if not isinstance(study, list):
        return False
    runs = [step["run"] for step in study if isinstance(step, dict) and isinstance(step.get("run"), dict)]
    of_maestro = maestro_schemas()["STUDY_STEP"]["properties"]["run"]["properties"]
    others = {key for run in runs for key in run if key not in of_maestro}
    if not others:
        return False
    from maestro_celery_plugin.spec.checks import STEP_SETTING_KEYS

    return not others.isdisjoint(STEP_SETTING_KEYS)
