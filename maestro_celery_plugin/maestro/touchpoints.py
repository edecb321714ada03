"""The touchpoints: the list of Maestro's names that the plugin replaces, each with the line it relies on and a check.

Maestro discovers adapters, but has no other entry points. So the plugin replaces a few names in Maestro's modules after
their import. It neither edits nor copies Maestro's code.

While the plugin itself uses Maestro's adapters, the batch systems correct them: `batch/flux.py` drops an old
connection, `batch/lsf_commands.py` keeps the errors of commands. A study without an ensemble is not affected.
"""

from __future__ import annotations

import argparse
import functools
import gc
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError, StudyError
from maestro_celery_plugin.maestro import old_pickles
from maestro_celery_plugin.maestro.after_import import (
    STEP_RECORD_MODULE,
    Touchpoint,
    apply_deferred,
    apply_touchpoints,
)
from maestro_celery_plugin.maestro.launch_options import OPTIONS

if TYPE_CHECKING:
    from maestro_celery_plugin.conductor.coordinator import Coordinator

__all__ = ["TOUCHPOINTS", "install"]


def _specification(original: Any) -> Any:
    from maestro_celery_plugin.maestro.specification import Specification

    return Specification


def _argument_parser(original: type[argparse.ArgumentParser]) -> type[argparse.ArgumentParser]:
    return EnsembleArgumentParser


