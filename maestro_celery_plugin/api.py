"""Studies in Python: what the commands do, for notebooks and scripts.

    from maestro_celery_plugin import Study

    study = Study.launch("sweep.yaml", vars={"N": 100})
    study.wait()
    frame = study.samples(where="state == 'finished'", read="result.json").to_pandas()

Reading a study imports neither Celery nor Maestro.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_celery_plugin.errors import MissingPackageError, StudyError, StudyTimeoutError
from maestro_celery_plugin.report.column_types import ColumnType, column_types, dtype_of, filled, typed
from maestro_celery_plugin.report.exit_codes import StudyCode
from maestro_celery_plugin.report.explain import explain
from maestro_celery_plugin.report.failure_groups import StepFailures, step_failures
from maestro_celery_plugin.report.model import StudyStatus
from maestro_celery_plugin.report.monitor import MonitoredStudy, monitor
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_columns import Column, Source
from maestro_celery_plugin.report.sample_rows import Query, SampleRows
from maestro_celery_plugin.report.study_samples import StudySamples
from maestro_celery_plugin.report.table_files import write_table
from maestro_celery_plugin.study.plan import StudyPlan

if TYPE_CHECKING:
    import pandas

__all__ = ["SampleRow", "Samples", "Study"]

# Seconds without a worker after which `wait` reports a stalled study, as `maestro-celery monitor` does.
STALL_LIMIT_S = 600.0
# What `maestro run` prints at its end (`maestro/guarded_run.py`).
_LAUNCHED = re.compile(r"`maestro-celery (?:status|resume) (.+?)` ")
_ERROR = re.compile(r"^maestro(?:-celery)?: error: ", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample of one step record.

    Values of a column are numbers if all values of the column are numbers, else texts.

    Attributes:
        id: Index of the sample; None for a step that does not use samples.
        step: Name of the step.
        record: Name of the step record.
        parameters: Values of Maestro's parameters.
        values: Values of the sample by column label.
        state: ``finished``, ``failed``, ``running`` or ``pending``.
        exit_code: Exit code of the last attempt that has ended, negative for a signal; None without one.
        attempts: Number of attempts that have started.
        start: Start of the last attempt in Unix seconds of its machine; None without one.
        duration_s: Duration of the last attempt, if it has ended.
        worker: The worker of the last attempt.
        node: The machine of this worker, if it is known.
        directory: The directory of the sample.
        results: What the sample has written into the files that were read; lists stay lists.
    """

    id: int | None
    step: str
    record: str
    parameters: dict[str, Any]
    values: dict[str, Any]
    state: str
    exit_code: int | None
    attempts: int
    start: float | None
    duration_s: float | None
    worker: str | None
    node: str | None
    directory: Path
    results: dict[str, Any]


