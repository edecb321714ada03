"""The commands that samples and steps find although they are not on the `PATH` of the launch.

They are scripts in the session, in a directory at the end of the `PATH` of samples, so that real ones come first:

- `maestro` and `maestro-celery`, if the launch has not activated their Python environment
- `merlin`, if Merlin is not installed: it does with this plugin what the same words do with Merlin (`cli/merlin.py`)
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from maestro_celery_plugin.files import write_atomically
from maestro_celery_plugin.study.session import STUDY_VARIABLE

__all__ = ["add_to_path", "write_commands"]

# Python must not search the directory of a sample for modules.
_MERLIN = "import sys; sys.path[:] = filter(None, sys.path); from maestro_celery_plugin.cli.merlin import main; main()"
_OWN = ("maestro", "maestro-celery")
_DIRECTORY = "bin"


def write_commands(session: Path) -> None:
    """Write the commands that the launch does not find.

    Args:
        session: Directory of the session.

    Raises:
        OSError: one cannot be written.
    """
    directory = session / _DIRECTORY
    directory.mkdir(exist_ok=True)
    lines = {name: shlex.quote(str(Path(sys.executable).with_name(name))) for name in _OWN}
    # The first argument is the study of the sample that calls the command.
    lines["merlin"] = f'{shlex.join([sys.executable, "-c", _MERLIN])} "${STUDY_VARIABLE}"'
    for name, line in lines.items():
        path = directory / name
        path.unlink(missing_ok=True)
        if not shutil.which(name, path=_path_of_others()):
            write_atomically(path, f'#!/bin/sh\nexec {line} "$@"\n', mode=0o700)


def add_to_path(session: Path) -> None:
    """Add the directory of the commands to the end of the `PATH` of this process, which its samples inherit."""
    os.environ["PATH"] = f"{_path_of_others()}{os.pathsep}{session / _DIRECTORY}"


def _path_of_others() -> str:
    """Return the `PATH` without the commands of sessions: a sample of another session may have launched this one."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(one for one in directories if not (Path(one).parent / "secret").exists())