def _start_process(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start_process(cmd: Any, *args: Any, **kwargs: Any) -> Any:
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
    """Return Maestro's conductor, whose requests to change limits also stay for a later conductor."""

    class EnsembleConductor(original):  # type: ignore[misc]
        @classmethod
        def update_study_exec(cls, output_path: str, updated_config: dict[str, Any]) -> None:
            super().update_study_exec(output_path, updated_config)
            _store_update(Path(output_path).absolute(), updated_config)

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


def _with_times(mark: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(mark)
    def mark_with_times(self: Any, *args: Any) -> None:
        mark(self, *args)
        if self.jobid and (coordinators := _coordinators()):
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
        "maestro.py:310 writes the request of `maestro update` with it",
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
    Touchpoint("maestrowf.conductor", "sleep", "conductor.py:425 waits for the next poll with it", _sleep),
)


# --- the replacements --------------------------------------------------------------------------------


class EnsembleArgumentParser(argparse.ArgumentParser):
    """Maestro's parser, with the plugin's options and its part of `maestro run` and `maestro cancel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        apply_deferred()
        if self.prog.endswith("maestro run"):
            self.add_argument(
                "--broker",
                metavar="URL",
                help="Broker of an ensemble study: a Redis or RabbitMQ URL, or 'private'. [Default: that of Merlin's "
                "app.yaml, else a private broker]",
            )
            self.add_argument(
                "--broker-host",
                metavar="ADDRESS",
                help="Address of this machine at which compute nodes reach the private broker. [Default: the loopback "
                "address for local workers, else the address of the host name]",
            )

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line, and add the plugin's part to the command."""
        namespace = super().parse_args(*args, **kwargs)
        if getattr(namespace, "subparser", None) == "run":
            namespace.func = functools.partial(_guarded_run, namespace.func)
        elif getattr(namespace, "subparser", None) == "cancel":
            namespace.func = functools.partial(_guarded_cancel, namespace.func)
        return namespace


def _guarded_run(run: Callable[[Any], int], arguments: argparse.Namespace) -> int:
    """Run `maestro run`, which searches for garbage again at its end."""
    from maestro_celery_plugin.maestro.guarded_run import guarded_run

    try:
        return guarded_run(run, arguments, _failed_samples)
    finally:
        _collect_garbage_again()


def _failed_samples() -> int | None:
    coordinators = _coordinators()
    return sum(coordinator.failed_samples for coordinator in coordinators) if coordinators else None


def _guarded_cancel(cancel: Callable[[Any], int], namespace: argparse.Namespace) -> int:
    """Run `maestro cancel`, which writes a request to the conductor; then cancel the studies without a conductor."""
    ensembles = [Path(one).absolute() for one in namespace.directory if _is_ensemble(Path(one))]
    if not ensembles:
        return cancel(namespace)
    from maestro_celery_plugin.maestro.cancel import cancel_all

    try:
        return cancel_all(functools.partial(cancel, namespace), ensembles)
    except EOFError:
        print("maestro: error: there is no terminal for the answer, and nothing is cancelled; add -y.", file=sys.stderr)
    except KeyboardInterrupt:
        print("maestro: interrupted; `maestro-celery status` shows what still runs.", file=sys.stderr)
    return 1


def _store_update(directory: Path, update: dict[str, Any]) -> None:
    """Store the limits of `maestro update` for a later conductor; the one that runs has received them."""
    if not _is_ensemble(directory):
        return
    from maestro_celery_plugin.maestro.limits import store_update
    from maestro_celery_plugin.study.plan import StudyPlan

    try:
        store_update(StudyPlan.read(directory), update)
    except (EnsembleError, OSError) as error:
        print(f"maestro: warning: a resume of '{directory}' will not know these settings: {error}", file=sys.stderr)


def _is_ensemble(directory: Path) -> bool:
    """Tell whether a directory is that of an ensemble study; True if it cannot be read, so that the user is told.

    A step of a study without an ensemble may make a directory ``merlin_info``.
    """
    try:
        if not (directory / "merlin_info").is_dir():
            return False
        batch = (directory / "batch.info").read_text(errors="replace")
    except OSError:  # without `batch.info`, the launch of an ensemble was interrupted
        return True
    return re.search(r"^type: (?!celery\b)", batch, re.MULTILINE) is None


def _end_and_remove(remove: Callable[..., None], path: Any, *args: Any, **kwargs: Any) -> None:
    """End the ensemble study in a directory, then remove the directory; a directory without one is only removed."""
    if _is_ensemble(Path(path)):
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
    """Return the command with the conductor of the same environment as `maestro`, which may not be on PATH.

    Maestro does not quote the directory of the study, which may have characters that the shell interprets.
    """
    prefix = "nohup conductor "
    if not isinstance(command, str) or not command.startswith(prefix):
        return command
    conductor, arguments, study = Path(sys.argv[0]).with_name("conductor"), command[len(prefix) :], str(OPTIONS.study)
    if OPTIONS.study is not None:  # of an ensemble
        OPTIONS.is_conducted = True
        options, _, log = arguments.removesuffix(" 2>&1").partition(f" {study} > ")
        arguments = f"{options} {shlex.quote(study)} > {shlex.quote(log)} 2>&1"
    program = shlex.quote(str(conductor.absolute())) if conductor.is_file() else "conductor"
    return f"nohup {program} {arguments}"


def _wait(seconds: float) -> None:
    """Wait until the next poll, and watch the ensembles of this process meanwhile.

    If a step has ended in the conductor itself, do not wait: other steps may depend on it. A conductor without an
    ensemble has not imported the modules, and does not need them.
    """
    lock = sys.modules.get("maestro_celery_plugin.study.conductor_lock")
    if lock and lock.take_poll_request():
        return
    _collect_garbage_again()
    coordinators = _coordinators()
    if not coordinators:
        clock.sleep(seconds)
    for coordinator in coordinators:
        coordinator.wait(seconds / len(coordinators))


def _collect_garbage_again() -> None:
    """Search for garbage again, if `specification.py` has stopped this for the launch, but not among what is there."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _coordinators() -> list[Coordinator]:
    """Return the coordinators of this process; a process without an ensemble has not imported their module."""
    module = sys.modules.get("maestro_celery_plugin.conductor.coordinator")
    return module.active() if module else []


# --- the installation --------------------------------------------------------------------------------


def install() -> None:
    """Replace each name, now or after the import of its module; the entry module calls this function."""
    old_pickles.install()
    apply_touchpoints(TOUCHPOINTS)
