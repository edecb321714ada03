"""Checks of the command line of `maestro run` for an ensemble, before Maestro creates a file or removes one."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import select
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maestrowf.utils import create_dictionary

from maestro_celery_plugin.errors import SpecificationError, StudyError
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.spec.problems import Problem, passed

__all__ = [
    "check_command_line",
    "check_generator",
    "check_place",
    "check_specification_file",
    "check_study_name",
    "is_study",
]

# Maestro opens a log file with the name of the study; file systems allow 255 bytes.
_NAME_BYTES = 240
_LEAST = {"attempts": 1, "throttle": 0, "rlimit": 0, "sleeptime": 0}
_SHOWN_NAME = 40
# A file that is larger than this is not read to see whether it is empty.
_SMALL_BYTES = 100_000


def check_specification_file(specification: str) -> None:
    """Check that the specification is a file with text; Maestro ends in a traceback otherwise.

    Raises:
        SpecificationError: there is no such file, or it cannot be read, or it is empty.
    """
    path = Path(specification)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise SpecificationError(f"'{path}' is a directory; give the YAML file of a study.")
        if not stat.S_ISREG(status.st_mode):
            return  # a pipe, which can be read only once
        with path.open("rb") as file:
            lines = file.read(_SMALL_BYTES).splitlines() if status.st_size < _SMALL_BYTES else [b"large"]
    except OSError as cause:
        raise SpecificationError(
            f"'{path}' cannot be read ({cause.strerror}); give the YAML file of a study."
        ) from cause
    except ValueError as cause:
        raise SpecificationError(f"{specification!r} is no path ({cause}); give the YAML file of a study.") from cause
    if not any(line.strip() not in (b"", b"---") and not line.lstrip().startswith(b"#") for line in lines):
        raise SpecificationError.at(path.name, "", "the file is empty; give the YAML file of a study.")


def check_command_line(arguments: argparse.Namespace, name: str, output_path: str, file: str) -> None:
    """Check what would stop Maestro after it has created files.

    Args:
        arguments: The command line of `maestro run`.
        name: The name of the study.
        output_path: `OUTPUT_PATH` of the specification; empty without one.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: the name of the study cannot be the name of a file.
        StudyError: an option cannot be used, or nobody can answer a question.
    """
    passed(check_study_name(name), file)
    for option, least in _LEAST.items():
        found = getattr(arguments, option)
        if found < least:
            raise StudyError(f"--{option}: found {found}; a number of at least {least} is needed.")
    check_generator(arguments.pgen, arguments.pargs)
    if arguments.out:
        _check_out(arguments)
    else:
        check_place(Path(output_path or ".").absolute(), "OUTPUT_PATH")
    _check_answers(arguments)


def check_study_name(name: str) -> Iterator[Problem]:
    """Check that the name of the study can be the name of a file."""
    where = "description.name"
    if "/" in name or not name.isprintable():
        yield Problem(where, f"found {name!r}; files have this name, so use no '/' and no control characters.")
    if len(name.encode()) > _NAME_BYTES:
        found = f"'{name[:_SHOWN_NAME]}...' with {len(name.encode())} bytes"
        yield Problem(where, f"found {found}; files have this name, so use at most {_NAME_BYTES}.")


def check_generator(file: str | None, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `--pargs` for the file of `--pgen`.

    Raises:
        StudyError: there is no such file, or an argument has another form.
    """
    if file is None:
        if arguments:
            raise StudyError("--pargs: there is no --pgen that would use the arguments; add it, or remove --pargs.")
        return {}
    if not Path(file).is_file():
        raise StudyError(f"--pgen: '{file}' is not a file; give a Python file with `get_custom_generator`.")
    try:
        return dict(create_dictionary(list(arguments)))
    except Exception as cause:  # Maestro raises errors of any type
        raise StudyError(f"--pargs: found {' '.join(arguments)!r}; 'KEY:VALUE' is needed.") from cause


def _check_out(arguments: argparse.Namespace) -> None:
    out = Path(os.path.abspath(arguments.out))  # noqa: PTH100 (as Maestro does; `absolute` keeps "..")
    check_place(out, "--out")
    if not out.exists() or OPTIONS.parent is not None:  # a study of a session never replaces a directory (`nested.py`)
        return
    for path in filter(None, (arguments.specification, arguments.pgen)):
        if Path(path).resolve().is_relative_to(out.resolve()):
            raise StudyError(f"--out: '{out}' would be deleted, and '{path}' with it; use another directory.")
    if arguments.autoyes and not is_study(out):
        raise StudyError(
            f"--out: '{out}' is not the directory of a study, and -y would delete it; delete it yourself, or use "
            "another directory."
        )


def is_study(directory: Path) -> bool:
    """Tell whether a directory is that of a study, or has nothing to lose: it is empty, or a launch was interrupted."""
    names = set(os.listdir(directory))  # noqa: PTH208 (the names only)
    return names <= {"logs"} or not names.isdisjoint({"merlin_info", "batch.info"})


def check_place(directory: Path, where: str) -> None:
    """Check that a directory can be created, or files in it.

    Raises:
        StudyError: it is a file or lies below one, or its name, its file system or its permissions forbid it.
    """
    if glob.has_magic(str(directory)):  # conductor.py:231 looks for its files with a pattern
        raise StudyError(
            f"{where}: '{directory}' has one of the characters '*?[', and Maestro cannot read its files then."
        )
    try:
        while not os.path.lexists(directory):
            directory = directory.parent
        if not directory.is_dir():
            raise StudyError(f"{where}: '{directory}' is not a directory; use another path.")
    except OSError as cause:
        raise StudyError(f"{where}: '{directory}' cannot be used ({cause.strerror}); use another path.") from cause
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StudyError(f"{where}: '{directory}' cannot be written; correct its permissions, or use another path.")


def _check_answers(arguments: argparse.Namespace) -> None:
    """Check that somebody can answer the questions of Maestro.

    Raises:
        StudyError: the standard input has ended.
    """
    asks_to_launch = not arguments.dry
    asks_to_overwrite = bool(arguments.out) and Path(arguments.out).exists()
    if (asks_to_launch or asks_to_overwrite) and not (arguments.autoyes or arguments.autono) and _stdin_has_ended():
        raise StudyError(
            "Maestro asks before it launches a study, but there is no terminal for the answer; add -y (yes) or -n (no)."
        )


def _stdin_has_ended() -> bool:
    """Tell whether the standard input is known to have no more text; a pipe may still receive some."""
    if sys.stdin is None or sys.stdin.closed:
        return True
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a replaced standard input answers for itself
        if sys.stdin.isatty() or not select.select([sys.stdin], [], [], 0)[0]:
            return False
        return not getattr(sys.stdin.buffer, "peek")(1)  # noqa: B009 (not declared for every buffer)
    return False
