"""The samples that were added to a study after its launch.

    merlin_info/
      additions.json        the additions, in their order
      additions.lock        locked while a process adds samples
      steps_to_repeat.json  step records that run again after their end
      added/1.csv ...       the rows of each addition, which never change

What must hold:

* A worker that reads a sample never sees a wrong row. So no file that is in use changes: each addition has a file of
  its own, and `additions.json` names a file when it is complete. A row keeps its number, and the number of rows only
  grows.
* An addition happens whole or not at all. The replacement of `additions.json` is the addition (rename(2)); what a
  process that was killed before has left is replaced by the next addition.
* Two processes that add samples wait for each other. An addition with the key of an earlier one adds nothing, so that a
  process that has died after the addition can be repeated. The key is the content, or a name that the user has given.
* A step record does not have the added samples until its conductor, or a resume, has taken them: its manifest has the
  number of its samples. What depends on them is marked in the ledger before, so that a conductor that dies in between
  forgets nothing: while one manifest has fewer samples than the study, the next conductor takes the addition again.
* A step that has finished runs again for the new samples only; what depends on all of them runs again whole. The step
  that adds samples is one of those, in the loop of active learning: it runs to its end, and then again when the new
  samples have ended. `steps_to_repeat.json` has the steps that run to their end before.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.conversion import Exact
from maestro_celery_plugin.config.stored import Count, FileName
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples.grown_table import GrownTable
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.table import SampleTable
from maestro_celery_plugin.study.file_version import version_of
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = [
    "Addition",
    "AdditionFile",
    "Additions",
    "are_taken",
    "file_of",
    "grown",
    "grown_paths",
    "open_samples",
    "read_additions",
    "write_additions",
]

_FILE = "additions.json"
_PARTS = "added"
_REMEDY = "restore it from a backup"


class Addition(Exact, frozen=True, kw_only=True):
    """Samples that were added at one time.

    Attributes:
        file: Name of the file with their values.
        rows: Number of rows in the file.
        used: Number of these rows that are samples: `max_samples` may exclude the last ones.
        key: Identity of the addition: an addition with the same key is the same one.
    """

    file: FileName
    rows: Count
    used: Count
    key: str

    def __post_init__(self) -> None:
        if self.used > self.rows:
            raise ValueError(f"{self.used} of {self.rows} rows of '{self.file}' cannot be samples")


class Additions(Exact, frozen=True, kw_only=True):
    """All additions of a study.

    Attributes:
        study_id: Identity of the study.
        added: The additions in their order.
    """

    study_id: str = "0"
    added: tuple[Addition, ...] = ()

    @property
    def count(self) -> int:
        """The number of added samples."""
        return sum(addition.used for addition in self.added)

    def samples_before(self, key: str, launched: int) -> tuple[int, int] | None:
        """Return the samples [start, stop) of the addition with a key; None without one.

        Args:
            key: The key.
            launched: The number of samples of the launch.
        """
        start = launched
        for addition in self.added:
            if addition.key == key:
                return start, start + addition.used
            start += addition.used
        return None


def read_additions(plan: StudyPlan) -> Additions:
    """Return the additions of a study.

    Raises:
        OSError: the file cannot be read.
        DamagedFileError: it is damaged or lost.
    """
    # A dry run has no session, and no such file.
    return _read(plan.info, plan.id if plan.rows and plan.session.is_dir() else "0")


def _read(info: Path, study_id: str) -> Additions:
    """Return the additions of a study.

    Args:
        info: The directory ``merlin_info`` of the study.
        study_id: Identity of the study; 0 for a study that may have no file of additions.
    """
    path = info / _FILE
    try:
        additions = conversion.from_json(Additions, read_text(path))
    except FileNotFoundError as cause:
        if study_id != "0":
            raise DamagedFileError.at(path, "it does not exist", _REMEDY) from cause
        return Additions()
    except DamagedFileError:
        raise
    except ValueError as cause:
        raise DamagedFileError.at(path, str(cause), _REMEDY) from cause
    if study_id not in ("0", additions.study_id):
        raise DamagedFileError.at(path, f"it belongs to the study '{additions.study_id}'", _REMEDY)
    return additions


def write_additions(plan: StudyPlan, additions: Additions) -> None:
    """Store the additions of a study, durably and in one step.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(plan.info / _FILE, conversion.to_json(additions))


def file_of(plan: StudyPlan, name: str) -> Path:
    """Return the path of the file of an addition; its directory exists afterwards."""
    directory = plan.info / _PARTS
    directory.mkdir(exist_ok=True)
    return directory / name


class AdditionFile:
    """The additions of a study, for a process that looks at them often.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._version: tuple[int, int] | None = None
        self._total = plan.rows

    def total(self) -> int:
        """Return the number of samples of the study; read the file only if it has changed.

        Raises:
            OSError: the file cannot be read.
            DamagedFileError: it is damaged.
        """
        version = version_of(self._plan.info / _FILE)
        if version is None or version != self._version:
            self._total, self._version = self._plan.rows + read_additions(self._plan).count, version
        return self._total


def grown_paths(plan: StudyPlan, samples: int) -> SamplePaths:
    """Return the directories of the samples of a study that has a number of samples now."""
    return SamplePaths(samples, plan.level_max_dirs, plan.hierarchy)


# --- what the step records have ---


def grown(manifest: Manifest, samples: int) -> Manifest:
    """Return the manifest of a sampled step record with the samples that were added; its directories stay."""
    before = manifest.samples
    return replace(manifest, samples=samples, launched=manifest.launched or before, planned=manifest.planned or before)


def are_taken(plan: StudyPlan, total: int) -> bool:
    """Tell whether a step record has all samples of a study, or none was submitted, which will have them.

    Raises:
        OSError: a manifest cannot be read.
        StudyError: a manifest is damaged.
    """
    counts = [manifest.samples for manifest in Manifest.read_all(plan.records) if manifest.sampled]
    return not counts or max(counts) >= total


# --- the table ---


def open_samples(manifest: Manifest, *, for_people: bool = False) -> SampleTable:
    """Open the sample table of a step record, with the samples that were added to it.

    Args:
        manifest: The step record.
        for_people: Whether the table of the launch may have another number of rows, because no sample runs from it.

    Raises:
        SampleError: the table cannot be read any more, or has changed.
        OSError: a file cannot be read now.
    """
    path, info = Path(str(manifest.table)), Path(manifest.index_cache)
    launched = manifest.launched or manifest.samples
    table = open_table(path, manifest.labels, info, None if for_people else launched)
    if manifest.samples <= launched:
        return table
    added = _read(info, manifest.study_id).added
    if launched + sum(addition.used for addition in added) < manifest.samples:
        raise DamagedFileError.at(info / _FILE, f"it has not all {manifest.samples - launched} added samples", _REMEDY)
    counts = [launched, *(addition.used for addition in added)]

    def open_part(number: int) -> SampleTable:
        if not number:
            return table
        addition = added[number - 1]
        return open_table(info / _PARTS / addition.file, manifest.labels, info / _PARTS, addition.rows)

    return GrownTable(counts, open_part, table.width)
