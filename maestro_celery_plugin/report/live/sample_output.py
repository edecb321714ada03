"""A failed sample on the screen: one line with its values, and what it has written."""

from __future__ import annotations

import functools

from rich.cells import chop_cells
from rich.text import Text

from maestro_celery_plugin.files import tail
from maestro_celery_plugin.report.failed_samples import headline, value_words
from maestro_celery_plugin.report.sample_status import SampleStatus, values_of
from maestro_celery_plugin.report.terminal import plain

__all__ = ["failure_line", "output_lines"]

# The last bytes of an output that can be scrolled.
_BYTES = 256 * 1024
# Lines of failed samples whose values are kept, so that a key does not read the table again.
_KEPT = 4096


def failure_line(sample: SampleStatus, *, has_values: bool) -> Text:
    """Return the name of a failed sample, how it ended, and its values."""
    line = headline(sample, sample.end)
    return line.append_text(plain(f"  {_values(sample)}", "dim")) if has_values else line


@functools.lru_cache(_KEPT)
def _values(sample: SampleStatus) -> str:
    values = values_of([sample])[0]
    return "" if values == {} else value_words(values)


@functools.lru_cache(4)
def output_lines(sample: SampleStatus, *, shows_stdout: bool, width: int) -> list[Text]:
    """Return the path of an output, and its last lines, in the width of the terminal."""
    path = sample.stderr.with_suffix(".out") if shows_stdout else sample.stderr
    text = tail(path, _BYTES)
    lines = [plain(part, "dim") for part in chop_cells(str(path), width)]
    if not text:
        return [*lines, Text("(it is empty)", "dim")]
    for line in text.expandtabs().splitlines():
        lines += [Text(part) for part in chop_cells(plain(line).plain, width)] or [Text("")]
    return lines
