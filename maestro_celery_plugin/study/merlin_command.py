"""The command `merlin` of samples, for specifications whose samples call Merlin although it is not installed.

It is a script in the session, in a directory at the end of the `PATH` of samples, so that a real Merlin comes first.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from maestro_celery_plugin.files import write_atomically
from maestro_celery_plugin.study.session import STUDY_VARIABLE

__all__ = ["add_to_path", "write_merlin_command"]

# Python must not search the directory of a sample for modules.
_CODE = "import sys; sys.path[:] = filter(None, sys.path); from maestro_celery_plugin.cli.merlin import main; main()"
_DIRECTORY = "bin"


def write_merlin_command(session: Path) -> None:
    """Write the command, unless the launch finds a real Merlin.

    Args:
        session: Directory of the session.

    Raises:
        OSError: it cannot be written.
    """
    path = session / _DIRECTORY / "merlin"
    path.unlink(missing_ok=True)
    if shutil.which("merlin"):
        return
    path.parent.mkdir(exist_ok=True)
    command = shlex.join([sys.executable, "-c", _CODE])
    write_atomically(path, f'#!/bin/sh\nexec {command} "${STUDY_VARIABLE}" "$@"\n', mode=0o700)


def add_to_path(session: Path) -> None:
    """Add the directory of the command to the end of the `PATH` of this process, which its samples inherit."""
    path, directory = os.environ.get("PATH", os.defpath), str(session / _DIRECTORY)
    if directory not in path.split(os.pathsep):
        os.environ["PATH"] = f"{path}{os.pathsep}{directory}"
