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


def failure_line(sample: SampleStatus, known: dict[tuple[int, int], str]) -> Text:
    """Return the name of a failed sample, how it ended, and its values.

    Args:
        sample: The sample.
        known: The values of samples by step record and index, which the function completes.
    """
    key = sample.manifest.number, sample.index
    if key not in known:
        values = values_of([sample])[0]
        known[key] = "" if values == {} else value_words(values)
    return headline(sample, sample.end).append_text(plain(f"  {known[key]}".rstrip(), "dim"))


def output_lines(sample: SampleStatus, *, shows_stdout: bool, width: int) -> list[Text]:
    """Return the path of an output, and its last lines, in the width of the terminal."""
    path = sample.stderr.with_suffix(".out") if shows_stdout else sample.stderr
    lines = [plain(part, "dim") for part in chop_cells(str(path), width)]
    text = tail(path, _BYTES)
    if not text:
        return [*lines, Text("(it is empty)", "dim")]
    return [*lines, *map(Text, _folded(text, width))]


@functools.lru_cache(2)
def _folded(text: str, width: int) -> list[str]:
    lines = (plain(line).plain for line in text.expandtabs().splitlines())
    return [part for line in lines for part in chop_cells(line, width) or [""]]
