"""The parameters of ``--pgen``: an error in the user's Python file is told with its line."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maestro_celery_plugin.errors import EnsembleError, StudyError

__all__ = ["generate"]


def generate(load: Callable[..., Any], path: str, env: Any, arguments: Any) -> Any:
    """Return the parameters of a Python file.

    Args:
        load: Maestro's function that imports the file.
        path: The file.
        env: Maestro's environment of the study.
        arguments: The arguments of ``--pargs``.

    Raises:
        StudyError: the file has an error.
    """
    try:
        with _without_traceback():
            return load(path, env, arguments)
    except EnsembleError:
        raise
    except Exception as cause:  # the code of the user raises errors of any type
        lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if _is(frame.filename, path)]
        if isinstance(cause, SyntaxError):
            lines.append(cause.lineno)
        where = f" in line {lines[-1]}" if lines else ""
        raise StudyError(
            f"--pgen: '{path}' has failed{where} ({type(cause).__name__}: {cause}); correct it."
        ) from cause


def _is(file: str, path: str) -> bool:
    return Path(file) == Path(path).absolute()


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Disable the logger that would log a traceback."""
    logger = logging.getLogger("maestrowf.maestro")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
