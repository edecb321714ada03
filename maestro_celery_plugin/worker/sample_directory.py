"""The directory of a sample: it is made for the first attempt, together with the script of the sample."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from maestro_celery_plugin.config.tokens import SAMPLE_TOKENS, Template
from maestro_celery_plugin.samples.paths import FINISHED_MARKER
from maestro_celery_plugin.samples.token_values import sample_values
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["SampleDirectories"]


class SampleDirectories:
    """The directories of the samples of one step record, with their scripts; several threads may use it.

    Args:
        manifest: The step record.
        row: Returns the values of a sample.
    """

    def __init__(self, manifest: Manifest, row: Callable[[int], Sequence[str]]) -> None:
        self._manifest, self._row = manifest, row
        # A slot needs a path several times while the sample runs, and not after its end.
        self._path_of = functools.lru_cache(maxsize=256)(manifest.paths.of)
        names = (*manifest.labels, *SAMPLE_TOKENS, "MERLIN_SAMPLE_NAMES") if manifest.sampled else ()
        is_of_release_0_1 = manifest.study_id == "0"
        self._templates = {
            restart: Template(f"#!{manifest.shell}\n\n{text}\n", names, ignore_case=is_of_release_0_1)
            for restart, text in ((False, manifest.cmd), (True, manifest.restart))
        }

    def path(self, sample: int) -> str:
        """Return the directory in which a sample runs."""
        path = self._path_of(sample) if self._manifest.sampled else "."
        return self._manifest.workspace if path == "." else f"{self._manifest.workspace}/{path}"

    def stem(self, sample: int) -> str:
        """Return the path of the script and the output files of a sample, without their suffix."""
        return f"{self.path(sample)}/{self._manifest.script}"

    def is_own(self, sample: int) -> bool:
        """Tell whether a sample has its own directory; otherwise it runs in the workspace of the step record."""
        return self.path(sample) != self._manifest.workspace

    def set_marker(self, sample: int, *, finished: bool) -> None:
        """Create or remove the file that shows that a sample has finished, if a step of the study looks for it.

        Raises:
            OSError: the file cannot be created or removed.
        """
        if not self._manifest.finished_marker:
            return
        marker = Path(self.path(sample), FINISHED_MARKER)
        if finished:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)

    def make(self, sample: int) -> bool:
        """Make the directory of a sample and its script; return False if the script exists already.

        If a record is not sampled or has one sample, its script already exists.

        Raises:
            OSError: there is no space or no permission for the script.
        """
        directory = self.path(sample)
        if directory == self._manifest.workspace:
            return False
        try:
            _make_directory(directory)
            self._write(sample, directory, ".sh", restart=False, flags=os.O_EXCL)
        except FileExistsError:
            return False
        return True

    def write_script(self, sample: int, *, restart: bool) -> str:
        """Write the script of a sample, with `cmd` or `restart`, and return its path."""
        suffix = ".restart.sh" if restart else ".sh"
        return self._write(sample, self.path(sample), suffix, restart=restart, flags=os.O_TRUNC)

    def _write(self, sample: int, directory: str, suffix: str, *, restart: bool, flags: int) -> str:
        values = {}
        if self._manifest.sampled:
            values = sample_values(self._manifest.labels, self._row(sample), sample, self._path_of(sample))
        script = f"{directory}/{self._manifest.script}{suffix}"
        text = self._templates[restart].fill(values).encode()
        descriptor = os.open(script, os.O_WRONLY | os.O_CREAT | flags, 0o755)
        try:
            while text:
                text = text[os.write(descriptor, text) :]
        except OSError:
            if flags & os.O_EXCL:  # the script of an earlier attempt stays: it shows that the sample was started
                Path(script).unlink()
            raise
        finally:
            os.close(descriptor)
        return script


def _make_directory(directory: str) -> None:
    try:
        os.mkdir(directory)  # noqa: PTH102 (a Path costs time, for each sample)
    except FileExistsError:
        return
    except FileNotFoundError:
        Path(directory).mkdir(parents=True, exist_ok=True)
