"""`maestro run` of an ensemble: a mistake of the user ends it with one line, and so does Ctrl-C.

Errors of Maestro in a study without an ensemble stay as they are.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_celery_plugin.config.groups import awaiting, is_for_this_machine, serving_groups
from maestro_celery_plugin.errors import EnsembleError, StudyError
from maestro_celery_plugin.maestro.command_line import check_specification_file
from maestro_celery_plugin.maestro.env_file import read_env_file
from maestro_celery_plugin.maestro.foreground_log import take_log
from maestro_celery_plugin.maestro.launch_options import OPTIONS, check_output
from maestro_celery_plugin.spec.overrides import Overrides, variables_of
from maestro_celery_plugin.study.plan import StudyPlan

if TYPE_CHECKING:  # a study without an ensemble does not wait for this import
    from maestro_celery_plugin.study.members import Member

__all__ = ["guarded_run"]

LOGGER = logging.getLogger(__name__)

# As in `study/session.py`, whose import takes long.
SESSION_VARIABLE = "MAESTRO_CELERY_SESSION"
_FAILED = 2  # of Maestro's conductor, for a study with a failed step
_INTERRUPTED = 130  # of a shell, for a process that SIGINT ends


def guarded_run(
    run: Callable[[Any], int], arguments: argparse.Namespace, failed_samples: Callable[[], int | None]
) -> int:
    """Run `maestro run`, and return its exit code.

    Args:
        run: Maestro's part.
        arguments: The command line.
        failed_samples: Returns how many samples have failed; None before a conductor runs in this process.
    """
    _set_options(arguments)
    try:
        _refuse_empty_values(arguments)
        parent = _parent(arguments.session)
        _set_overrides(arguments, parent)
        check_specification_file(arguments.specification)
        if parent is not None:
            from maestro_celery_plugin.maestro.nested import run_nested

            return run_nested(parent, run, arguments)
        check_output(arguments.out)
        OPTIONS.log = take_log(arguments)
        with _without_output() if arguments.quiet else contextlib.nullcontext():
            code = run(arguments)
        _say_what_is_next(arguments)
        return _code_of_end(code, failed_samples()) if arguments.fg else code
    except EnsembleError as error:
        return _end(f"error: {error}")
    except KeyboardInterrupt:
        if not OPTIONS.is_ensemble:
            raise
        return _end(_interruption(is_conducted=failed_samples() is not None), _INTERRUPTED)
    except EOFError:
        if not OPTIONS.is_ensemble:
            raise
        return _end(f"error: there is no answer; -y answers yes, and -n answers no. {_state()}")
    except Exception as error:
        if not OPTIONS.is_ensemble or failed_samples() is not None:
            raise
        LOGGER.debug("The launch has failed.", exc_info=True)
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return _end(f"error: Maestro cannot launch the study ({text}). {_state()}")


def _set_options(arguments: argparse.Namespace) -> None:
    if arguments.broker:
        # A study without an ensemble does not wait for this import.
        from maestro_celery_plugin.processes import forget_secret_url

        forget_secret_url(arguments.broker)
    OPTIONS.launching, OPTIONS.broker, OPTIONS.dry_run = True, arguments.broker, arguments.dry
    OPTIONS.broker_host, OPTIONS.arguments = arguments.broker_host, arguments
    OPTIONS.parameter_generator, OPTIONS.hashes_names = arguments.pgen is not None, arguments.hashws
    OPTIONS.foreground, OPTIONS.notify = arguments.fg, arguments.notify
    OPTIONS.is_ensemble = OPTIONS.is_conducted = False
    OPTIONS.study = OPTIONS.directory = OPTIONS.location = OPTIONS.parent = OPTIONS.member = None
    OPTIONS.waits, OPTIONS.version, OPTIONS.log = False, None, None


def _parent(study: str | None) -> Member | None:
    """Return the study whose session this one joins; None for a session of its own.

    Args:
        study: The value of `--session`; None for the study whose sample or step has started this process, if any.

    Raises:
        StudyError: the study of `--session` does not run.
    """
    if study is not None:
        from maestro_celery_plugin.maestro.joining import use_session_of

        use_session_of(Path(study))
    elif SESSION_VARIABLE not in os.environ:
        return None
    from maestro_celery_plugin.maestro.joining import find_parent

    return find_parent()


def _without_output() -> contextlib.AbstractContextManager[None]:
    """Print nothing but warnings and errors until this process ends: its conductor logs the end of the workers."""
    from maestro_celery_plugin.maestro.nested import without_output

    silence = contextlib.ExitStack()
    silence.enter_context(without_output(with_warnings=True))
    atexit.register(silence.close)
    return contextlib.nullcontext()


def _refuse_empty_values(arguments: argparse.Namespace) -> None:
    """Refuse options with an empty value, as those of a shell variable that is not set.

    Raises:
        StudyError: an option has an empty value.
    """
    for name in ("out", "samplesfile", "env_file", "broker", "session", "pgen", "notify"):
        if getattr(arguments, name, None) == "":
            option = f"--{name.replace('_', '-')}"
            raise StudyError(
                f"{option}: its value is empty; is a shell variable not set? Give a value, or no {option}."
            )


def _set_overrides(arguments: argparse.Namespace, parent: Member | None) -> None:
    """Read what the command line sets in place of the specification, and set the variables of `--env-file`.

    Raises:
        StudyError: an option cannot be used.
    """
    if arguments.no_errors and not arguments.dry:
        raise StudyError(
            "--no-errors: a study does not start without its batch system; add --dry to write its scripts without it, "
            "or remove the option."
        )
    environment = read_env_file(arguments.env_file) if arguments.env_file is not None else {}
    inherited = parent.variables if parent is not None else {}
    samples_file = None if arguments.samplesfile is None else Path(arguments.samplesfile).absolute()
    if samples_file is not None and not samples_file.is_file():
        raise StudyError(f"--samplesfile: '{arguments.samplesfile}' is not a file; give the table of the samples.")
    OPTIONS.overrides = Overrides(
        variables={**inherited, **variables_of(arguments.vars)},
        inherited=frozenset(inherited),
        environment=environment,
        samples_file=samples_file,
        no_errors=arguments.no_errors,
    )
    os.environ.update(environment)  # the conductor inherits them


def _end(text: str, code: int = 1) -> int:
    print(f"maestro: {text.rstrip()}", file=sys.stderr)
    return code


def _code_of_end(code: int, failed: int | None) -> int:
    """Return the exit code of `maestro run -fg`, and say what has failed, also with --quiet.

    Args:
        code: Maestro's code.
        failed: The number of failed samples; with any, a study that has finished has the code 1. None without a
            conductor in this process.
    """
    if failed is None or OPTIONS.log is not None:  # the display says it as well
        return 1 if failed and not code else code
    study = shlex.quote(str(OPTIONS.study))
    if code == _FAILED:
        return _end(f"the study has failed; `maestro-celery explain {study}` says why.", code)
    if failed and not code:
        samples = "1 sample has" if failed == 1 else f"{failed} samples have"
        return _end(f"{samples} failed; `maestro-celery failed {study}` says what they have in common.")
    return code


def _say_what_is_next(arguments: argparse.Namespace) -> None:
    """Print the commands that a user needs after the launch; nothing for a study without an ensemble."""
    if OPTIONS.study is None or arguments.fg or arguments.quiet:
        return
    study = shlex.quote(str(OPTIONS.study))
    if OPTIONS.is_conducted:
        print(f"`maestro-celery status {study}` shows its progress, `maestro cancel {study}` ends it.")
        for sentence in _awaited(OPTIONS.study):
            print(sentence)
    else:
        print(f"Nothing runs; `maestro-celery resume {study}` starts the study.")


def _awaited(study: Path) -> Iterator[str]:
    """Yield a sentence for each worker group whose workers a user must start on another machine."""
    for name, group in serving_groups(StudyPlan.read(study).settings).items():
        if not is_for_this_machine(group):
            yield awaiting(name, group, study)


def _interruption(*, is_conducted: bool) -> str:
    if not is_conducted:
        return f"interrupted. {_state()}"
    study = shlex.quote(str(OPTIONS.study))
    return (
        "interrupted. The study has stopped, and its local workers end with it; `maestro-celery resume "
        f"{study}` goes on with it."
    )


def _state() -> str:
    """Return a sentence about what a launch that did not happen has left."""
    if OPTIONS.study is not None and (OPTIONS.study / "batch.info").exists():
        study = shlex.quote(str(OPTIONS.study))
        return f"Nothing runs; `maestro-celery resume {study}` starts the study."
    left = OPTIONS.directory
    return f"Nothing runs; '{left}' can be deleted." if left is not None and left.exists() else "Nothing runs."
