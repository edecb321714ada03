"""The header of a text table: comments before the first row, or a first row that repeats the column labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from maestro_celery_plugin.errors import SampleError

__all__ = ["check_comments", "is_header"]

LOGGER = logging.getLogger(__name__)


def check_comments(comments: Sequence[str], labels: Sequence[str], delimiter: str | None, path: Path) -> None:
    """Compare the comments before the first row with the column labels; log other names of columns.

    Args:
        comments: The comments, without their ``#``.
        labels: The column labels.
        delimiter: The separator of the columns; None for white space.
        path: The file, for messages.

    Raises:
        SampleError: a comment names the columns in another order.
    """
    headers = [names for names in (_names(comment, delimiter) for comment in comments) if len(names) == len(labels)]
    if len(labels) < 2 or list(labels) in headers:
        return
    for names in headers:
        _check_order(names, labels, path)
    if headers:
        LOGGER.warning(
            "%s: the header names the columns %s, merlin.samples.column_labels names them %s; the labels count.",
            path.name, ", ".join(headers[0]), ", ".join(labels),
        )  # fmt: skip


def is_header(row: Sequence[str], second: Sequence[str], labels: Sequence[str], path: Path) -> bool:
    """Tell whether the first row of a table repeats the column labels, so that it is no sample.

    Args:
        row: The first row.
        second: The second row; empty without one.
        labels: The column labels.
        path: The file, for messages.

    Raises:
        SampleError: the row has the column labels in another order.
    """
    values, names = [value.strip() for value in row], list(labels)
    if values == names:
        LOGGER.info("%s: the first row has the column labels, so it is a header and no sample.", path.name)
        return True
    if sorted(values) == sorted(names):
        _check_order(values, names, path)
    if {value.casefold() for value in values} & {name.casefold() for name in names} or _names_columns(values, second):
        LOGGER.warning(
            "%s: the first row looks like a header (%s), but counts as a sample, because it is not equal to the column "
            "labels. Begin a header with '#'.",
            path.name, ", ".join(values),
        )  # fmt: skip
    return False


def _names_columns(first: Sequence[str], second: Sequence[str]) -> bool:
    """Tell whether the first row has only words, and the second one only numbers."""
    return bool(second) and not any(map(_is_number, first)) and all(map(_is_number, second))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_order(names: Sequence[str], labels: Sequence[str], path: Path) -> None:
    for position, name in enumerate(names):
        if name in labels and labels[position] != name:
            raise SampleError(
                f"merlin.samples.column_labels: '{path}' has the columns {', '.join(names)}, but the labels are "
                f"{', '.join(labels)}; '{name}' is column {position + 1} of the file. Bring them into one order, or "
                "correct the header."
            )


def _names(comment: str, delimiter: str | None) -> list[str]:
    return [name.strip().strip('"') for name in comment.split(delimiter)]
