"""The specification: Maestro alone reads one without an ensemble, and `ensemble_specification.py` one with an ensemble.

An ensemble is a ``merlin`` block, or a step key that Maestro does not have.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from maestrowf.specification.yamlspecification import YAMLSpecification

from maestro_celery_plugin import python_processes
from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import EnsembleError, SpecificationError, StudyError
from maestro_celery_plugin.imports import one_thread
from maestro_celery_plugin.maestro.ensemble_detection import (
    find_ensemble,
    has_merlin_block,
    may_have_ensemble,
    yaml_problem,
)
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.yaml_text import load
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.spec.problems import passed

__all__ = [
    "Specification",
    "load_ensemble",
    "without_log_of_maestro",
]


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
        OPTIONS.give_log_back()
        if OPTIONS.overrides.no_errors:
            raise SpecificationError.at(file, "", "--no-errors: only studies with an ensemble have it; remove it.")
        if OPTIONS.notify:
            raise SpecificationError.at(file, "", "--notify: only studies with an ensemble have it; remove it.")
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
        data = parsed_yaml(path.read_text())
    except (yaml.YAMLError, OSError, ValueError):
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
        if has_merlin_block(data):
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


def _ensemble_data(text: Any, file: str) -> dict[str, Any] | None:
    """Return the specification as a dictionary if it has an ensemble, else None.

    Maestro reports invalid YAML that has no ``merlin`` block.

    Raises:
        SpecificationError: text with a ``merlin`` block is not valid YAML, its name is misspelt, or a block of an
            ensemble has a key twice.
    """
    if text is None or text == Specification.text_without_ensemble or not may_have_ensemble(text):
        return None
    has_merlin = isinstance(text, str) and has_merlin_block(text.encode(errors="replace"))
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
