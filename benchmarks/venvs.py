"""Virtual environments of other tools, cached in ``.bench`` below the root directory of the project."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.errors import MissingToolError

__all__ = ["ROOT", "SideVenv"]

ROOT = Path(__file__).resolve().parent.parent
_CACHE = ROOT / ".bench"


@dataclasses.dataclass(frozen=True)
class SideVenv:
    """A virtual environment of one tool, separate from the environment of the plugin.

    Attributes:
        name: Its directory below ``.bench``.
        requirements: The packages that pip installs into it.
    """

    name: str
    requirements: tuple[str, ...]

    @property
    def bin(self) -> Path:
        """The directory of its commands."""
        return _CACHE / self.name / "bin"

    def ensure(self) -> Path:
        """Create the environment unless it exists; return the directory of its commands.

        Raises:
            MissingToolError: pip cannot install the tool.
        """
        stamp, requirements = _CACHE / self.name / "requirements.txt", "\n".join(self.requirements)
        if stamp.is_file() and stamp.read_text() == requirements:
            return self.bin
        shutil.rmtree(_CACHE / self.name, ignore_errors=True)
        print(f"installing {' '.join(self.requirements)} into {_CACHE / self.name}", file=sys.stderr)
        venv.create(_CACHE / self.name, with_pip=True)
        command = [str(self.bin / "python"), "-m", "pip", "install", "-q", *self.requirements]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MissingToolError(f"pip cannot install {self.requirements[0]}: {last}")
        stamp.write_text(requirements)
        return self.bin
