"""Failed samples on a terminal, with their values or the last lines of their stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from maestro_celery_plugin.files import tail
from maestro_celery_plugin.report.model import StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_status import SampleStatus, values_of
from maestro_celery_plugin.report.terminal import command_words, plain, section, whole

__all__ = ["failures", "headline", "last_lines", "show_failed", "to_json", "value_words"]

STDERR_LINES = 3
_STDERR_BYTES = 4096
_LINE_LIMIT = 400
# The line that separates an attempt from the previous one (`worker/attempt.py`).
_LATER_ATTEMPT = re.compile(r"=== run again with (?:cmd|restart), [-0-9]{10} [:0-9]{8} ===(?:\n|$)")


def show_failed(reader: StatusReader, console: Console, limit: int) -> StudyStatus:
    """Print failed samples with their values, and the number of those beyond the limit; return the status."""
    status = reader.read()
    total = status.failed_samples
    samples = reader.failed(limit)
    for sample, values in zip(samples, values_of(samples), strict=True):
        _print_whole(console, headline(sample, sample.end))
        if values != {}:
            _print_whole(console, plain(f"  {value_words(values)}"))
        _print_whole(console, plain(f"  {sample.directory}", "dim"))
    if total > len(samples):
        console.print(f"\n{total - len(samples)} more of {total} failed samples; --limit {total} lists all.")
    elif not total:
        console.print("No sample has failed.")
    return status


def to_json(reader: StatusReader, limit: int | None) -> list[dict[str, Any]]:
    """Return failed samples after the last `read` of a reader, for `status --failed --json`; scripts rely on the keys.

    Args:
        reader: The reader.
        limit: The largest number of samples; None for all.
    """
    samples = reader.failed(sys.maxsize if limit is None else limit)
    return [_sample_json(sample, values) for sample, values in zip(samples, values_of(samples), strict=True)]


def _sample_json(sample: SampleStatus, values: dict[str, str] | None) -> dict[str, Any]:
    return {
        "step_record": sample.manifest.name,
        "sample": sample.index if sample.manifest.sampled else None,
        "code": sample.code,
        "end": sample.end,
        "duration_s": sample.duration_s,
        "values": values,
        "directory": str(sample.directory),
        "stderr": str(sample.stderr),
    }


def _print_whole(console: Console, text: Text) -> None:
    """Print a line without wrapping it, so that a user can copy paths and search lines."""
    console.print(text, soft_wrap=True)


def value_words(values: dict[str, str] | None) -> str:
    """Return the values of a sample: ``X=0.5  NAME=a``."""
    if values is None:
        return "(the sample table can no longer be read)"
    return "  ".join(f"{label}={value}" for label, value in values.items())


def failures(kinds: Sequence[tuple[SampleStatus, int]], study: Path) -> Group:
    """Return one failed sample of each kind, with the last lines of its stderr."""
    lines: list[Text] = []
    for sample, count in kinds:
        more = f", and {count - 1} more" if count > 1 else ""
        lines.append(headline(sample, sample.end).append(more))
        lines += [plain(f"  {line}", "dim") for line in last_lines(sample.stderr)]
    lines.append(Text("all, and what they have in common:", "dim"))
    return section("Failed samples", [*lines, whole(plain(command_words("maestro-celery failed", study)))])


def headline(sample: SampleStatus, words: str) -> Text:
    """Return the name of a sample, followed by `words`."""
    name = plain(sample.manifest.name)
    if sample.manifest.sampled:
        name.append(f"  sample {sample.index}")
    return name.append(f"  {words}", style="bold")


def last_lines(path: Path) -> list[str]:
    """Return the last lines of stderr, which may be large, missing, or binary.

    An earlier attempt ends above the line with which a later attempt begins. If the last attempt has written nothing,
    the lines of the one before are shown as such.
    """
    attempts = [_lines(text) for text in _LATER_ATTEMPT.split(tail(path, _STDERR_BYTES))]
    if attempts[-1]:
        return attempts[-1][-STDERR_LINES:]
    earlier = next((lines for lines in reversed(attempts) if lines), [])
    return ["(no stderr; that of an earlier attempt:)", *earlier[-STDERR_LINES:]] if earlier else []


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    return [line[:_LINE_LIMIT] for line in lines if line]
