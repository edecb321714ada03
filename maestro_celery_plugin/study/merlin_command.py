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
# The command of a study is a small file; a real Merlin may be larger.
_SMALL_BYTES = 4096


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
    if not shutil.which("merlin", path=_path_of_others()):
        _write(path, [sys.executable, "-c", _CODE, str(root)])


def _write(path: Path, words: list[str]) -> None:
    write_atomically(path, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', mode=0o700)


def add_to_path(session: Path) -> None:
    """Add the directory of the command to the end of the `PATH` of this process, which its samples inherit."""
    os.environ["PATH"] = f"{_path_of_others()}{os.pathsep}{session / _DIRECTORY}"


def _path_of_others() -> str:
    """Return the `PATH` without the commands of studies: a sample of another study may have launched this one."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(directory for directory in directories if not _has_command(Path(directory)))


def _has_command(directory: Path) -> bool:
    return any(_is_own(directory / name, code) for name, code in (("merlin", _CODE), ("maestro-celery", _OWN_CODE)))


def _is_own(path: Path, code: str) -> bool:
    try:
        with path.open("rb") as file:
            return shlex.quote(code).encode() in file.read(_SMALL_BYTES)
    except OSError:
        return False
