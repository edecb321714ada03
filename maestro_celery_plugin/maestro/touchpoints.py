"""The touchpoints: the list of Maestro's names that the plugin replaces, each with the line it relies on and a check.

Maestro discovers adapters, but has no other entry points. So the plugin replaces a few names in Maestro's modules after
their import. It neither edits nor copies Maestro's code.

While the plugin itself uses Maestro's adapters, the batch systems correct them: `batch/flux.py` drops an old
connection, `batch/lsf_commands.py` keeps the errors of commands. A study without an ensemble is not affected.
"""

from __future__ import annotations

import argparse
import functools
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError, StudyError
from maestro_celery_plugin.maestro import old_pickles
from maestro_celery_plugin.maestro.after_import import (
    STEP_RECORD_MODULE,
    Touchpoint,
    apply_touchpoints,
)
from maestro_celery_plugin.maestro.argument_parser import EnsembleArgumentParser
from maestro_celery_plugin.maestro.conductor_program import conductor_program
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.this_process import collect_garbage_again, coordinators_here, is_ensemble

__all__ = ["TOUCHPOINTS", "install"]

# Maestro's logger that writes to the log of the study (maestro.py:418).
LOGGER = logging.getLogger("maestrowf.maestro")

# How the command begins that starts the conductor (maestro.py:519).
_CONDUCTOR = "nohup conductor "


def _specification(original: Any) -> Any:
    from maestro_celery_plugin.maestro.specification import Specification

    return Specification


def _argument_parser(original: type[argparse.ArgumentParser]) -> type[argparse.ArgumentParser]:
    return EnsembleArgumentParser


