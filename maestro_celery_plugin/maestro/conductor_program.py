"""Maestro's program `conductor`, in the environment of `maestro`, which may not be on PATH."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from maestro_celery_plugin.errors import StudyError

__all__ = ["conductor_program"]


def conductor_program() -> str:
    """Return the path of `conductor`: beside the command that runs, beside its Python, or on PATH.

    Raises:
        StudyError: there is none.
    """
    for command in (sys.argv[0], sys.executable):
        beside = Path(command).with_name("conductor")
        if beside.is_file():
            return str(beside.absolute())
    found = shutil.which("conductor")
    if found is None:
        raise StudyError(
            f"There is no `conductor` beside '{sys.executable}', nor on PATH; it comes with Maestro: install maestrowf "
            "in the environment of this command."
        )
    return found