class Samples:
    """Samples of a study, which can be read more than once, in blocks, so that a million of them needs little memory.

    Attributes:
        warnings: A sentence for each result file with samples where it is missing or cannot be read.
    """

    def __init__(self, rows: SampleRows) -> None:
        self._rows = rows
        self.warnings: list[str] = rows.warnings

    @property
    def columns(self) -> list[str]:
        """The names of the columns of the table."""
        return [column.name for column in self._rows.columns]

    @functools.cached_property
    def _types(self) -> dict[str, ColumnType]:
        return column_types(self._rows, self._rows.all_columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[SampleRow]:
        """Yield the samples, with all columns.

        Raises:
            SampleError: the sample table cannot be read any more.
        """
        columns, types = self._rows.all_columns, self._types
        for block in self._rows.blocks(columns):
            cells = (typed(block.values[column.name], types[column.name]) for column in columns)
            for row in zip(*cells, strict=True):
                yield _sample_row(columns, row)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """Return a structured array with a field for each column; missing numbers are NaN, missing texts are empty.

        Raises:
            SampleError: the sample table cannot be read any more.
        """
        dtype = dtype_of(column_types(self._rows, self._rows.columns, widths=True))
        parts = [filled(dtype, block.count, block.values) for block in self._rows.blocks()]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with the columns of the table; missing numbers are NaN, missing texts are None.

        Raises:
            MissingPackageError: pandas is not installed.
            SampleError: the sample table cannot be read any more.
        """
        try:
            import pandas
        except ImportError as cause:
            raise MissingPackageError(
                "to_pandas() needs the package pandas; install it with `pip install pandas`, or use to_numpy()."
            ) from cause
        types = column_types(self._rows, self._rows.columns)
        values: dict[str, list[Any]] = {name: [] for name in types}
        for block in self._rows.blocks():
            for name, cells in block.values.items():
                values[name].extend(typed(cells, types[name]))
        return pandas.DataFrame(values, columns=self.columns)

    def write(self, path: str | Path) -> None:
        """Write the table into a file: ``.csv``, ``.json``, ``.npy``, or ``.parquet``.

        Raises:
            ExpressionError: the suffix names no format, or the directory does not exist.
            MissingPackageError: the package for the format is not installed.
            SampleError: the sample table cannot be read any more.
            OSError: the file cannot be written.
        """
        write_table(self._rows, Path(path))


def _sample_row(columns: Sequence[Column], cells: Sequence[Any]) -> SampleRow:
    fixed: dict[str, Any] = {}
    groups: dict[Source, dict[str, Any]] = {Source.PARAMETER: {}, Source.LABEL: {}, Source.RESULT: {}}
    for column, cell in zip(columns, cells, strict=True):
        if column.source is Source.FIXED:
            fixed[column.name] = cell
        else:
            # Two files may have values of the same name.
            groups[column.source][column.name if column.source is Source.RESULT else column.key] = cell
    fixed["directory"] = Path(fixed["directory"])
    parameters, values, results = groups.values()
    return SampleRow(**fixed, parameters=parameters, values=values, results=results)


class Study:
    """A study on disk.

    Args:
        directory: The directory that `maestro run` has created.

    Attributes:
        path: The directory.

    Raises:
        StudyError: it is not the directory of an ensemble study.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory).absolute()
        StudyPlan.read(self.path)

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"

    @classmethod
    def launch(
        cls,
        specification: str | Path,
        *,
        vars: Mapping[str, object] | None = None,
        out: str | Path | None = None,
        broker: str | None = None,
        options: Sequence[str] = (),
    ) -> Study:
        """Launch a study with `maestro run`, which starts its conductor in the background.

        Args:
            specification: The YAML file.
            vars: Values of variables, in place of those in the specification.
            out: The directory of the study, which must not exist; None for Maestro's choice.
            broker: URL of a broker, or ``private``; None for the configured one.
            options: Further options of `maestro run`, such as ``["-s", "5"]``, but not ``-fg``; `wait` waits.

        Raises:
            StudyError: `maestro run` has refused to launch the study; the message is its message.
        """
        variables = ["--vars", *(f"{name}={value}" for name, value in vars.items())] if vars else []
        place = ["-o", str(out)] if out is not None else []
        url = ["--broker", broker] if broker is not None else []
        words = ["run", "-y", *place, *url, *options, str(specification), *variables]
        output = _called("maestro", words)
        if out is not None:
            return cls(out)
        found = _LAUNCHED.search(output)
        if found is None:
            raise StudyError(f"'{specification}' has no ensemble, so Maestro runs it alone; its output:\n{output}")
        return cls(shlex.split(found[1])[0])

    def status(self) -> StudyStatus:
        """Return the status now.

        Raises:
            StudyError: a file of the study cannot be read.
        """
        return StatusReader(self.path).read()

    def samples(
        self,
        where: str = "",
        *,
        read: str | Sequence[str] = (),
        columns: Sequence[str] = (),
        steps: Sequence[str] = (),
        sort: str | Sequence[str] = (),
        limit: int | None = None,
    ) -> Samples:
        """Return samples, as `maestro-celery samples` shows them.

        Args:
            where: A condition such as ``X > 0.3 and state == 'failed'``; empty for all samples.
            read: Files in the directories of the samples whose values become columns.
            columns: The columns of the table; none for all.
            steps: Steps or step records; none for all.
            sort: Columns to sort by, with ``-`` before a name for a descending order.
            limit: The largest number of rows.

        Raises:
            ExpressionError: the condition or a column cannot be used.
            StudyError: there is no such step, or a file of the study cannot be read.
            SampleError: the sample table cannot be read any more.
        """
        query = Query(
            where=where,
            columns=tuple(columns),
            steps=tuple(steps),
            sort=_names(sort),
            limit=limit,
            read=_names(read),
        )
        return Samples(StudySamples(self.path).rows(query))

    def failures(self) -> list[StepFailures]:
        """Return the failed samples in groups, as `maestro-celery failed` shows them.

        Raises:
            StudyError: a file of the study cannot be read.
            SampleError: the sample table cannot be read any more.
        """
        return list(step_failures(StudySamples(self.path)))

    def explain(self) -> list[tuple[str, list[str]]]:
        """Return why step records do not run or have ended: a title and sentences for each of them.

        Raises:
            StudyError: a file of the study cannot be read.
        """
        return explain(self.path)

    def wait(self, timeout: float | None = None) -> StudyCode:
        """Wait until the study has ended, or cannot go on by itself; return how it is, as `maestro-celery monitor`.

        Args:
            timeout: Seconds to wait; None for no limit.

        Raises:
            StudyTimeoutError: the study still runs.
            StudyError: a file of the study cannot be read.
        """
        study = MonitoredStudy(self.path, STALL_LIMIT_S)
        limit_s = math.inf if timeout is None else timeout
        code = monitor([study], timeout_s=limit_s, show=lambda line: None)
        if code is StudyCode.RUNNING:
            raise StudyTimeoutError(f"The study '{self.path}' still runs after {timeout:g} s.")
        return code

    def cancel(self) -> list[str]:
        """Cancel the study, as `maestro cancel`; return what was done if it had no conductor.

        A live conductor cancels the study within seconds; `wait` waits for this.

        Raises:
            StudyError: something may still run.
            OSError: the request cannot be written.
        """
        from maestro_celery_plugin.maestro.cancel import cancel_orphans

        plan = StudyPlan.read(self.path)
        plan.cancel_request.touch()
        report = cancel_orphans(plan)
        if not report.is_complete:
            raise StudyError(" ".join(report.sentences))
        return report.sentences

    def resume(
        self,
        *,
        failed: bool = False,
        steps: Sequence[str] = (),
        keep_downstream: bool = False,
        specification: str | Path | None = None,
        options: Sequence[str] = (),
    ) -> str:
        """Continue the study with a new conductor, as `maestro-celery resume`; return what it says will run.

        Args:
            failed: Whether failed samples run again, and what depends on them.
            steps: Steps that run again, and what depends on them.
            keep_downstream: Whether nothing else runs again that depends on them.
            specification: A corrected specification.
            options: Further options of `maestro-celery resume`.

        Raises:
            StudyError: the study cannot continue; the message is that of the command.
        """
        words = ["resume", *(["--failed"] if failed else []), *(["--keep-downstream"] if keep_downstream else [])]
        words += [f"--step={step}" for step in steps]
        words += [f"--spec={specification}"] if specification is not None else []
        return _called("maestro-celery", [*words, *options, str(self.path)])


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _called(command: str, words: Sequence[str]) -> str:
    """Run a command in a process of its own, because it changes its environment; return what it has printed.

    Raises:
        MissingPackageError: the command is not installed for this Python.
        StudyError: it has failed.
    """
    own = Path(sys.executable).with_name(command)
    script = str(own) if own.is_file() else shutil.which(command)
    if script is None:
        raise MissingPackageError(
            f"There is no command `{command}` beside '{sys.executable}' nor on PATH; install the plugin there."
        )
    answer = subprocess.run([script, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if answer.returncode:
        message = answer.stderr.strip() or answer.stdout.strip()
        error = _ERROR.search(message)
        raise StudyError(message[error.end() :] if error else message)
    return answer.stdout