def _start_process(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start_process(cmd: Any, *args: Any, **kwargs: Any) -> Any:
        if OPTIONS.member is not None and _is_conductor(cmd):
            return _request_conductor(cmd, Path(OPTIONS.member.root))
        if OPTIONS.study is not None and _is_conductor(cmd):
            return _start_conductor(cmd, OPTIONS.study)
        return original(_with_own_conductor(cmd), *args, **kwargs)

    return start_process


def _load_parameter_generator(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_parameter_generator(path: str, env: Any, kwargs: Any) -> Any:
        ensembles = [item for item in env.dependencies.values() if hasattr(item, "check_parameters")]  # (`launch.py`)
        if not ensembles:
            return original(path, env, kwargs)
        from maestro_celery_plugin.maestro.parameter_generator import generate

        parameters = generate(original, path, env, kwargs)
        for ensemble in ensembles:
            ensemble.check_parameters(parameters)
        return parameters

    return load_parameter_generator


def _conductor(original: Any) -> Any:
    """Return Maestro's conductor: limits that it changes stay for a later conductor, secrets with their owner.

    In the foreground, a terminal shows the progress of an ensemble.
    """

    class EnsembleConductor(original):  # type: ignore[misc]
        @classmethod
        def update_study_exec(cls, output_path: str, updated_config: dict[str, Any]) -> None:
            super().update_study_exec(output_path, updated_config)
            _store_update(Path(output_path).absolute(), updated_config)

        @classmethod
        def store_study(cls, study: Any) -> None:
            if OPTIONS.overrides.words:
                LOGGER.info("Launched with %s", shlex.join(OPTIONS.overrides.words))
            if OPTIONS.overrides.environment:
                _protect_environment(Path(study.output_path))
            super().store_study(study)

        def monitor_study(self) -> Any:
            if OPTIONS.log is None or OPTIONS.study is None:
                return super().monitor_study()
            from maestro_celery_plugin.maestro.foreground import displayed

            with displayed(OPTIONS.study, OPTIONS.log):
                return super().monitor_study()

    return EnsembleConductor


def _shutil(original: ModuleType) -> ModuleType:
    """Return a module like `shutil` whose `rmtree` first ends the study in the directory that it removes."""
    module = ModuleType(original.__name__, original.__doc__)
    module.__dict__.update(vars(original))
    module.rmtree = functools.partial(_end_and_remove, original.rmtree)  # type: ignore[attr-defined]
    return module


def _sleep(original: Callable[[float], None]) -> Callable[[float], None]:
    return _wait


def _step_record(original: Any) -> Any:
    """Let Maestro's step records have the times of the ledger; the class stays, because Maestro pickles its objects."""
    for name in ("mark_running", "mark_end"):
        setattr(original, name, _with_times(getattr(original, name)))
    return original


def _execution_graph(original: Any) -> Any:
    """Let Maestro's graph take samples that were added; the class stays, because Maestro pickles its objects."""
    check_states, check_completion = original.check_study_status, original._check_study_completion

    @functools.wraps(check_states)
    def check_study_status(self: Any) -> Any:
        code, states = check_states(self)
        if coordinators := coordinators_here():
            from maestro_celery_plugin.maestro.growing import take_additions

            states = take_additions(self, coordinators, states)
        return code, states

    @functools.wraps(check_completion)
    def _check_study_completion(self: Any) -> Any:
        status = check_completion(self)
        if status.name in ("FINISHED", "FAILURE") and (coordinators := coordinators_here()):
            from maestro_celery_plugin.maestro.growing import take_last_additions

            if take_last_additions(self, coordinators):
                return type(status).RUNNING
        return status

    original.check_study_status, original._check_study_completion = check_study_status, _check_study_completion
    return original


def _with_times(mark: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(mark)
    def mark_with_times(self: Any, *args: Any) -> None:
        mark(self, *args)
        if self.jobid and (coordinators := coordinators_here()):
            from maestro_celery_plugin.maestro.record_times import set_times

            set_times(self, coordinators)

    return mark_with_times


TOUCHPOINTS = (
    Touchpoint(
        "maestrowf.specification",
        "YAMLSpecification",
        "maestro.py:42 imports it, maestro.py:371 loads the specification with it",
        _specification,
        replacement="maestro_celery_plugin.maestro.specification",
    ),
    Touchpoint(
        "maestrowf.maestro",
        "ArgumentParser",
        "maestro.py:32 imports it, setup_argparser builds the command line with it",
        _argument_parser,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "start_process",
        "maestro.py:528 starts 'nohup conductor ...' with it",
        _start_process,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "load_parameter_generator",
        "maestro.py:444 generates the parameters of --pgen with it",
        _load_parameter_generator,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "Conductor",
        "maestro.py:310 writes the request of `maestro update` with it, maestro.py:497 stores the study, "
        "maestro.py:514 runs it in the foreground",
        _conductor,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "shutil",
        "maestro.py:395 removes the directory of an earlier study with it, after the consent of the user",
        _shutil,
    ),
    Touchpoint(
        STEP_RECORD_MODULE,
        "_StepRecord",
        "executiongraph.py:458 makes step records with it, whose methods take the times of polls; `restarts` and "
        "`restart_limit` tell whether one that times out restarts",
        _step_record,
    ),
    Touchpoint(
        STEP_RECORD_MODULE,
        "ExecutionGraph",
        "executiongraph.py:329 defines it, whose `execute_ready_steps` asks `check_study_status` for the states on "
        "which it acts, and `_check_study_completion` for the end; its sets and `_dependencies` decide what it submits",
        _execution_graph,
    ),
    Touchpoint("maestrowf.conductor", "sleep", "conductor.py:425 waits for the next poll with it", _sleep),
)


# --- the replacements --------------------------------------------------------------------------------


def _store_update(directory: Path, update: dict[str, Any]) -> None:
    """Store the limits of `maestro update` for a later conductor; the one that runs has received them."""
    if not is_ensemble(directory):
        return
    from maestro_celery_plugin.maestro.limits import store_update
    from maestro_celery_plugin.study.plan import StudyPlan

    try:
        store_update(StudyPlan.read(directory), update)
    except (EnsembleError, OSError) as error:
        print(f"maestro: warning: a resume of '{directory}' will not know these settings: {error}", file=sys.stderr)


def _protect_environment(study: Path) -> None:
    """Create the file to which the conductor will write its whole environment (study.py:336), for the owner only."""
    file = study / "meta" / "environment.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)


def _end_and_remove(remove: Callable[..., None], path: Any, *args: Any, **kwargs: Any) -> None:
    """End the ensemble study in a directory, then remove the directory; a directory without one is only removed."""
    if is_ensemble(Path(path)):
        from maestro_celery_plugin.maestro.earlier_study import end_earlier_study

        try:
            end_earlier_study(Path(path).absolute())
        except OSError as cause:
            raise StudyError(
                f"--out: the earlier study in '{path}' cannot be ended ({cause}); correct this, or use another "
                "directory."
            ) from cause
    remove(path, *args, **kwargs)


def _with_own_conductor(command: Any) -> Any:
    """Return the command with the conductor of the same environment as `maestro`, which may not be on PATH."""
    if not _is_conductor(command):
        return command
    return f"nohup {shlex.quote(conductor_program())} {command.removeprefix(_CONDUCTOR)}"


def _start_conductor(command: str, study: Path) -> subprocess.Popen[bytes]:
    """Start the conductor of an ensemble as Maestro would, but without a shell.

    Maestro does not quote the directory of the study, which may have characters that the shell interprets. And some
    shells do not pass on the functions of other shells, such as `module`, which the samples then would not have.
    """
    OPTIONS.is_conducted = True
    words, log = _parts_of(command, study)
    with Path(log).open("wb") as output:
        command_line = ["nohup", *words]
        process = subprocess.Popen(command_line, stdout=output, stderr=output)
    from maestro_celery_plugin.maestro.joining import note_conductor

    note_conductor(study, process.pid)
    return process


def _request_conductor(command: str, study: Path) -> None:
    """Let the host of the session start the conductor of a study that a sample or a step has started."""
    from maestro_celery_plugin.maestro.nested import request_conductor

    request_conductor(*_parts_of(command, study))


def _parts_of(command: str, study: Path) -> tuple[list[str], str]:
    """Return the words of Maestro's command that starts a conductor, and the file for its output."""
    options, _, log = command.removeprefix(_CONDUCTOR).removesuffix(" 2>&1").partition(f" {study} > ")
    return [conductor_program(), *options.split(), str(study)], log


def _is_conductor(command: Any) -> bool:
    return isinstance(command, str) and command.startswith(_CONDUCTOR)


def _wait(seconds: float) -> None:
    """Wait until the next poll, and watch the ensembles of this process meanwhile.

    If a step has ended in the conductor itself, do not wait: other steps may depend on it. A conductor without an
    ensemble has not imported the modules, and does not need them.
    """
    lock = sys.modules.get("maestro_celery_plugin.study.conductor_lock")
    coordinators = coordinators_here()
    if lock and lock.take_poll_request():
        for coordinator in coordinators:
            coordinator.begin_poll()
        return
    collect_garbage_again()
    if not coordinators:
        clock.sleep(seconds)
    for coordinator in coordinators:
        coordinator.wait(seconds / len(coordinators))


# --- the installation --------------------------------------------------------------------------------


def install() -> None:
    """Replace each name, now or after the import of its module; the entry module calls this function."""
    old_pickles.install()
    apply_touchpoints(TOUCHPOINTS)
