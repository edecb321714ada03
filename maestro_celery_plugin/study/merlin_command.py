"""Commands that steps can call: `maestro-celery`, and `merlin` for specifications whose samples call Merlin.

They are scripts in the session, in a directory at the end of the `PATH` of samples. So a real Merlin comes first, and
`maestro-celery` is found if the Python environment of the launch is not active.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from maestro_celery_plugin.files import write_atomically

__all__ = ["add_to_path", "write_merlin_command"]

# Python must not search the directory of a sample for modules.
_CODE = "import sys; sys.path[:] = filter(None, sys.path); from maestro_celery_plugin.cli.merlin import main; main()"
_OWN_CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); from maestro_celery_plugin.cli import main; "
    "main(prog_name='maestro-celery')"
)
_DIRECTORY = "bin"


def write_merlin_command(session: Path, root: Path) -> None:
    """Write the commands; `merlin` only if the launch finds no real Merlin.

    Args:
        session: Directory of the session.
        root: Directory of the study, which is the study of the samples that call the command.

    Raises:
        OSError: they cannot be written.
    """
    path = session / _DIRECTORY / "merlin"
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    _write(path.with_name("maestro-celery"), [sys.executable, "-c", _OWN_CODE])
    if not shutil.which("merlin"):
        _write(path, [sys.executable, "-c", _CODE, str(root)])


def _write(path: Path, words: list[str]) -> None:
    write_atomically(path, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', mode=0o700)


def add_to_path(session: Path) -> None:
    """Add the directory of the command to the end of the `PATH` of this process, which its samples inherit."""
    path, directory = os.environ.get("PATH", os.defpath), str(session / _DIRECTORY)
    if directory not in path.split(os.pathsep):
        os.environ["PATH"] = f"{path}{os.pathsep}{directory}"
