"""A command that chooses the next samples: it reads the samples that have ended, and prints new ones.

It gets one JSON object per line, for each sample of each sampled step record that has finished or failed:

    {"id": 3, "step": "sim", "step_record": "sim_GAIN.2", "parameters": {"GAIN": "2"}, "values": {"X": 0.5},
     "state": "FINISHED", "exit_code": 0, "directory": "/.../sim/GAIN.2/03"}

A value that is a number in JSON is a number, any other value is text. The command prints the new samples in one of
these forms, which the first character decides:

* JSON, one sample per line: an object with the value of each label, or a list in the order of the labels. A line may
  also be a list of such samples.
* CSV, as in a sample file.

No output means that there are no new samples.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from maestro_celery_plugin.errors import SampleError, StudyError, nearest
from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_status import RecordSamples
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.additions import open_samples
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["chosen_samples", "ended_samples", "sample_rows", "write_rows"]

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NUMBER_LIMIT = 1000  # characters
_STATES = {
    Outcome.FINISHED: "FINISHED",
    Outcome.STOPPED_STUDY: "FINISHED",
    Outcome.FAILED: "FAILED",
    Outcome.HARD_FAILED: "FAILED",
}


def chosen_samples(plan: StudyPlan, command: str, steps: Sequence[str], directory: Path) -> Path | None:
    """Run the command; return a file with the samples that it has printed, or None without any.

    Args:
        plan: The study.
        command: The command, for the shell of the study.
        steps: Names of the steps or step records whose samples it gets; all when empty.
        directory: A directory for the file.

    Raises:
        StudyError: the study has no such step, or its files cannot be read.
        SampleError: the command fails, or prints something else than samples.
    """
    with tempfile.TemporaryFile("w+", dir=directory) as table:
        for sample in ended_samples(plan, steps):
            table.write(f"{json.dumps(sample)}\n")
        table.seek(0)
        text = _output(plan, command, table)
    if not text.strip():
        return None
    path = directory / "samples.csv"
    if text.lstrip()[0] in "{[":
        write_rows(path, plan.column_labels, sample_rows(text, plan.column_labels))
    else:
        path.write_text(text)
    return path


def _output(plan: StudyPlan, command: str, table: IO[str]) -> str:
    shell = shlex.split(plan.settings.batch.shell)
    try:
        answer = subprocess.run([*shell, "-c", command], stdin=table, stdout=subprocess.PIPE, check=False)
    except OSError as cause:
        raise SampleError(f"--from-command: '{shell[0]}' (batch.shell) cannot start: {cause}") from cause
    if answer.returncode:
        code = answer.returncode
        end = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise SampleError(f"--from-command: the command ended with {end}; nothing is added.")
    try:
        return answer.stdout.decode()
    except UnicodeDecodeError as cause:
        raise SampleError(f"--from-command: the output is not UTF-8 text: {cause}") from cause


# --- what the command reads ---


def ended_samples(plan: StudyPlan, steps: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the samples that have ended, by step record.

    Args:
        plan: The study.
        steps: Names of steps or step records; all sampled ones when empty.

    Raises:
        StudyError: the study has no such step.
    """
    reader = StatusReader(plan.root)
    found = reader.read().steps
    known = {*plan.settings.steps, *(step.name for step in found)}
    for name in steps:
        if name not in known:
            raise StudyError(f"--step: the study has no step '{name}'; {nearest(name, known)}")
    for step in found:
        record = reader.record(step.name)
        if record is not None and record.manifest.sampled and (not steps or {step.name, step.step} & {*steps}):
            yield from _samples_of(step, record)


def _samples_of(step: StepStatus, record: RecordSamples) -> Iterator[dict[str, Any]]:
    manifest, states = record.manifest, record.states
    ended = np.flatnonzero(states.outcome != Outcome.OPEN)
    if not len(ended):
        return
    table, codes = open_samples(manifest), states.code(ended)
    for sample, code in zip(ended.tolist(), codes.tolist(), strict=True):
        path = manifest.paths.of(sample)
        yield {
            "id": sample,
            "step": step.step,
            "step_record": step.name,
            "parameters": step.params,
            "values": dict(zip(manifest.labels, map(_value, table.row(sample)), strict=True)),
            "state": _STATES[Outcome(int(states.outcome[sample]))],
            "exit_code": code,
            "directory": manifest.workspace if path == "." else f"{manifest.workspace}/{path}",
        }


def _value(text: str) -> Any:
    # Python reads no integer of thousands of digits.
    return json.loads(text) if len(text) <= _NUMBER_LIMIT and _NUMBER.fullmatch(text) else text


# --- what the command prints ---


def sample_rows(text: str, labels: Sequence[str]) -> list[list[str]]:
    """Return the values of the samples in JSON lines; numbers keep their text.

    Raises:
        SampleError: a line is no sample.
    """
    rows: list[list[str]] = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON text may have other line ends of Unicode
        if line.strip():
            rows += _rows_of(line, f"--from-command: line {number} of the output", labels)
    return rows


class _Number(str):
    """The text of a number."""

    __slots__ = ()


def _rows_of(line: str, where: str, labels: Sequence[str]) -> Iterator[list[str]]:
    try:
        value = json.loads(
            line, parse_float=_Number, parse_int=_Number, parse_constant=_Number, object_pairs_hook=_without_repetition
        )
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair, such as "\ud800", is no text
    except RecursionError as cause:
        raise SampleError(f"{where} has too many levels; print one object or list per line, or CSV.") from cause
    except ValueError as cause:
        raise SampleError(f"{where} is not JSON ({cause}); print one object or list per line, or CSV.") from cause
    many = isinstance(value, list) and value and all(isinstance(one, list | dict) for one in value)
    for sample in value if many else [value]:
        yield _row(sample, where, labels)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _row(sample: Any, where: str, labels: Sequence[str]) -> list[str]:
    if isinstance(sample, dict):
        for label in labels:
            if label not in sample:
                raise SampleError(f"{where} has no value for '{label}'; each of {', '.join(labels)} is needed.")
        for name in sample:
            if name not in labels:
                raise SampleError(f"{where} has a value for '{name}', which is no column; {nearest(name, labels)}")
        values = [sample[label] for label in labels]
    elif isinstance(sample, list):
        values = sample
        if len(values) != len(labels):
            raise SampleError(f"{where} has {len(values)} values; one for each of {', '.join(labels)} is needed.")
    else:
        raise SampleError(f"{where} is '{sample}'; an object with the labels, or a list of values, is needed.")
    for value in values:
        if not isinstance(value, str):
            raise SampleError(f"{where} has the value '{json.dumps(value)}'; numbers and text can be samples.")
    return values


def write_rows(path: Path, labels: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a sample file. Quotes and a header make sure that no row is a comment, a header, or blank."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(labels)
        writer.writerows(rows)
